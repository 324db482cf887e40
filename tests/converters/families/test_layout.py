"""The building pieces of families: rules, readers, the walk over a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families import layout, rope
from boardfit.converters.families.assembly import assemble
from boardfit.converters.families.layout import ExpertStack, SourceTensor, TensorRule, copy
from boardfit.converters.families.registry import FAMILIES, family_for
from boardfit.converters.families.settings import Config
from boardfit.edge.errors import InputError, UnsupportedModelError


class Memory:
    """A `Checkpoint` in memory, float32."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.config: Mapping[str, Any] = {}
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def tensor(self, name: str) -> SourceTensor:
        data = self._tensors[name]
        return SourceTensor(name, "F32", data.shape, data)


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def build(rule: TensorRule, data: np.ndarray, name: str = "") -> list[layout.TargetTensor]:
    return rule.build(name or f"blk.0.{rule.target}", SourceTensor("s", "F32", data.shape, data))


def read_all(tensor: layout.TargetTensor) -> np.ndarray:
    return tensor.read(0, tensor.n_rows).reshape(tensor.shape)


def test_interleaved_pairs_halves_of_each_head() -> None:
    # Two heads of four rows: rows 0 1 | 2 3 are the halves of head 0.
    (tensor,) = build(layout.interleave_rows("attn_q.weight", 8, 3, n_head=2), numbers(8, 3))
    assert tensor.read(0, 8)[:, 0].tolist() == [0, 6, 3, 9, 12, 18, 15, 21]
    assert np.array_equal(tensor.read(3, 6), tensor.read(0, 8)[3:6])
    (bias,) = build(layout.interleave_rows("attn_q.bias", 8, n_head=2), numbers(8))
    assert bias.read(0, 1).tolist() == [[0, 2, 1, 3, 4, 6, 5, 7]]


@pytest.mark.parametrize(("rows", "heads"), [(9, 3), (8, 3), (8, 0)])
def test_interleaved_needs_pairs(rows: int, heads: int) -> None:
    with pytest.raises(InputError, match="pairs"):
        layout.interleaved_order(rows, heads)


def test_split_rows() -> None:
    data = numbers(2, 6, 4)
    rule = layout.split([("gate.weight", 2), ("up.weight", 4)], 2, 6, 4)
    gate, up = build(rule, data)
    assert (gate.name, up.name) == ("blk.0.gate.weight", "blk.0.up.weight")
    assert np.array_equal(read_all(gate), data[:, :2]) and np.array_equal(read_all(up), data[:, 2:])
    assert np.array_equal(up.read(2, 7), data[:, 2:].reshape(8, 4)[2:7])


def test_reshaped() -> None:
    (flat,) = build(layout.reshape("conv.weight", 4, 1, 3, to=(4, 3)), numbers(4, 1, 3))
    assert flat.shape == (4, 3) and np.array_equal(read_all(flat), numbers(4, 3))


def test_to_f32_is_exact() -> None:
    values = np.array([0x3F80, 0xC000, 0x0001, 0x7F80], np.uint16)
    assert layout.to_f32(values, "BF16").view(np.uint32).tolist() == [
        0x3F800000, 0xC0000000, 0x00010000, 0x7F800000
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "n_dims", "keep"),
    [
        ("blk.0.attn_q.weight", 2, None),
        ("blk.0.attn_q.bias", 1, "F32"),
        ("blk.0.attn_q_norm.weight", 2, "F32"),
        ("rope_freqs.weight", 1, "F32"),
        ("blk.3.ffn_gate_inp.weight", 2, "F32"),
        ("blk.3.ffn_gate_exps.weight", 3, None),
        ("blk.3.shortconv.conv.weight", 2, "F32"),
        ("blk.3.shortconv.in_proj.weight", 2, None),
    ],
)
def test_keep_type(name: str, n_dims: int, keep: str | None) -> None:
    assert layout.keep_type(name, n_dims) == keep


