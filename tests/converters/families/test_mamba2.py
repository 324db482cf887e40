"""Hybrids with Mamba2 layers beyond the oracle's bytes: states, kinds of layers, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.registry import family_for
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import EdgeError, InputError, UnsupportedModelError
from tests.converters.families.cases_hybrid import (
    CASES,
    MULTIPLIERS,
    Tensors,
    falcon_h1,
    falcon_shapes,
    nemotron,
    nemotron_moe,
    nemotron_shapes,
)
from tests.converters.families.checkpoints import Case, write_case, write_checkpoint
from tests.converters.families.test_hostile_config import Shapes

CASE = {case.name: case for case in CASES}


def shapes_only(name: str, **changes: Any) -> Shapes:
    return Shapes(CASE[name], {**CASE[name].config, **changes})


def family(name: str, **changes: Any) -> tuple[DecoderFamily, Shapes]:
    source = shapes_only(name, **changes)
    return family_for(source.config)(source), source


def tensors_by_name(source: SafetensorsCheckpoint) -> dict[str, TargetTensor]:
    return {tensor.name: tensor for tensor in family_for(source.config)(source).tensors()}


def written(name: str, directory: Path) -> SafetensorsCheckpoint:
    write_case(CASE[name], directory)
    return SafetensorsCheckpoint(directory, CASE[name].config)


def values(tensor: TargetTensor) -> np.ndarray:
    return np.asarray(tensor.read(0, tensor.n_rows)).reshape(tensor.shape)


@pytest.mark.parametrize(
    ("name", "kinds", "n_head_kv", "state"),
    [
        # (kernel - 1) × (inner + 2 × groups × state size) + state size × inner
        ("granite-hybrid", "MM*M", 2, 3 * (320 + 2 * 32) + 32 * 320),
        ("nemotron-h", "M-M-M*-M-", 2, 3 * (192 + 2 * 4 * 32) + 32 * 192),
        ("falcon-h1", "BB", 1, 3 * (192 + 2 * 2 * 32) + 32 * 192),
    ],
)
def test_states_of_layers(name: str, kinds: str, n_head_kv: int, state: int) -> None:
    found, _ = family(name)
    layers = found.shape().layers
    assert [layer.n_head_kv for layer in layers] == [n_head_kv * (k in "*B") for k in kinds]
    assert [layer.state_values for layer in layers] == [state * (k in "MB") for k in kinds]


def test_a_decay_is_the_nearest_float32_and_the_kernel_stays_float32(tmp_path: Path) -> None:
    source = written("falcon-h1-norm", tmp_path)
    made = tensors_by_name(source)
    logs = source.tensor("model.layers.0.mamba.A_log").data.astype(np.float64)
    np.testing.assert_array_equal(
        values(made["blk.0.ssm_a"]), -np.exp(logs).astype(np.float32)[:, None]
    )
    assert made["blk.0.ssm_conv1d.weight"].keep == "F32"
    assert made["blk.0.ssm_norm.weight"].shape == (2, 96)


def test_multipliers_are_in_the_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, falcon_h1(), falcon_shapes(falcon_h1()), dtype="F32")
    source = SafetensorsCheckpoint(tmp_path, falcon_h1())
    made = tensors_by_name(source)
    key = source.tensor("model.layers.0.self_attn.k_proj.weight").data
    np.testing.assert_allclose(values(made["blk.0.attn_k.weight"]), key * 0.39 * 0.7, rtol=1e-6)
    inward = source.tensor("model.layers.0.mamba.in_proj.weight").data
    ratio = values(made["blk.0.ssm_in.weight"]) / inward
    for row, factor in ((0, 0.3535), (192, 0.25), (384, 0.35), (448, 0.5), (519, 0.3)):
        np.testing.assert_allclose(ratio[row], 1.25 * factor, rtol=1e-5)
    rows = made["blk.0.ssm_in.weight"].read(440, 460)
    np.testing.assert_array_equal(rows, values(made["blk.0.ssm_in.weight"])[440:460])


def test_a_tied_head_with_another_multiplier_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    config = falcon_h1(tie_word_embeddings=True)
    write_checkpoint(tmp_path, config, falcon_shapes(config), dtype="F32")
    made = tensors_by_name(SafetensorsCheckpoint(tmp_path, config))
    scale = MULTIPLIERS["lm_head_multiplier"] / MULTIPLIERS["embedding_multiplier"]
    embedding = values(made["token_embd.weight"])
    np.testing.assert_allclose(values(made["output.weight"]), embedding * scale, rtol=1e-5)
    assert "output.weight" not in tensors_by_name(written("falcon-h1-norm", tmp_path / "same"))


def test_transformers_words_for_layers_mean_the_same_as_letters() -> None:
    words = ["mamba", "mlp", "mamba", "mlp", "mamba", "attention", "mlp", "mamba", "mlp"]
    found, _ = family(
        "nemotron-h", hybrid_override_pattern=None, num_hidden_layers=None, layers_block_type=words
    )
    plain, _ = family("nemotron-h")
    assert found.metadata() == plain.metadata()
    # It writes sizes of experts for a dense model too.
    _, source = family("nemotron-h", n_routed_experts=8, num_experts_per_tok=2, n_group=1)
    assert family_for(source.config)(source).metadata() == plain.metadata()


def nemotron_source(shapes: Tensors, config: dict[str, Any]) -> Shapes:
    return Shapes(Case("nemotron", config, shapes), config)


def test_names_as_transformers_saves_them() -> None:
    config = nemotron("M*-")
    names = nemotron_shapes(config)
    saved = {name.replace("backbone.", "model."): shape for name, shape in names.items()}
    assert len(family_for(config)(nemotron_source(saved, config)).tensors()) == len(names)


def test_the_mtp_head_is_left_out_and_named() -> None:
    config = nemotron_moe("ME*E", num_nextn_predict_layers=1)
    plain = family_for(config)(nemotron_source(nemotron_shapes(config), config))
    source = nemotron_source(nemotron_shapes(config, mtp=True), config)
    found = family_for(config)(source)
    names = [tensor.name for tensor in found.tensors()]
    assert names == [tensor.name for tensor in plain.tensors()]
    (made_for,) = found.notes()
    assert sum(found.rename(name) is None for name in source.names()) == 2
    assert made_for.startswith("made for a context of 4096 tokens; the file states 1048576")


REFUSED: list[tuple[str, dict[str, Any], type[EdgeError], str]] = [
    ("granite-hybrid", {"mamba_expand": 4}, UnsupportedModelError, "mamba_expand is 4"),
    ("granite-hybrid", {"mamba_n_groups": 2}, UnsupportedModelError, "mamba_n_groups is 2"),
    ("granite-hybrid", {"mamba_n_heads": 7}, InputError, "mamba_n_heads is 7"),
    ("granite-hybrid", {"mamba_d_head": 64}, InputError, "mamba_d_head is 64"),
    ("granite-hybrid", {"mamba_conv_bias": False}, UnsupportedModelError, "mamba_conv_bias"),
    ("granite-hybrid", {"mamba_proj_bias": True}, UnsupportedModelError, "mamba_proj_bias"),
    ("granite-hybrid", {"position_embedding_type": "rope"}, UnsupportedModelError, "nowhere"),
    ("granite-hybrid", {"time_step_limit": [0.0, 0.1]}, UnsupportedModelError, "time_step_limit"),
    ("granite-hybrid", {"layer_types": ["mamba"] * 4}, InputError, "layer_types calls layer 2"),
    (
        "granite-hybrid",
        {"layer_types": ["mamba", "attention", "attention", "mamba"]},
        InputError,
        "layer_types calls layer 1 'attention', but the checkpoint has its mamba.A_log",
    ),
    ("granite-hybrid", {"layer_types": ["mamba", "rwkv"] * 2}, UnsupportedModelError, "'rwkv'"),
    ("granite-hybrid", {"layer_types": ["mamba"] * 3}, InputError, "a list of 4 entries"),
    ("granite-hybrid", {"layer_types": None}, InputError, "layer_types is missing"),
    ("nemotron-h", {"hybrid_override_pattern": "M-M"}, InputError, "expected 9 letters"),
    ("nemotron-h", {"hybrid_override_pattern": "M-M-MX-M-"}, UnsupportedModelError, "'X'"),
    ("nemotron-h", {"hybrid_override_pattern": "*-M-M*-M-"}, InputError, "calls layer 0"),
    ("nemotron-h", {"hybrid_override_pattern": "M-M-M*-ME"}, UnsupportedModelError, "both mlp"),
    ("nemotron-h", {"mlp_hidden_act": "silu"}, UnsupportedModelError, "mlp_hidden_act"),
    ("nemotron-h", {"use_bias": True}, UnsupportedModelError, "use_bias"),
    ("nemotron-h", {"n_groups": 5}, InputError, "mamba_n_groups is 5"),
    ("nemotron-h-moe", {"n_group": 4}, InputError, r"n_group \(4\) must divide"),
    ("nemotron-h-moe", {"num_experts_per_tok": 9}, InputError, r"num_experts_per_tok \(9\)"),
    ("falcon-h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": True}, UnsupportedModelError,
     "mamba_norm_before_gate is True"),
    ("falcon-h1", {"attention_bias": True}, UnsupportedModelError, "attention_bias"),
    ("falcon-h1", {"mamba_d_head": 16}, InputError, "mamba_d_head is 16"),
    ("falcon-h1", {"ssm_multipliers": [1.0]}, InputError, "ssm_multipliers"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "error", "message"), REFUSED)
def test_what_the_engine_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], error: type[EdgeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        found, _ = family(name, **changes)
        found.tensors()


def test_a_hybrid_without_experts_uses_none() -> None:
    # The engine aborts when there are none and some are used.
    found, _ = family("granite-hybrid", num_experts_per_tok=10)
    entries = {entry.key: entry.value for entry in found.metadata()}
    assert entries["granitehybrid.expert_used_count"] == 0
