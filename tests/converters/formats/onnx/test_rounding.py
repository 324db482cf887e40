"""Blocks of 4 and 8 bits: exact layout, least error, no surprise at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.formats.onnx.recipe import (
    BLOCKS,
    list_recipes,
    load_recipe,
    make_recipe,
)
from boardfit.converters.formats.onnx.worker.rounding import Blocks, quantize
from boardfit.edge.errors import UsageError


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


def dequantize(blocks: Blocks) -> np.ndarray:
    """float32 [N, K] as the runtime computes with it."""
    n_rows, n_blocks = blocks.scales.shape
    codes = _unpack(blocks.codes, blocks.bits)
    middle = np.float32(1 << (blocks.bits - 1))
    zeros: np.ndarray | np.float32 = middle
    if blocks.zeros is not None:
        zeros = _unpack(blocks.zeros, blocks.bits)[:, :n_blocks].astype(np.float32)[..., None]
    values = (codes.astype(np.float32) - zeros) * blocks.scales.astype(np.float32)[..., None]
    return values.reshape(n_rows, -1)[:, : blocks.n_columns]


def _unpack(data: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return data
    return np.stack((data & 15, data >> 4), axis=-1).reshape(*data.shape[:-1], -1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_never_does_worse_than_the_extremes(symmetric: bool) -> None:
    w = weights(64, 256)
    plain = quantize(w, bits=4, block=32, symmetric=symmetric, search=False)
    better = quantize(w, bits=4, block=32, symmetric=symmetric, search=True)
    blocks = (64, 8, 32)
    error = [((dequantize(b) - w).reshape(blocks) ** 2).sum(-1) for b in (plain, better)]
    assert (error[1] <= error[0] * (1 + 1e-5)).all()
    assert error[1].sum() < 0.97 * error[0].sum()
    assert plain.codes.nbytes == better.codes.nbytes


def test_layout_is_low_half_first() -> None:
    w = np.zeros((1, 32), np.float32)
    w[0, :3] = (-0.8, 0.7, 0.1)  # symmetric: scale 0.1, middle 8
    found = quantize(w, bits=4, block=32, symmetric=True, search=False)
    assert found.codes.shape == (1, 1, 16) and found.zeros is None
    assert list(found.codes[0, 0, :2]) == [0 | 15 << 4, 9 | 8 << 4]


@given(
    st.integers(1, 5), st.integers(1, 100), st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64]), st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_every_shape_comes_back(
    rows: int, columns: int, bits: int, block: int, symmetric: bool, search: bool, seed: int
) -> None:
    w = weights(rows, columns, seed)
    found = quantize(w, bits=bits, block=block, symmetric=symmetric, search=search)
    back = dequantize(found)
    assert back.shape == w.shape and np.isfinite(back).all()
    step = np.abs(found.scales.astype(np.float32)).max()
    assert np.abs(back - w).max() <= 4 * step + 1e-6


@pytest.mark.parametrize("value", [0.0, 1e-9, 3.0, -3.0, 1e5])
def test_constant_blocks(value: float) -> None:
    w = np.full((2, 32), value, np.float32)
    for symmetric in (True, False):
        back = dequantize(quantize(w, bits=4, block=32, symmetric=symmetric, search=True))
        assert np.allclose(back, w, rtol=2e-3, atol=1e-4)


def test_every_value_of_a_recipe_is_known() -> None:
    assert [r.id for r in list_recipes()] == [
        "onnx_f32", "onnx_int8", "onnx_int4_best", "onnx_int4_b32", "onnx_int4_rtn",
        "onnx_int4_b128",
    ]  # fmt: skip
    assert load_recipe("INT4-B32").default.bpw == 4.625
    with pytest.raises(UsageError, match="onnx_int4_best"):
        load_recipe("onnx_int4_bset")
    for recipe in list_recipes():
        schemes = (recipe.default, recipe.head, recipe.embedding, *(s for _, s in recipe.rules))
        assert all(s.bits in (4, 8, 32) and s.block in BLOCKS for s in schemes)
        assert all({type(s.symmetric), type(s.search)} == {bool} for s in schemes)
    rule = {"match": "*/down_proj/MatMul", "bits": 8}
    made = make_recipe({"id": "x", "about": "", "bits": 4, "block": 64, "rules": [rule]}, "x")
    assert (made.rules[0][1].bits, made.rules[0][1].block, made.head.block) == (8, 64, 64)


def test_rules_speak_of_matrices_by_the_names_of_the_graph() -> None:
    recipe = load_recipe("onnx_int4_b128")
    for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
        assert recipe.find_scheme(f"model.layers.11.self_attn.{name}.weight").bits == 8
    for name in ("self_attn.o_proj", "mlp.down_proj", "mlp.gate_up_proj"):
        assert recipe.find_scheme(f"model.layers.11.{name}.weight").bits == 4


def test_a_block_gives_way_to_one_that_divides_the_row() -> None:
    scheme = load_recipe("onnx_int4_b128").default
    found = {n: scheme.fitting(n).block for n in (896, 576, 96, 80)}
    assert found == {896: 128, 576: 64, 96: 32, 80: 128}, "80: none does, the last is padded"
