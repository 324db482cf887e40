"""Adapters merged while streaming: PEFT's and MLX's numbers, and adapters that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.lazy import as_floats
from boardfit.converters.source.checkpoint import AdapterRequest, SafetensorsCheckpoint
from boardfit.converters.source.resolve import open_model
from boardfit.converters.spec import ModelSpec
from boardfit.edge.errors import EdgeError, InputError, UnsafeInputError, UnsupportedModelError
from tests.converters.families.cases_gemma import CASES as GEMMA
from tests.converters.families.checkpoints import write_case
from tests.converters.source.adapters import (
    DOWN,
    LAYER,
    QUERY,
    merged,
    pair,
    random,
    write_mlx,
    write_peft,
)  # fmt: skip
from tests.converters.source.test_hf import edit_json
from tests.field.model_folders import make_gptq, write_model

# Sizes of the tiny Llama in tests/field: 64 wide, feed-forward 128, tied embedding of 2048 rows.
WIDE, FF, N_VOCAB = 64, 128, 2048
UP, EMBEDDING = f"{LAYER}mlp.up_proj", "model.embed_tokens"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_model(tmp_path / "base-1b")
    return tmp_path / "base-1b"


def opened(base: Path, lora: Path, scale: float = 1.0) -> ModelSpec:
    return open_model(base, lora=AdapterRequest(lora, scale))


def floats(base: Path, module: str) -> np.ndarray:
    """A weight of the base."""
    config = json.loads((base / "config.json").read_text())
    source = SafetensorsCheckpoint(base, config).tensor(f"{module}.weight")
    return np.asarray(as_floats(source).data)


def rows(spec: ModelSpec, name: str) -> np.ndarray:
    tensor = next(tensor for tensor in spec.tensors if tensor.name == name)
    assert tensor.source_type == "F32"
    return np.concatenate([tensor.read(i, i + 32) for i in range(0, tensor.n_rows, 32)])


def same(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "scale", "strength"),
    [
        ({}, 2, 1),
        ({}, 2, 0.25),
        ({"lora_alpha": 32}, 8, 1),
        ({"use_rslora": True}, 8 / math.sqrt(4), 1),
        ({"alpha_pattern": {"up_proj": 2}}, 0.5, 1),
        ({"alpha_pattern": {"model.layers.0.mlp.up_proj": 2, "q_proj": 99}}, 0.5, 1),
        ({"alpha_pattern": {"model.layers.1.mlp.up_proj": 99, "p_proj": 99}}, 2, 1),
        ({"r": 16, "rank_pattern": {"mlp.up_proj": 4}}, 2, 1),
        ({"r": 16, "rank_pattern": {"^model.layers.0.mlp.up_proj$": 4}}, 2, 1),
    ],
)
def test_strength_of_peft(
    settings: dict[str, Any], scale: float, strength: float, base: Path, tmp_path: Path
) -> None:
    parts = pair(UP, FF, WIDE)
    spec = opened(base, write_peft(tmp_path / "lora", parts, **settings), strength)
    expected = merged(floats(base, UP), *reversed(list(parts.values())), scale * strength)
    same(rows(spec, "blk.0.ffn_up.weight"), expected)
    plain = next(
        tensor for tensor in open_model(base).tensors if tensor.name == "blk.1.ffn_up.weight"
    )
    other = next(tensor for tensor in spec.tensors if tensor.name == "blk.1.ffn_up.weight")
    assert other.source_type == "BF16", "what the adapter does not touch stays as it is"
    np.testing.assert_array_equal(other.read(0, FF), plain.read(0, FF))


def test_dora_gives_each_row_its_length(base: Path, tmp_path: Path) -> None:
    parts, lengths = pair(UP, FF, WIDE), np.abs(random(FF, seed=3)) + 0.5
    stored = {**parts, f"{UP}.lora_magnitude_vector": lengths}
    spec = opened(base, write_peft(tmp_path / "lora", stored, use_dora=True))
    expected = merged(floats(base, UP), *reversed(list(parts.values())), 2, lengths)
    same(rows(spec, "blk.0.ffn_up.weight"), expected)
    assert "DoRA of rank 4" in str(spec.source.adapter)


def test_adapters_name_in_the_tensors_names(base: Path, tmp_path: Path) -> None:
    """As a state dict has it: `lora_A.default.weight`, `modules_to_save.default`."""
    parts = {n.replace(".weight", ".default.weight"): v for n, v in pair(UP, FF, WIDE).items()}
    norm = np.full(WIDE, 1.5, np.float32)
    parts["model.norm.modules_to_save.default.weight"] = norm
    parts["model.norm.original_module.weight"] = np.zeros(WIDE, np.float32)
    spec = opened(base, write_peft(tmp_path / "lora", parts))
    same(rows(spec, "blk.0.ffn_up.weight"),
         merged(floats(base, UP), *reversed(list(pair(UP, FF, WIDE).values())), 2))  # fmt: skip
    np.testing.assert_array_equal(rows(spec, "output_norm.weight").reshape(-1), norm)


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model.", ""])
def test_other_names_of_the_same_module(prefix: str, base: Path, tmp_path: Path) -> None:
    """transformers moved the language model of wrappers, and a bare model lacks `model.`."""
    parts = {prefix + n.removeprefix("model."): v for n, v in pair(UP, FF, WIDE).items()}
    spec = opened(base, write_peft(tmp_path / "lora", parts))
    assert "1 weights changed" in str(spec.source.adapter)


def test_embedding_of_a_tied_model_is_changed_alone(base: Path, tmp_path: Path) -> None:
    """PEFT computes the head with the base's matrix then, so that the two are stored apart."""
    a, b = random(4, N_VOCAB, seed=1), random(WIDE, 4, seed=2)
    parts = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    spec = opened(base, write_peft(tmp_path / "lora", parts))
    old = floats(base, EMBEDDING)
    same(rows(spec, "token_embd.weight"), old + 2 * (a.T.astype(np.float64) @ b.T))
    head = next(tensor for tensor in spec.tensors if tensor.name == "output.weight")
    bits = np.asarray(head.read(0, N_VOCAB)).astype(np.uint32) << 16
    np.testing.assert_array_equal(bits.view(np.float32), old)
    assert any("stored apart" in note for note in spec.notes)
    assert not spec.shape.tied_embeddings
    tied = opened(base, write_peft(tmp_path / "tied", parts, ensure_weight_tying=True))
    assert tied.shape.tied_embeddings


