"""An imatrix computed through the engine, against numpy; its file formats, broken ones too."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.converters.formats.gguf.imatrix import Imatrix, Sums
from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.imatrix.collect import compute
from boardfit.converters.imatrix.files import read_imatrix, write_imatrix
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.files.gguf import read_header
from tests.converters.formats.gguf.models import Dims, make_spec

TEXT = "The quick brown fox jumps over the lazy dog; 0123456789!\n" * 20
N_CTX = 64


def tokens_of(text: str, n_ctx: int, n_chunks: int) -> np.ndarray:
    """The made-up vocabulary spells everything in bytes: BOS, a word mark (three bytes), text; each
    chunk begins with BOS in place of its first token.
    """
    data = ("▁" + text.replace(" ", "▁")).encode()
    ids = np.array([1] + [3 + byte for byte in data])[: n_ctx * n_chunks].reshape(n_chunks, n_ctx)
    ids[:, 0] = 1
    return ids


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.engine
def test_first_layer_equals_numpy(tmp_path: Path, text: Path) -> None:
    """What goes into the first layer's matrices can be computed by hand: normalized embeddings."""
    spec = make_spec(Dims(n_layer=2, dtype="F32"))
    by_name = {t.name: t.read(0, t.n_rows) for t in spec.tensors}
    model = write_gguf(spec, load_recipe("f16"), tmp_path / "model.gguf").path
    n_chunks = 3
    matrix = compute(model, text, tmp_path / "out.gguf", n_ctx=N_CTX, max_chunks=n_chunks)
    ids = tokens_of(TEXT, N_CTX, n_chunks)
    embedded = by_name["token_embd.weight"].astype(np.float16).astype(np.float64)[ids]
    expected = (rms_norm(embedded, by_name["blk.0.attn_norm.weight"]) ** 2).mean(axis=(0, 1))
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(
            matrix.entries[f"blk.0.{name}.weight"], expected.reshape(-1), rtol=2e-5
        )
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(matrix.entries) == {f"blk.{i}.{name}.weight" for i in (0, 1) for name in names}
    assert matrix.n_chunks == n_chunks and matrix.datasets == ("text.txt",)
    raw = gguf_arrays(tmp_path / "out.gguf")
    assert all(raw[f"{name}.counts"].tolist() == [N_CTX * n_chunks] for name in matrix.entries)


@pytest.mark.engine
def test_experts_get_their_own_sums(tmp_path: Path, text: Path) -> None:
    """Each token goes to two experts; the sum over all experts is the router's own input, twice."""
    dims = Dims("qwen3moe", n_layer=1, n_expert=6, n_ff=256, n_head_kv=2, dtype="F16")
    model = write_gguf(make_spec(dims), load_recipe("f16"), tmp_path / "model.gguf").path
    matrix = compute(model, text, tmp_path / "out.gguf", n_ctx=N_CTX, max_chunks=2)
    raw = gguf_arrays(tmp_path / "out.gguf")
    counts = raw["blk.0.ffn_up_exps.weight.counts"].reshape(-1)
    sums = raw["blk.0.ffn_up_exps.weight.in_sum2"]
    assert sums.shape == (6, 256) and counts.sum() == 2 * N_CTX * 2
    router = raw["blk.0.ffn_gate_inp.weight.in_sum2"].reshape(-1)
    np.testing.assert_allclose(sums.sum(axis=0), 2 * router, rtol=1e-4)
    means = matrix.entries["blk.0.ffn_up_exps.weight"].reshape(6, 256)
    for expert in range(6):
        expected = sums[expert] / counts[expert] if counts[expert] else np.ones(256)
        np.testing.assert_array_equal(means[expert], expected.astype(np.float32))


@pytest.mark.engine
def test_a_computed_imatrix_quantizes(tmp_path: Path, text: Path) -> None:
    spec = make_spec(Dims(n_layer=1))
    model = write_gguf(spec, load_recipe("bf16"), tmp_path / "model.gguf").path
    matrix = compute(
        model, text, tmp_path / "imatrix.gguf", n_ctx=N_CTX, max_chunks=2, process_output=True
    )
    assert "output.weight" in matrix.entries
    recipe = load_recipe("q4_k_m")
    plain = write_gguf(spec, recipe, tmp_path / "plain.gguf")
    weighted = write_gguf(spec, recipe, tmp_path / "weighted.gguf", imatrix=matrix)
    assert plain.types == weighted.types and plain.sha256 != weighted.sha256
    header = read_header(weighted.path)
    assert header.get("quantize.imatrix.file") == "imatrix.gguf"
    assert header.get("quantize.imatrix.entries_count") == 8