def walk(tensors: Mapping[str, np.ndarray], **options: Any) -> list[layout.TargetTensor]:
    arguments: dict[str, Any] = {
        "family": "test",
        "n_layer": 2,
        "outer": {"model.norm.weight": copy("output_norm.weight", 4)},
        "layer": lambda index: {"up.weight": copy("ffn_up.weight", 3, 4)},
        **options,
    }
    return assemble(Memory(tensors), **arguments)


def good() -> dict[str, np.ndarray]:
    return {
        "model.layers.1.up.weight": numbers(3, 4),
        "model.layers.0.up.weight": numbers(3, 4),
        "model.layers.0.rotary_emb.inv_freq": numbers(2),
        "model.norm.weight": numbers(4),
    }


def test_order_is_the_checkpoints_and_buffers_are_dropped() -> None:
    names = [tensor.name for tensor in walk(good())]
    assert names == ["blk.1.ffn_up.weight", "blk.0.ffn_up.weight", "output_norm.weight"]


def test_missing_unknown_and_misshapen_are_named() -> None:
    tensors = good()
    del tensors["model.layers.0.up.weight"]
    with pytest.raises(InputError, match=r"model\.layers\.0\.up\.weight is missing"):
        walk(tensors)
    with pytest.raises(InputError, match=r"model\.layers\.2\.up\.weight is unknown"):
        walk({**good(), "model.layers.2.up.weight": numbers(3, 4)})
    with pytest.raises(InputError, match=r"a and 1 more is unknown"):
        walk({**good(), "a": numbers(1), "b": numbers(1)})
    with pytest.raises(InputError, match=r"\[4, 3\], but config.json implies \[3, 4\]"):
        walk({**good(), "model.layers.0.up.weight": numbers(4, 3)})


def expert_tensors(n_expert: int = 3) -> dict[str, np.ndarray]:
    made = {}
    for layer in range(2):
        for e in range(n_expert):
            made[f"model.layers.{layer}.experts.{e}.down"] = numbers(2, 4) + 100 * e + 1000 * layer
            made[f"model.layers.{layer}.experts.{e}.gate"] = -numbers(4, 2) - e
    return made


EXPERTS = (
    ExpertStack("experts.{}.gate", "ffn_gate_exps.weight", (4, 2)),
    ExpertStack("experts.{}.down", "ffn_down_exps.weight", (2, 4)),
)


def test_experts_are_stacked_in_the_order_of_the_stacks() -> None:
    stacked = walk({**good(), **expert_tensors()}, experts=lambda index: EXPERTS, n_expert=3)[3:]
    assert [tensor.name for tensor in stacked] == [
        f"blk.{i}.ffn_{kind}_exps.weight" for i in (0, 1) for kind in ("gate", "down")
    ]
    down = stacked[3]
    assert down.shape == (3, 2, 4)
    whole = np.concatenate([numbers(2, 4) + 100 * e + 1000 for e in range(3)])
    for start in range(6):
        for stop in range(start + 1, 7):
            assert np.array_equal(down.read(start, stop), whole[start:stop])


def test_an_absent_expert_is_named() -> None:
    tensors = {**good(), **expert_tensors()}
    del tensors["model.layers.1.experts.2.gate"]
    with pytest.raises(InputError, match=r"model\.layers\.1\.experts\.2\.gate is missing"):
        walk(tensors, experts=lambda index: EXPERTS, n_expert=3)


def test_language_model_only() -> None:
    rename = layout.language_model_only
    assert rename("language_model.model.norm.weight") == "model.norm.weight"
    assert rename("model.language_model.norm.weight") == "model.norm.weight"
    assert rename("vision_tower.blocks.0.weight") is None
    assert rename("model.multi_modal_projector.linear.weight") is None
    assert rename("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"


def test_rope_spellings_of_transformers_4_and_5_agree() -> None:
    old = {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}}
    both = [rope.rope_metadata(rope.rope_parameters(Config(config))) for config in (old, new)]
    assert both[0] == both[1]
    assert list(both[0].values()) == ["linear", 2.0, 1e6]