def test_head_of_a_tied_model(base: Path, tmp_path: Path) -> None:
    parts = pair("lm_head", N_VOCAB, WIDE)
    spec = opened(base, write_peft(tmp_path / "lora", parts))
    left, right = parts["lm_head.lora_B.weight"], parts["lm_head.lora_A.weight"]
    old = floats(base, EMBEDDING)
    same(rows(spec, "output.weight"), old + 2 * (left.astype(np.float64) @ right))


def test_embedding_and_head_saved_whole(base: Path, tmp_path: Path) -> None:
    new = random(N_VOCAB, WIDE)
    parts = {f"{EMBEDDING}.weight": new, "lm_head.weight": new}
    spec = opened(base, write_peft(tmp_path / "equal", parts))
    np.testing.assert_array_equal(rows(spec, "token_embd.weight"), new)
    assert spec.shape.tied_embeddings, "equal matrices are stored once"
    parts["lm_head.weight"] = -new
    spec = opened(base, write_peft(tmp_path / "lora", parts))
    np.testing.assert_array_equal(rows(spec, "output.weight"), -new)


def test_saved_base_layer_with_a_change_on_it(base: Path, tmp_path: Path) -> None:
    """PEFT saves an embedding beside its adapter (`save_embedding_layers`)."""
    new, a, b = random(N_VOCAB, WIDE), random(4, N_VOCAB, seed=1), random(WIDE, 4, seed=2)
    parts = {f"{EMBEDDING}.base_layer.weight": new, f"{EMBEDDING}.lora_embedding_A": a,
             f"{EMBEDDING}.lora_embedding_B": b}  # fmt: skip
    spec = opened(base, write_peft(tmp_path / "lora", parts))
    same(rows(spec, "token_embd.weight"), new + 2 * (a.T.astype(np.float64) @ b.T))


def test_fan_in_fan_out_turns_the_product(base: Path, tmp_path: Path) -> None:
    a, b = random(4, FF, seed=1), random(WIDE, 4, seed=2)
    parts = {f"{UP}.lora_A.weight": a, f"{UP}.lora_B.weight": b}
    spec = opened(base, write_peft(tmp_path / "lora", parts, fan_in_fan_out=True))
    same(rows(spec, "blk.0.ffn_up.weight"), merged(floats(base, UP), a.T, b.T, 2))


