"""The writer: exact sizes, slabs that do not show, shared passes, bad weights, full disks."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import mmap
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boardfit.converters.formats.gguf import stream, write
from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.header import artifact_bytes
from boardfit.converters.formats.gguf.recipe import list_recipes, load_recipe
from boardfit.converters.formats.gguf.stream import release
from boardfit.converters.formats.gguf.write import write_gguf, write_many
from boardfit.converters.spec import ModelSpec, TargetTensor
from boardfit.edge.errors import DoesNotFitError, EngineMissingError, InputError, UsageError
from boardfit.edge.files.gguf import read_header
from tests.converters.formats.gguf.models import Dims, make_spec, tensor

pytestmark = pytest.mark.engine

TINY = Dims(n_layer=1, n_vocab=300)


def replaced(spec: ModelSpec, name: str, **changes: object) -> ModelSpec:
    tensors = tuple(
        dataclasses.replace(t, **changes) if t.name == name else t  # type: ignore[arg-type]
        for t in spec.tensors
    )
    return dataclasses.replace(spec, tensors=tensors)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n_embd=st.integers(1, 40).map(lambda n: 8 * n),
    n_ff=st.integers(1, 40).map(lambda n: 8 * n),
    n_layer=st.integers(1, 9),
    n_expert=st.sampled_from([0, 0, 3, 8]),
    tied=st.booleans(),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    recipe=st.sampled_from([r for r in list_recipes() if not r.id.startswith("iq4")]),
    n_vocab=st.integers(260, 290),
)
def test_artifact_bytes_is_the_size_of_the_file(
    tmp_path: Path, n_embd: int, n_ff: int, n_layer: int, n_expert: int, tied: bool, dtype: str,
    recipe: object, n_vocab: int,
) -> None:  # fmt: skip
    arch = "qwen3moe" if n_expert else "llama"
    spec = make_spec(
        Dims(
            arch, n_layer, n_embd, n_head=2, n_head_kv=1, head_dim=16, n_ff=n_ff, n_vocab=n_vocab,
            n_expert=n_expert, tied=tied, dtype=dtype,
        )
    )  # fmt: skip
    out = tmp_path / "out.gguf"
    artifact = write_gguf(spec, recipe, out, threads=2)  # type: ignore[arg-type]
    assert artifact.nbytes == out.stat().st_size == artifact_bytes(spec, recipe)  # type: ignore[arg-type]
    assert artifact.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    header = read_header(out)
    assert header.trailing_bytes == 0
    assert Counter(t.type_name for t in header.tensors) == artifact.types


@pytest.mark.parametrize("recipe_id", ["q4_k_m", "q8_0", "f16", "iq4_xs"])
def test_slab_size_does_not_show(
    recipe_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_id)
    dims = Dims("qwen3moe", n_layer=1, n_head=2, n_expert=3, n_ff=256, n_vocab=301)
    digests = set()
    for index, (values, threads) in enumerate([(1, 3), (777, 1), (256 * 50, 2), (2**30, 2)]):
        monkeypatch.setattr(stream, "_SLAB_VALUES", values)
        out = tmp_path / f"{index}.gguf"
        digests.add(write_gguf(make_spec(dims), recipe, out, threads=threads).sha256)
    assert len(digests) == 1


def test_one_pass_over_the_checkpoint_writes_many_files(tmp_path: Path) -> None:
    spec, reads = make_spec(TINY), Counter[str]()

    def counted(t: TargetTensor) -> TargetTensor:
        def read(start: int, stop: int) -> np.ndarray:
            reads[t.name] += stop - start
            return t.read(start, stop)

        return dataclasses.replace(t, read=read)

    watched = dataclasses.replace(spec, tensors=tuple(counted(t) for t in spec.tensors))
    recipes = [load_recipe(name) for name in ("q4_k_m", "f16", "q4_0", "bf16")]
    jobs = [(recipe, tmp_path / f"{recipe.id}.gguf") for recipe in recipes]
    together = write_many(watched, jobs)
    assert reads == {t.name: t.n_rows for t in spec.tensors}
    for recipe, artifact in zip(recipes, together, strict=True):
        alone = write_gguf(spec, recipe, tmp_path / "alone.gguf")
        assert artifact.sha256 == alone.sha256
        assert artifact.path.read_bytes() == (tmp_path / "alone.gguf").read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("recipe_id", ["q4_0", "f16", "bf16"])
def test_weights_that_are_not_finite_are_named(
    value: float, dtype: str, recipe_id: str, tmp_path: Path
) -> None:
    spec = make_spec(dataclasses.replace(TINY, dtype=dtype))
    name = "blk.0.ffn_up.weight"
    bad = next(t for t in spec.tensors if t.name == name).read(0, 512).copy()
    patterns = {np.uint16: np.float32(value).view(np.uint32) >> 16}
    bad[3, 5] = patterns[np.uint16] if dtype == "BF16" else value
    spec = replaced(spec, name, read=tensor(name, bad, dtype).read)
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight.*checkpoint:.*row 3, column 5"):
        write_gguf(spec, load_recipe(recipe_id), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_values_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    spec = make_spec(TINY)
    name = "blk.0.ffn_up.weight"
    large = np.full((512, 256), 1e5, np.float32)
    spec = replaced(spec, name, source_type="F32", read=tensor(name, large, "F32").read)
    with pytest.raises(InputError, match=r"too large for F16: up to 1e\+05"):
        write_gguf(spec, load_recipe("f16"), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []
    assert write_gguf(spec, load_recipe("bf16"), tmp_path / "out.gguf").nbytes


def test_a_reader_that_gives_too_few_rows_is_caught(tmp_path: Path) -> None:
    spec = make_spec(TINY)
    spec = replaced(spec, "output.weight", read=lambda start, stop: np.zeros((1, 256), np.uint16))
    with pytest.raises(InputError, match=r"output\.weight.*512 bytes, expected 153600"):
        write_gguf(spec, load_recipe("q8_0"), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    spec = replaced(make_spec(TINY), "output.weight", read=lambda a, b: np.zeros((0,), np.uint16))
    with pytest.raises(InputError):
        write_gguf(spec, load_recipe("q8_0"), out)
    assert out.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_is_seen_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, recipe = make_spec(TINY), load_recipe("q8_0")
    usage = write.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFitError) as caught:
        write_gguf(spec, recipe, tmp_path / "out.gguf")
    assert caught.value.shortfall_bytes == artifact_bytes(spec, recipe) - 1000
    assert list(tmp_path.iterdir()) == []


def test_without_the_engine_the_pip_line_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boardfit.converters.formats.gguf import kernels

    kernels.load_kernels.cache_clear()
    monkeypatch.setattr(kernels, "find_engine_folder", lambda: None)
    with pytest.raises(EngineMissingError) as caught:
        write_gguf(make_spec(TINY), load_recipe("q8_0"), tmp_path / "out.gguf")
    assert "pip install" in str(caught.value.next_step)


def test_progress_counts_every_weight(tmp_path: Path) -> None:
    spec, seen = make_spec(TINY), []
    write_gguf(
        spec, load_recipe("q8_0"), tmp_path / "out.gguf", progress=lambda *at: seen.append(at)
    )
    total = sum(t.n_elements for t in spec.tensors)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_release_touches_nothing_but_read_only_mappings(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(np.arange(1 << 20, dtype=np.uint8).tobytes())
    owned = np.arange(1 << 20, dtype=np.uint8)
    view = owned[:]
    view.flags.writeable = False
    release(view[4096:65536])
    assert np.array_equal(owned, np.arange(1 << 20, dtype=np.uint8))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        rows = np.frombuffer(mapped, np.uint8).reshape(256, 4096)
        assert rows[:16].sum() > 0 and _resident(path) > 0
        release(rows)
        assert _resident(path) == 0
        assert np.array_equal(rows.reshape(-1), owned)
        private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        changed = np.frombuffer(private, np.uint8)
        changed[:] = 7
        release(changed)
        assert (changed == 7).all()


def _resident(path: Path) -> int:
    """KiB of a mapped file in this process's resident set."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def test_types_are_assigned_in_milliseconds() -> None:
    import time

    narrow = Dims(n_layer=60, n_embd=32, n_head_kv=1, head_dim=8, n_ff=32, n_vocab=260)
    spec, recipes = make_spec(narrow), list_recipes()
    assert len(spec.tensors) > 500
    start = time.perf_counter()
    for recipe in recipes:
        assign_types(spec, recipe)
    assert (time.perf_counter() - start) / len(recipes) < 0.1


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_a_models_own_alignment_is_kept(alignment: int, tmp_path: Path) -> None:
    from gguf import GGUFValueType

    from boardfit.converters.spec import KeyValue

    spec = make_spec(TINY)
    entry = KeyValue("general.alignment", alignment, GGUFValueType.UINT32)
    spec = dataclasses.replace(spec, metadata=(*spec.metadata, entry))
    artifact = write_gguf(spec, load_recipe("q8_0"), tmp_path / "out.gguf")
    header = read_header(artifact.path)
    assert header.alignment == alignment and header.data_offset % alignment == 0
    assert all(t.offset % alignment == 0 for t in header.tensors)
    plain = write_gguf(make_spec(TINY), load_recipe("q8_0"), tmp_path / "plain.gguf")
    assert _tensor_bytes(artifact.path) == _tensor_bytes(plain.path)


