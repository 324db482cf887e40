"""Recipes as data: what they mean, and that every value is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.formats.litert.recipe import (
    GROUPS,
    LAYERS,
    WEIGHT_TYPES,
    LitertRecipe,
    LitertRule,
    find_group,
    fitting,
    list_recipes,
    load_recipe,
)
from boardfit.edge.errors import UsageError

DOWN = "model.layers.0.mlp.down_proj.weight"
MINIMAL = LitertRecipe("x", "x", ("litertlm",), linear="int4", embedding="int8", head="int8")


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda r: r.id)
def test_travels_as_a_dictionary(recipe: LitertRecipe) -> None:
    assert LitertRecipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.flavours


def test_both_flavours_and_all_blocks_have_recipes() -> None:
    recipes = list_recipes()
    assert {f for r in recipes for f in r.flavours} == {"litertlm", "tflite"}
    assert {"int4", "int4-b32", "int4-b64", "int4-b128", "int8"} <= {r.linear for r in recipes}


def test_a_rule_holds_in_its_layers_only() -> None:
    recipe = replace(MINIMAL, rules=(LitertRule("ffn_down", "int8", "first-1"),))

    def of(source: str) -> str:
        return recipe.choose_type(source, "linear", tied=False, n_layers=4, n_per_row=64)

    assert of(DOWN) == "int8"
    assert of(DOWN.replace("layers.0", "layers.1")) == "int4"
    assert of(DOWN.replace("down", "up")) == "int4"


def test_the_last_layers_are_counted_from_the_end() -> None:
    recipe = replace(MINIMAL, rules=(LitertRule("ffn_down", "int8", "last-2"),))
    types = [
        recipe.choose_type(
            DOWN.replace(".0.", f".{i}."), "linear", tied=False, n_layers=4, n_per_row=64
        )
        for i in range(4)
    ]
    assert types == ["int4", "int4", "int8", "int8"]


def test_embedding_and_head_have_types_of_their_own() -> None:
    recipe = replace(MINIMAL, head="int4-b32")
    embedding = "model.embed_tokens.weight"
    options = {"n_layers": 4, "n_per_row": 64}
    assert recipe.choose_type(embedding, "embedding", tied=True, **options) == "int8"
    assert recipe.choose_type(embedding, "linear", tied=True, **options) == "int4-b32"
    assert recipe.choose_type("lm_head.weight", "linear", tied=False, **options) == "int4-b32"


@given(st.sampled_from(sorted(WEIGHT_TYPES)), st.integers(1, 10_000))
def test_blocks_always_divide_rows(wanted: str, n_per_row: int) -> None:
    kind = WEIGHT_TYPES[fitting(wanted, n_per_row)]
    assert n_per_row % (kind.block_size or 1) == 0
    assert kind.bits != 4 or n_per_row % 2 == 0
    assert kind.bits >= WEIGHT_TYPES[wanted].bits


@pytest.mark.parametrize(
    ("source", "group"),
    [
        (DOWN, "ffn_down"),
        ("model.layers.3.self_attn.o_proj.weight", "attn_output"),
        ("model.layers.3.self_attn.out_proj.weight", "attn_output"),
        ("model.layers.3.conv.out_proj.weight", "shortconv_out"),
        ("model.layers.3.feed_forward.w2.weight", "ffn_down"),
        ("model.layers.3.self_attn.qkv_proj.weight", "attn_qkv"),
        ("model.layers.3.mlp.gate_up_proj.weight", "ffn_gate_up"),
        ("model.embed_tokens.weight", None),
    ],
)
def test_groups_know_every_familys_names(source: str, group: str | None) -> None:
    assert find_group(source) == group


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.id)
def test_every_value_of_a_recipe_is_known(recipe: LitertRecipe) -> None:
    assert set(recipe.flavours) <= {"litertlm", "tflite"} and recipe.scales in ("minmax", "mse")
    matrices = {recipe.linear, recipe.head, *(rule.type for rule in recipe.rules)}
    assert matrices | {recipe.embedding} <= WEIGHT_TYPES.keys()
    for rule in recipe.rules:
        assert rule.tensors in GROUPS and LAYERS.fullmatch(rule.layers)
    if "tflite" in recipe.flavours:  # what tflite-runtime 2.14 computes
        assert matrices <= {"int4", "int8-t"} and recipe.embedding == "int8-t"


def test_an_unknown_recipe_is_told() -> None:
    with pytest.raises(UsageError, match="Did you mean 'litert_int4_b32'"):
        load_recipe("litert_int4_b3")


def test_bits_per_weight_of_types() -> None:
    def bpw(name: str) -> float:
        return 8 * WEIGHT_TYPES[name].total_bytes(1024, 1024) / 1024**2

    assert bpw("int4-b32") == 4.5
    assert bpw("int4-b64") == 4.25
    assert bpw("int4-b128") == 4.125
    assert bpw("int8") == pytest.approx(8 + 96 / 1024)