def test_biases(tmp_path: Path) -> None:
    def add(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
        for part, size in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            for layer in (0, 1):
                name = f"model.layers.{layer}.self_attn.{part}_proj.bias"
                tensors[name] = ("F32", random(size))

    write_model(tmp_path / "base", add=add, attention_bias=True)
    value = f"{LAYER}self_attn.o_proj"
    parts = pair(value, WIDE, WIDE)
    parts[f"{value}.lora_B.bias"] = random(WIDE, seed=5)
    parts["model.layers.1.self_attn.o_proj.bias"] = random(WIDE, seed=6)
    spec = opened(tmp_path / "base", write_peft(tmp_path / "lora", parts))
    same(rows(spec, "blk.0.attn_output.bias")[0], random(WIDE) + 2 * random(WIDE, seed=5))
    same(rows(spec, "blk.1.attn_output.bias")[0], random(WIDE, seed=6))


@pytest.mark.parametrize("is_dora", [False, True])
def test_mlx(is_dora: bool, base: Path, tmp_path: Path) -> None:
    a, b = random(WIDE, 4, seed=1), random(4, FF, seed=2)
    parts, lengths = {f"{UP}.lora_a": a, f"{UP}.lora_b": b}, np.abs(random(FF, seed=3)) + 0.5
    if is_dora:
        parts[f"{UP}.m"] = lengths
    kind = "dora" if is_dora else "lora"
    spec = opened(base, write_mlx(tmp_path / "lora", parts, fine_tune_type=kind))
    expected = merged(floats(base, UP), b.T, a.T, 20, lengths if is_dora else None)
    same(rows(spec, "blk.0.ffn_up.weight"), expected)


def test_mlx_embedding_older_scale_and_full_tuning(base: Path, tmp_path: Path) -> None:
    a, b = random(N_VOCAB, 4, seed=1), random(4, WIDE, seed=2)
    parts = {f"{EMBEDDING}.lora_a": a, f"{EMBEDDING}.lora_b": b}
    older = {"rank": 4, "alpha": 16, "scale": 10.0}
    spec = opened(base, write_mlx(tmp_path / "lora", parts, lora_parameters=older))
    same(rows(spec, "token_embd.weight"), floats(base, EMBEDDING) + 40 * (a.astype(float) @ b))
    whole = {f"{UP}.weight": random(FF, WIDE)}
    spec = opened(base, write_mlx(tmp_path / "full", whole, fine_tune_type="full"))
    np.testing.assert_array_equal(rows(spec, "blk.0.ffn_up.weight"), whole[f"{UP}.weight"])


def test_a_quantized_base_is_merged_in_floats(tmp_path: Path) -> None:
    write_model(tmp_path / "base", add=make_gptq)
    parts = pair(UP, FF, WIDE)
    spec = opened(tmp_path / "base", write_peft(tmp_path / "lora", parts))
    expected = merged(floats(tmp_path / "base", UP), *reversed(list(parts.values())), 2)
    same(rows(spec, "blk.0.ffn_up.weight"), expected)
    assert spec.source.quantized and spec.source.adapter


def test_permuted_rows_are_merged_before_they_are_permuted(base: Path, tmp_path: Path) -> None:
    parts = pair(QUERY, WIDE, WIDE)
    spec = opened(base, write_peft(tmp_path / "lora", parts))
    whole = merged(floats(base, QUERY), *reversed(list(parts.values())), 2)
    heads = whole.reshape(4, 2, 8, WIDE).swapaxes(1, 2).reshape(WIDE, WIDE)
    same(rows(spec, "blk.0.attn_q.weight"), heads)


def test_identity_and_notes(base: Path, tmp_path: Path) -> None:
    lora = write_peft(tmp_path / "my-lora", pair(UP, FF, WIDE))
    spec = opened(base, lora)
    assert spec.source.adapter == (
        "LoRA of rank 4 in my-lora, 1 weights changed; its base model is someone/base-1b"
    )
    assert any("an adapter is merged" in note for note in spec.notes)
    assert str(tmp_path) not in " ".join(spec.notes)
    assert not any("chat template" in note for note in spec.notes)
    (lora / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert any("chat template" in note for note in opened(base, lora).notes)
    prints = {spec.source.fingerprint, open_model(base).source.fingerprint,
              opened(base, lora, 0.5).source.fingerprint}  # fmt: skip
    assert len(prints) == 3
    assert "lora/adapter_model.safetensors" in spec.source.files


@pytest.mark.parametrize(
    ("stated", "own", "verdict"),
    [
        ("someone/base-1b", "other/model", "same"),  # the folder's name
        ("unsloth/Base-1B-unsloth-bnb-4bit", None, "same"),
        ("/content/drive/base-1b", None, "same"),
        ("someone/other-2b", None, "note"),
        ("someone/other-2b", "someone/third-3b", "refused"),
        ("unsloth/Llama-3.1-8B-bnb-4bit", "meta-llama/Meta-Llama-3.1-8B", "same"),
        ("./runs/other", "someone/third-3b", "note"),
    ],
)
def test_the_bases_name(
    stated: str, own: str | None, verdict: str, base: Path, tmp_path: Path
) -> None:
    if own:
        edit_json(base / "config.json", lambda config: config.update(_name_or_path=own))
    lora = write_peft(tmp_path / "lora", pair(UP, FF, WIDE), base_model_name_or_path=stated)
    if verdict == "refused":
        refused(base, lora, InputError, "another base", stated, str(own))
        return
    notes = opened(base, lora).notes
    assert any("names" in note and stated in note for note in notes) == (verdict == "note")


def refused(base: Path, lora: Path, kind: type[EdgeError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        opened(base, lora)
    message = str(caught.value)
    assert message.isprintable() and caught.value.next_step
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


@pytest.mark.parametrize(
    ("parts", "settings", "words"),
    [
        (pair(UP, FF, 72), {}, ("[4, 72]", "[128, 64]", "someone/base-1b")),
        (pair("model.layers.7.mlp.up_proj", FF, WIDE), {}, ("layers.7", "someone/base-1b")),
        ({"model.norm.weight": random(72)}, {}, ("[72]", "[64]", "someone/base-1b")),
        ({f"{EMBEDDING}.weight": random(2050, 64)}, {}, ("[2050, 64]", "[2048, 64]")),
        ({f"{UP}.lora_A.weight": random(4, 64)}, {}, ("lora_A", "both matrices")),
        (pair(UP, FF, WIDE), {"use_dora": True}, ("no magnitude", "up_proj")),
        (pair(UP, FF, WIDE), {"r": 8}, ("r is 8", "rank 4")),
        (pair(UP, FF, WIDE), {"lora_alpha": "x"}, ("lora_alpha", "'x'")),
        (pair(UP, FF, WIDE), {"lora_alpha": 0}, ("lora_alpha", "0")),
        (pair(UP, FF, WIDE), {"alpha_pattern": {"(a+)+$": 1}}, ("alpha_pattern", "(a+)+")),
        (pair(UP, FF, WIDE), {"peft_type": "IA3"}, ("'IA3'", "LORA")),
        (pair(UP, FF, WIDE), {"init_lora_weights": "pissa_niter_4"}, ("pissa",)),
        (pair(UP, FF, WIDE), {"layer_replication": [[0, 2]]}, ("layer_replication",)),
        ({f"{EMBEDDING}.token_adapter.trainable_tokens_delta": random(3, 64)}, {},
         ("trainable_tokens",)),
        ({f"{UP}.lora_A.bias": random(4)}, {}, ("lora_A.bias",)),
        ({**pair(UP, FF, WIDE), f"{UP}.lora_magnitude_vector": random(7)}, {}, ("magnitude",)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    parts: dict[str, np.ndarray], settings: dict[str, Any], words: tuple[str, ...], base: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    kind = (InputError, UnsupportedModelError)
    refused(base, write_peft(tmp_path / "lora", parts, **settings), kind, *words)  # type: ignore[arg-type]


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("edit", "kind", "word"),
    [
        (drop("adapter_config.json"), InputError, "adapter_config.json"),
        (drop("adapter_model.safetensors"), InputError, "missing"),
        (pickled, UnsafeInputError, "pickle"),
    ],
)
def test_a_folder_without_an_adapter(
    edit: Callable[[Path], object], kind: type[EdgeError], word: str, base: Path, tmp_path: Path
) -> None:
    lora = write_peft(tmp_path / "lora", pair(UP, FF, WIDE))
    edit(lora)
    refused(base, lora, kind, word)


def test_a_family_with_one_matrix_for_both(tmp_path: Path) -> None:
    """Gemma's head is its embedding in the engine, so a head of its own cannot be kept."""
    from boardfit.converters.families.registry import family_for
    from boardfit.converters.source.adapter import Adapter, MergedCheckpoint

    case = next(case for case in GEMMA if case.config["model_type"] == "gemma2")
    write_case(case, tmp_path / "base")
    height, width = case.shapes["model.embed_tokens.weight"]
    lora = write_peft(tmp_path / "lora", pair("lm_head", height, width))
    adapter = Adapter(AdapterRequest(lora))
    found = MergedCheckpoint(tmp_path / "base", case.config, adapter, [])
    names = [tensor.name for tensor in family_for(case.config)(found).tensors()]
    with pytest.raises(UnsupportedModelError, match="one matrix for both"):
        found.check_head("output.weight" in names)


def test_a_gguf_file_takes_no_adapter(base: Path, tmp_path: Path) -> None:
    from tests.field.model_folders import write_gguf

    lora = write_peft(tmp_path / "lora", pair(DOWN, WIDE, FF))
    write_gguf(tmp_path / "m.gguf")
    refused(tmp_path / "m.gguf", lora, InputError, "GGUF")