def _tensor_bytes(path: Path) -> dict[str, bytes]:
    header, data = read_header(path), path.read_bytes()
    starts = {t.name: header.data_offset + t.offset for t in header.tensors}
    return {t.name: data[starts[t.name] : starts[t.name] + t.nbytes] for t in header.tensors}


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, 0

    def pwrite(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(DoesNotFitError, match="the disk is full"):
        write_gguf(make_spec(TINY), load_recipe("q8_0"), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_start_takes_its_siblings_along(tmp_path: Path) -> None:
    spec, recipe = make_spec(TINY), load_recipe("q8_0")
    free, taken = tmp_path / "free.gguf", tmp_path / "taken.gguf"

    def progress(done: int, total: int) -> None:
        with pytest.raises(UsageError, match="another process is writing"):
            write_many(spec, [(recipe, free), (load_recipe("q4_0"), taken)])
        assert not list(tmp_path.glob("free*"))

    write_gguf(spec, recipe, taken, progress=progress)
    assert list(tmp_path.iterdir()) == [taken]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A matrix of 400 MB, mapped: neither it nor its result may stay in memory."""
    rows, columns = 100_000, 2048
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(2 * rows * columns)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint16).reshape(rows, columns)
    spec = make_spec(TINY)
    big = tensor("blk.0.big.weight", data, "BF16")
    spec = dataclasses.replace(spec, tensors=(*spec.tensors, big))
    before, peak = _memory_kib(), [0, 0]

    def progress(done: int, total: int) -> None:
        for i, now in enumerate(_memory_kib()):
            peak[i] = max(peak[i], now - before[i])

    write_gguf(spec, load_recipe("q8_0"), tmp_path / "out.gguf", threads=2, progress=progress)
    anonymous, mapped_file = peak
    assert anonymous < 120 * 1024 and mapped_file < 60 * 1024, peak


def _memory_kib() -> tuple[int, int]:
    """Anonymous and file-backed KiB in this process's resident set."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return found["RssAnon:"], found["RssFile:"]