def test_llama3_factors_follow_the_definition() -> None:
    """Against the definition in float64: wavelength below 8192/4 stays, above 8192 is divided by
    32, in between they blend.
    """
    params = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    factors = rope.llama3_factors(Config(params), 64)
    assert factors is not None and factors.shape == (32,) and factors.dtype == np.float32
    wavelength = 2 * np.pi * 500000.0 ** (np.arange(0, 64, 2) / 64)
    smooth = (8192 / wavelength - 1) / 3
    expected = np.where(
        wavelength < 2048, 1, np.where(wavelength > 8192, 32, 1 / ((1 - smooth) / 32 + smooth))
    )
    np.testing.assert_allclose(factors, expected, rtol=1e-5)
    assert rope.llama3_factors(Config(rope_type="default"), 64) is None


@pytest.mark.parametrize("value", [None, "2", True, 1.5, 0, -3, 2**31])
def test_an_impossible_size_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="hidden_size"):
        Config(hidden_size=value).whole("hidden_size")


@pytest.mark.parametrize("value", ["1e-5", True, float("nan"), float("inf"), [1.0]])
def test_an_impossible_number_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="eps"):
        Config(eps=value).number("eps")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_registered_family_can_be_made(name: str) -> None:
    assert family_for({"model_type": name})


def test_unknown_family() -> None:
    with pytest.raises(UnsupportedModelError, match="'gpt2'") as caught:
        family_for({"model_type": "gpt2"})
    assert "convert_hf_to_gguf.py" in str(caught.value.next_step)
    with pytest.raises(InputError, match="model_type"):
        family_for({})
    for name in ("lfm3", "lfm3_moe"):
        with pytest.raises(UnsupportedModelError, match="needs engine b11960 or later"):
            family_for({"model_type": name})


def llama_config(**changes: Any) -> dict[str, Any]:
    from tests.converters.families.cases_llama import llama

    return {**llama(), **changes}


class Describes:
    """A `Checkpoint` of shapes without values."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from tests.converters.families.checkpoints import decoder_shapes

        biased = "qkv" if config["model_type"] == "qwen2" else ""
        self.config, self._shapes = config, decoder_shapes(config, attention_bias=biased)

    def names(self) -> Iterable[str]:
        return self._shapes

    def tensor(self, name: str) -> SourceTensor:
        shape = self._shapes[name]
        return SourceTensor(name, "F32", shape, np.broadcast_to(np.float32(0), shape))


def test_rope_types_that_the_engine_lacks_are_refused() -> None:
    scaling = {"rope_type": "spiral", "factor": 2.0}
    config = llama_config(rope_scaling=scaling)
    with pytest.raises(UnsupportedModelError, match="spiral"):
        family_for(config)(Describes(config)).metadata()
    config = llama_config(model_type="qwen2", rope_scaling={"rope_type": "llama3", "factor": 8.0})
    with pytest.raises(UnsupportedModelError, match="llama3"):
        family_for(config)(Describes(config)).tensors()
    config = llama_config(rope_scaling={"rope_type": "yarn"})
    with pytest.raises(InputError, match="factor"):
        family_for(config)(Describes(config)).metadata()


def test_windows_that_the_engine_does_not_use_are_noted() -> None:
    config = llama_config(model_type="mistral", sliding_window=1024)
    (note,) = family_for(config)(Describes(config)).notes()
    assert "1024" in note
    config = llama_config(model_type="mistral", sliding_window=None)
    assert family_for(config)(Describes(config)).notes() == []
    config = llama_config(model_type="qwen2", sliding_window=1024, use_sliding_window=False)
    assert family_for(config)(Describes(config)).notes() == []
    config = llama_config(model_type="qwen2", sliding_window=1024, use_sliding_window=True)
    assert len(family_for(config)(Describes(config)).notes()) == 1


def test_smollm3_with_another_pattern_is_refused() -> None:
    for change in (
        {"no_rope_layers": [1, 0]},
        {"no_rope_layer_interval": 3},
        {"use_sliding_window": True},
    ):
        config = llama_config(model_type="smollm3", **change)
        with pytest.raises(UnsupportedModelError):
            family_for(config)(Describes(config)).metadata()
