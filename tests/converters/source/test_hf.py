"""Reading a Hugging Face directory: what a spec holds, and every way of being refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.layout import to_f32
from boardfit.converters.source.resolve import open_model
from boardfit.edge.errors import EdgeError, InputError, UnsafeInputError, UnsupportedModelError
from tests.converters.families.checkpoints import random_values, write_safetensors

FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(directory: Path, kind: type[EdgeError], *words: str) -> EdgeError:
    """The error of opening a directory, checked to be one printable line that has the words."""
    with pytest.raises(kind) as caught:
        open_model(directory)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    return caught.value


def test_spec_of_a_sharded_checkpoint(checkpoint: Path) -> None:
    spec = open_model(checkpoint)
    assert (spec.arch, spec.family, spec.name) == ("llama", "llama", "Tiny Model")
    assert spec.source.kind == "hf-directory" and spec.source.license == "mit"
    assert set(spec.source.files) >= {FIRST, SECOND, "config.json", "tokenizer.json"}
    assert spec.shape.n_layer == len(spec.shape.layers) == 2
    assert spec.shape.layers[0].n_head_kv == 1 and spec.shape.layers[0].head_dim_k == 32
    assert spec.shape.n_params == sum(t.n_elements for t in spec.tensors)
    assert spec.chat_template and spec.chat_template == spec.get("tokenizer.chat_template")
    assert spec.tokenizer_dir == checkpoint
    keys = [entry.key for entry in spec.metadata]
    assert keys[0] == "general.architecture" and len(set(keys)) == len(keys)
    assert "general.file_type" not in keys


def test_rows_are_views_of_the_mapped_file(checkpoint: Path) -> None:
    spec = open_model(checkpoint)
    down = next(t for t in spec.tensors if t.name == "blk.0.ffn_down.weight")
    assert down.read(3, 5).base is not None, "rows of a plain copy are not copied"
    assert not down.read(3, 5).flags.writeable
    query = next(t for t in spec.tensors if t.name == "blk.1.attn_q.weight")
    whole = query.read(0, query.n_rows)
    for start in range(0, query.n_rows, 7):
        stop = min(start + 7, query.n_rows)
        assert np.array_equal(query.read(start, stop), whole[start:stop])


def test_fingerprint_tells_fine_tunes_apart(checkpoint: Path, tmp_path: Path) -> None:
    before = open_model(checkpoint).source.fingerprint
    twin = tmp_path / "twin"
    shutil.copytree(checkpoint, twin)
    assert open_model(twin).source.fingerprint == before
    data = bytearray((twin / SECOND).read_bytes())
    data[-1] ^= 1
    (twin / SECOND).write_bytes(data)
    assert open_model(twin).source.fingerprint != before


def test_missing_shard(checkpoint: Path) -> None:
    (checkpoint / SECOND).unlink()
    refused(checkpoint, InputError, SECOND, "missing")


def test_missing_shard_without_an_index(checkpoint: Path) -> None:
    (checkpoint / INDEX).unlink()
    (checkpoint / SECOND).unlink()
    refused(checkpoint, InputError, SECOND, "missing")


def test_index_is_not_needed(checkpoint: Path) -> None:
    expected = [t.name for t in open_model(checkpoint).tensors]
    (checkpoint / INDEX).unlink()
    assert [t.name for t in open_model(checkpoint).tensors] == expected


@pytest.mark.parametrize("keep", [4, 100, 5000])
def test_truncated_shard(checkpoint: Path, keep: int) -> None:
    path = checkpoint / SECOND
    path.write_bytes(path.read_bytes()[:keep])
    refused(checkpoint, InputError, SECOND)


def test_index_naming_an_absent_file(checkpoint: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"]["model.norm.weight"] = "model-00009-of-00009.safetensors"

    edit_json(checkpoint / INDEX, change)
    refused(checkpoint, InputError, "model-00009-of-00009.safetensors", "missing")


def test_index_naming_the_wrong_shard(checkpoint: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"]["model.norm.weight"] = FIRST

    edit_json(checkpoint / INDEX, change)
    refused(checkpoint, InputError, "model.norm.weight", FIRST)


def test_index_with_a_tensor_of_no_shard(checkpoint: Path) -> None:
    edit_json(checkpoint / INDEX, lambda index: index["weight_map"].update(ghost=FIRST))
    refused(checkpoint, InputError, "ghost")


def test_index_without_a_tensor_that_is_there(checkpoint: Path) -> None:
    edit_json(checkpoint / INDEX, lambda index: index["weight_map"].pop("model.norm.weight"))
    refused(checkpoint, InputError, "model.norm.weight")


@pytest.mark.parametrize(
    "path",
    ["../../etc/x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x"],
)
def test_index_cannot_lead_elsewhere(checkpoint: Path, path: str) -> None:
    edit_json(
        checkpoint / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": path})
    )
    refused(checkpoint, UnsafeInputError, "model.norm.weight")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_broken_index(checkpoint: Path, text: str) -> None:
    (checkpoint / INDEX).write_text(text)
    refused(checkpoint, InputError, INDEX)


def replace_tensor(directory: Path, name: str, dtype: str, array: np.ndarray) -> None:
    """Rewrite the checkpoint as one file in which `name` is another tensor (or is new)."""
    from boardfit.converters.source.checkpoint import SafetensorsCheckpoint

    config = json.loads((directory / "config.json").read_text())
    old = SafetensorsCheckpoint(directory, config)
    tensors = {n: (old.tensor(n).dtype, old.tensor(n).data) for n in old.names()}
    tensors[name] = (dtype, array)
    write_safetensors(directory / "all.safetensors", tensors)
    for shard in (*directory.glob("model-*"), directory / INDEX):
        shard.unlink()
    (directory / "all.safetensors").rename(directory / "model.safetensors")


@pytest.mark.parametrize(
    ("dtype", "numpy"), [("F8_E4M3", np.uint8), ("I32", np.int32), ("F64", np.float64)]
)
def test_wrong_dtype_names_the_tensor(checkpoint: Path, dtype: str, numpy: type) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    replace_tensor(checkpoint, name, dtype, np.zeros((64, 608), numpy))
    refused(checkpoint, InputError, name, dtype, "BF16, F16 or F32")


def test_wrong_shape_names_the_tensor(checkpoint: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    replace_tensor(checkpoint, name, "F16", np.zeros((608, 64), np.float16))
    refused(checkpoint, InputError, name, "[608, 64]", "[64, 608]")


def test_unknown_tensor(checkpoint: Path) -> None:
    replace_tensor(checkpoint, "model.layers.0.adapter.weight", "F16", np.zeros(8, np.float16))
    refused(checkpoint, InputError, "model.layers.0.adapter.weight", "unknown")


def test_missing_tensor(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda config: config.update(attention_bias=True))
    refused(checkpoint, InputError, "self_attn.q_proj.bias", "missing")


def test_untied_head_must_be_there(checkpoint: Path) -> None:
    def drop_head(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = False

    replace_tensor(checkpoint, "unused", "F16", np.zeros(8, np.float16))
    from boardfit.edge.files.safetensors import read_header

    header = read_header(checkpoint / "model.safetensors")
    assert "lm_head.weight" in header.tensors
    rng = np.random.default_rng(0)
    write_safetensors(
        checkpoint / "model.safetensors",
        {
            name: ("BF16", random_values(rng, entry.shape, "BF16"))
            for name, entry in header.tensors.items()
            if name not in ("unused", "lm_head.weight")
        },
    )
    refused(checkpoint, InputError, "lm_head.weight", "missing")
    edit_json(checkpoint / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert open_model(checkpoint).shape.tied_embeddings


def test_nan_is_left_for_the_quantizer_with_its_origin(checkpoint: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    values = np.zeros((64, 608), np.float16)
    values[3, 4] = np.nan
    replace_tensor(checkpoint, name, "F16", values)
    tensor = next(t for t in open_model(checkpoint).tensors if t.name == "blk.1.ffn_down.weight")
    assert tensor.origin == name
    assert np.isnan(to_f32(tensor.read(3, 4), tensor.source_type)).sum() == 1


def test_unknown_model_type(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda config: config.update(model_type="qwen9"))
    error = refused(checkpoint, UnsupportedModelError, "qwen9", "qwen3", "smollm3", "Did you mean")
    assert "GGUF" in str(error.next_step)


def test_no_model_type(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda config: config.pop("model_type"))
    refused(checkpoint, InputError, "model_type")


@pytest.mark.parametrize("value", [None, "64", 0, -1, True, 6.5, 2**40, [64]])
def test_impossible_sizes(checkpoint: Path, value: object) -> None:
    edit_json(checkpoint / "config.json", lambda config: config.update(hidden_size=value))
    refused(checkpoint, InputError, "hidden_size")


def test_quantized_checkpoint(checkpoint: Path) -> None:
    """The tensors decide, and the configuration names the method."""
    quantization = {"quant_method": "gptq", "bits": 4}
    edit_json(
        checkpoint / "config.json",
        lambda config: config.update(quantization_config=quantization),
    )
    assert any("quantization_config (gptq)" in note for note in open_model(checkpoint).notes)
    name = "model.layers.1.mlp.down_proj.qweight"
    replace_tensor(checkpoint, name, "I32", np.zeros((8, 8), np.int32))
    refused(checkpoint, InputError, "down_proj.qzeros", "missing")


def test_tokenizer_absent(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    refused(checkpoint, InputError, "tokenizer")


def test_tokenizer_larger_than_the_embedding(checkpoint: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        vocab.update({f"zz{i}": len(vocab) + 100 + i for i in range(5)})

    edit_json(checkpoint / "tokenizer.json", change)
    refused(checkpoint, InputError, "rows")


def test_pickled_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    error = refused(tmp_path, UnsafeInputError, "pickle", "pytorch_model.bin")
    assert "save_pretrained" in str(error.next_step)


def test_adapter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    refused(tmp_path, UnsupportedModelError, "adapter")


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path, InputError, "no model.safetensors")


@pytest.mark.parametrize("text", ["", "null", "{", "[" * 100_000, "<html>", '{"a": "\ud83d"}'])
def test_broken_config(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text, errors="surrogatepass")
    refused(checkpoint, InputError, "config.json")


def test_broken_model_card_is_a_note(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("---\nlicense: [mit\n---\n")
    spec = open_model(checkpoint)
    assert spec.source.license is None
    assert any("README.md" in note for note in spec.notes)


def test_model_card_values_of_other_kinds(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text(
        "---\nlicense: [mit, apache-2.0]\nmodel_version: 1.5\nlanguage: [en, no]\n---\n"
    )
    spec = open_model(checkpoint)
    assert spec.get("general.license") == "mit,apache-2.0"
    assert spec.get("general.version") == "1.5"
    assert spec.get("general.languages") == ["en", "no"]


def test_sampling_defaults(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    spec = open_model(checkpoint)
    assert (spec.get("general.sampling.temp"), spec.get("general.sampling.top_k")) == (0.6, 20)
    (checkpoint / "generation_config.json").write_text('{"top_k": "many"}')
    refused(checkpoint, InputError, "top_k")