@pytest.mark.engine
def test_too_little_text_is_said(tmp_path: Path) -> None:
    model = write_gguf(make_spec(Dims(n_layer=1)), load_recipe("bf16"), tmp_path / "m.gguf").path
    short = tmp_path / "short.txt"
    short.write_text("hello")
    with pytest.raises(UsageError, match="has 9 tokens; at least 1024 are needed"):
        compute(model, short, tmp_path / "out.gguf")
    short.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        compute(model, short, tmp_path / "out.gguf")
    with pytest.raises(UsageError, match="n_ctx"):
        compute(model, short, tmp_path / "out.gguf", n_ctx=8)
    assert not (tmp_path / "out.gguf").exists()


def gguf_arrays(path: Path) -> dict[str, np.ndarray]:
    """Tensors as the `gguf` package reads them: not by our own code."""
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def some_sums() -> dict[str, Sums]:
    rng = np.random.default_rng(3)
    dense = Sums(rng.random((1, 8), np.float32) * 9, np.array([12]))
    experts = Sums(rng.random((3, 8), np.float32), np.array([4, 0, 8]))
    return {"blk.0.ffn_up_exps.weight": experts, "blk.0.attn_q.weight": dense}


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    path, sums = tmp_path / "a.gguf", some_sums()
    write_imatrix(path, sums, datasets=["a.txt", "b.txt"], n_chunks=3, chunk_size=4)
    matrix = read_imatrix(path)
    dense, experts = sums["blk.0.attn_q.weight"], sums["blk.0.ffn_up_exps.weight"]
    assert matrix.datasets == ("a.txt", "b.txt") and matrix.n_chunks == 3
    np.testing.assert_array_equal(
        matrix.entries["blk.0.attn_q.weight"], dense.values[0] / np.float32(12)
    )
    found = matrix.weights_for("blk.0.ffn_up_exps.weight", 3, 8)
    assert found is not None
    np.testing.assert_array_equal(found[0], experts.values[0] / np.float32(4))
    np.testing.assert_array_equal(found[1], np.ones(8))
    assert matrix.weights_for("blk.0.attn_k.weight", 1, 8) is None


def legacy(entries: Sequence[tuple[bytes, int, Sequence[float]]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        out += struct.pack(f"<{len(values)}f", *values)
    return out + tail


def test_the_older_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    tail = struct.pack("<ii", 7, 5) + b"a.txt"
    path.write_bytes(legacy([(b"blk.0.attn_q.weight", 2, [2, 4]), (b"b", 0, [3])], tail))
    matrix = read_imatrix(path)
    assert matrix.entries["blk.0.attn_q.weight"].tolist() == [1, 2]
    assert matrix.entries["b"].tolist() == [3]
    assert (matrix.n_chunks, matrix.datasets) == (7, ("a.txt",))
    path.write_bytes(legacy([(b"b", 1, [3])]))  # the oldest files end here
    assert read_imatrix(path).n_chunks == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "not an imatrix"),
        (struct.pack("<i", 0), "0 entries"),
        (struct.pack("<i", -5), "-5 entries"),
        (struct.pack("<ii", 1, 2**31 - 1), "name of 2147483647"),
        (struct.pack("<ii", 1, -1), "name of -1"),
        (legacy([(b"a", 1, [1.0])])[:-1], "cut short"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1), "cut short"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", -1, 1), "-1 calls"),
        (legacy([(b"a", 1, [float("nan")])]), "NaN"),
        (legacy([(b"a", 1, [float("inf")])]), "NaN"),
        (legacy([(b"a", 1, [-1.0])]), "negative"),
    ],
)
def test_rubbish_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_imatrix(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_bad_sums_are_refused(value: float, tmp_path: Path) -> None:
    sums = some_sums()
    sums["blk.0.attn_q.weight"].values[0, 3] = value
    write_imatrix(tmp_path / "a.gguf", sums, datasets=[], n_chunks=1, chunk_size=4)
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight holds NaN"):
        read_imatrix(tmp_path / "a.gguf")


@pytest.mark.engine
def test_a_model_is_not_an_imatrix(tmp_path: Path) -> None:
    model = write_gguf(make_spec(Dims(n_layer=1)), load_recipe("q8_0"), tmp_path / "m.gguf")
    with pytest.raises(InputError, match="not an imatrix"):
        read_imatrix(model.path)


@settings(max_examples=300, deadline=None)
@given(position=st.floats(0, 1), byte=st.integers(0, 255), cut=st.floats(0.3, 1))
def test_mutated_files_never_crash(
    tmp_path_factory: pytest.TempPathFactory, position: float, byte: int, cut: float
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_imatrix(folder / "m", some_sums(), datasets=["a"], n_chunks=3, chunk_size=4)
    old = legacy([(b"blk.0.attn_q.weight", 2, [2, 4]), (b"b", 1, [3])])
    for data in (bytearray((folder / "m").read_bytes()), bytearray(old)):
        data[int(position * (len(data) - 1))] = byte
        (folder / "m").write_bytes(data[: max(1, int(cut * len(data)))])
        try:
            matrix = read_imatrix(folder / "m")
        except InputError:
            continue
        assert isinstance(matrix, Imatrix)
        assert all(np.isfinite(values).all() for values in matrix.entries.values())
