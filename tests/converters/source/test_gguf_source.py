"""A GGUF file as the source: copied metadata, raw rows, parts, shapes of other architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from boardfit.converters.plan.weights import find_main_type, is_quantized_file
from boardfit.converters.source.gguf import open_gguf
from boardfit.converters.source.resolve import open_model
from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError

SIZES = {
    "block_count": 4,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def write_gguf(
    path: Path,
    arch: str = "llama",
    keys: dict[str, Any] | None = None,
    *,
    quantize: bool = False,
    general_type: str | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """A small GGUF by the `gguf` package; returns the float values of its tensors."""
    writer = gguf.GGUFWriter(str(path), arch, **options)
    writer.add_name("Small")
    writer.add_license("mit")
    writer.add_file_type(1)
    writer.add_quantization_version(2)
    writer.add_string("quantize.imatrix.file", "old.imatrix")
    if general_type:
        writer.add_type(general_type)
    for key, value in {**SIZES, **(keys or {})}.items():
        if isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_token_list([f"t{i}" for i in range(32)])
    writer.add_chat_template("{{ messages[0]['content'] }}")
    rng = np.random.default_rng(1)
    values: dict[str, np.ndarray] = {}
    for name, shape in (
        ("token_embd.weight", (32, 64)),
        ("blk.0.attn_q.weight", (64, 64)),
        ("blk.0.ffn_up_exps.weight", (2, 96, 64)),
        ("blk.0.attn_norm.weight", (64,)),
        ("output.weight", (32, 64)),
    ):
        data = rng.standard_normal(shape, dtype=np.float32)
        values[name] = data
        if data.ndim == 1:
            writer.add_tensor(name, data)
        elif not quantize:
            writer.add_tensor(name, data.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_float_gguf(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "m.gguf")
    spec = open_model(tmp_path / "m.gguf")
    assert (spec.name, spec.arch, spec.family) == ("Small", "llama", "llama")
    assert (spec.source.kind, spec.source.license) == ("gguf", "mit")
    assert spec.source.files == {"m.gguf": (tmp_path / "m.gguf").stat().st_size}
    assert spec.chat_template == "{{ messages[0]['content'] }}" and spec.tokenizer_dir is None
    assert spec.notes == ()
    keys = [entry.key for entry in spec.metadata]
    assert keys[0] == "general.architecture"
    assert not {"general.file_type", "general.quantization_version"} & set(keys)
    assert not [key for key in keys if key.startswith("quantize.imatrix")]
    query, norm = spec.tensors[1], spec.tensors[3]
    assert (query.source_type, query.keep) == ("F16", None)
    assert (norm.source_type, norm.keep) == ("F32", "F32")
    expected = values["blk.0.attn_q.weight"].astype(np.float16)
    assert np.array_equal(query.read(5, 9), expected[5:9])
    assert np.array_equal(norm.read(0, 1)[0], values["blk.0.attn_norm.weight"])


def test_quantized_rows_are_raw_blocks_and_noted(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "m.gguf", quantize=True)
    spec = open_model(tmp_path / "m.gguf")
    experts = next(t for t in spec.tensors if t.name == "blk.0.ffn_up_exps.weight")
    assert experts.shape == (2, 96, 64) and experts.n_rows == 192
    rows = experts.read(90, 100)
    assert rows.dtype == np.uint8 and rows.shape == (10, 64 // 32 * 34)
    back = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    wanted = values["blk.0.ffn_up_exps.weight"].reshape(192, 64)[90:100]
    assert np.abs(back - wanted).max() < 0.05
    assert is_quantized_file(spec) and find_main_type(spec) == "Q8_0"


def test_shape_counts_parameters(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", keys={"expert_count": 2, "expert_used_count": 1})
    shape = open_model(tmp_path / "m.gguf").shape
    assert shape.n_params == 32 * 64 * 2 + 64 * 64 + 2 * 96 * 64 + 64
    assert shape.n_params_active == 64 + 32 * 64 + 64 * 64 + 96 * 64 + 64
    assert (shape.n_vocab, shape.n_ctx_train, shape.n_head, shape.n_ff) == (32, 512, 4, 96)
    assert [(layer.n_head_kv, layer.head_dim_k) for layer in shape.layers] == [(2, 16)] * 4
    assert not shape.tied_embeddings


@pytest.mark.parametrize(
    ("arch", "keys", "windows"),
    [
        ("llama", {"attention.sliding_window": 64}, [None] * 4),
        ("gemma2", {"attention.sliding_window": 64}, [64, None, 64, None]),
        ("gemma2", {}, [4096, None, 4096, None]),
        ("gemma3", {"attention.sliding_window": 64, "block_count": 6}, [64] * 5 + [None]),
        ("gemma3", {}, [None] * 4),
        ("gpt-oss", {"attention.sliding_window": 8}, [8, None, 8, None]),
        (
            "gemma4",
            {
                "attention.sliding_window": 8,
                "attention.sliding_window_pattern": [True, False, False, True],
            },
            [8, None, None, 8],
        ),
        ("starcoder2", {"attention.sliding_window": 8}, [None] * 4),
    ],
)
def test_windows(
    tmp_path: Path, arch: str, keys: dict[str, Any], windows: list[int | None]
) -> None:
    write_gguf(tmp_path / "m.gguf", arch, keys)
    assert [layer.window for layer in open_model(tmp_path / "m.gguf").shape.layers] == windows


def test_recurrent_layers(tmp_path: Path) -> None:
    keys = {"attention.head_count_kv": [0, 0, 2, 0], "shortconv.l_cache": 3}
    write_gguf(tmp_path / "lfm.gguf", "lfm2", keys)
    layers = open_model(tmp_path / "lfm.gguf").shape.layers
    assert [(layer.n_head_kv, layer.state_values) for layer in layers] == [
        (0, 128), (0, 128), (2, 0), (0, 128)
    ]  # fmt: skip
    keys = {
        "attention.head_count_kv": None,
        "ssm.inner_size": 128,
        "ssm.state_size": 16,
        "ssm.conv_kernel": 4,
    }
    write_gguf(tmp_path / "mamba.gguf", "mamba", keys)
    layers = open_model(tmp_path / "mamba.gguf").shape.layers
    assert {(layer.n_head_kv, layer.state_values) for layer in layers} == {(0, 3 * 128 + 16 * 128)}


def test_heads_may_differ_by_layer(tmp_path: Path) -> None:
    keys = {"attention.head_count": [4, 8, 4, 2], "attention.key_length": 32}
    write_gguf(tmp_path / "m.gguf", "openelm", keys)
    shape = open_model(tmp_path / "m.gguf").shape
    assert shape.n_head == 8 and shape.layers[0].head_dim_k == 32


def test_split_model_is_one_model_from_any_part(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "m.gguf", split_max_tensors=2)
    parts = sorted(p.name for p in tmp_path.iterdir())
    assert parts == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        spec = open_model(tmp_path / part)
        assert [t.name for t in spec.tensors] == list(values)
        assert list(spec.source.files) == parts
        assert not [entry.key for entry in spec.metadata if entry.key.startswith("split.")]


def test_split_model_with_a_missing_part(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", split_max_tensors=2)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00003\.gguf of the split model is missing"):
        open_model(tmp_path / "m-00001-of-00003.gguf")


def test_parts_of_two_models(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", split_max_tensors=2)
    first, second = tmp_path / "m-00001-of-00003.gguf", tmp_path / "m-00002-of-00003.gguf"
    second.write_bytes((tmp_path / "m-00003-of-00003.gguf").read_bytes())
    with pytest.raises(InputError, match="states that it is part 3 of 3"):
        open_model(first)
    renamed = tmp_path / "whole.gguf"
    first.rename(renamed)
    with pytest.raises(InputError, match="one of 3 parts"):
        open_model(renamed)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "context_length"])
def test_missing_sizes(tmp_path: Path, key: str) -> None:
    write_gguf(tmp_path / "m.gguf", keys={key: None})
    with pytest.raises(InputError, match=f"llama.{key} is missing"):
        open_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 10_000), ("attention.head_count_kv", [1, 2]), ("expert_count", 2**31)],
)
def test_impossible_sizes(tmp_path: Path, key: str, value: Any) -> None:
    write_gguf(tmp_path / "m.gguf", keys={key: value})
    with pytest.raises(InputError, match=f"llama.{key}"):
        open_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(("arch", "kind"), [("llama", "adapter"), ("clip", None)])
def test_other_kinds_of_gguf(tmp_path: Path, arch: str, kind: str | None) -> None:
    write_gguf(tmp_path / "m.gguf", arch, general_type=kind)
    with pytest.raises(UnsupportedModelError, match="not a language model"):
        open_model(tmp_path / "m.gguf")


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        open_model(path)
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(InputError):
        open_model(path)
    path.write_bytes(b"GGUF" + b"\xff" * 39)  # what hangs the gguf package
    with pytest.raises((InputError, UnsafeInputError)):
        open_model(path)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct-Q4_1.gguf", "SmolLM2-135M-Instruct-Q4_1"),
        ("model.gguf", "Small"),
        ("ggml-model-q4_0.gguf", "Small"),
        ("model-Q4_K_M.gguf", "Small"),
        ("sha256-00aa11.gguf", "Small"),
        ("00aa11", "Small"),
    ],
)
def test_a_model_is_called_by_its_file_where_that_is_a_name(
    tmp_path: Path, file: str, name: str
) -> None:
    write_gguf(tmp_path / file)
    assert open_gguf(tmp_path / file).name == name
