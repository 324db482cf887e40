"""Recipe files: all of them load, every value is known, and no id goes unexplained."""

from __future__ import annotations

import dataclasses

import pytest
from gguf import MODEL_ARCH_NAMES

from boardfit.converters.formats.gguf.assign import assign_types, layers_hold
from boardfit.converters.formats.gguf.header import artifact_bytes
from boardfit.converters.formats.gguf.recipe import GgufRecipe, list_recipes, load_recipe
from boardfit.edge.errors import InputError, UnsupportedModelError, UsageError
from boardfit.edge.files.ggml_types import GGML_TYPES
from tests.converters.formats.gguf.models import Dims, make_spec

IDS = {
    "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0", "q4_1", "iq4_nl",
    "iq4_xs", "q3_k_m",
}  # fmt: skip
LAYERS = ("all", "more-bits", "first-eighth", "first-sixteenth", "first-2", "first-4")


def test_all_recipes_load_with_upstreams_numbers() -> None:
    import gguf

    assert {recipe.id for recipe in list_recipes()} == IDS
    for recipe in list_recipes():
        assert gguf.LlamaFileType["MOSTLY_" + recipe.name] == recipe.file_type
        assert recipe.id == recipe.name.lower() and recipe.about.endswith(".")


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'q4km'.*Did you mean 'q4_k_m'\?"):
        load_recipe("q4km")
    assert load_recipe("Q4-K-M") == load_recipe("q4_k_m")


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.id)
def test_every_value_of_a_recipe_is_known(recipe: GgufRecipe) -> None:
    assert type(recipe.file_type) is int and recipe.type in GGML_TYPES
    assert (recipe.output in GGML_TYPES) is recipe.is_quantized
    for rule in recipe.rules:
        assert rule.type in GGML_TYPES and rule.tensors in ("attn_v", "attn_output", "ffn_down")
        assert rule.layers in LAYERS and type(rule.min_gqa) is int
        assert rule.experts is None or type(rule.experts) is int
        assert rule.imatrix in (None, True, False)
        assert rule.arch is None or rule.arch.removeprefix("not ") in MODEL_ARCH_NAMES.values()


def test_more_bits_go_to_the_ends_and_every_third_layer() -> None:
    chosen = [i for i in range(32) if layers_hold("more-bits", i, 32)]
    assert chosen == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_kept_tensors_are_kept_by_every_recipe() -> None:
    spec = make_spec(Dims("qwen3moe", n_layer=1, n_expert=3, n_ff=64))
    for recipe in list_recipes():
        for typed in assign_types(spec, recipe):
            assert (typed.tensor.keep is None) or typed.type == "F32", recipe.id


def test_an_expert_outside_every_block_is_refused() -> None:
    spec = make_spec(Dims("qwen3moe", n_layer=1, n_expert=3, n_ff=64))
    odd = tuple(dataclasses.replace(t, name=t.name.replace("blk.0", "blk.7")) for t in spec.tensors)
    with pytest.raises(UnsupportedModelError, match=r"blk\.7\.ffn.*none of the model's 1 blocks"):
        assign_types(dataclasses.replace(spec, tensors=odd), load_recipe("q4_k_m"))


def test_metadata_that_gguf_cannot_hold_is_named() -> None:
    from gguf import GGUFValueType

    from boardfit.converters.spec import KeyValue

    spec, recipe = make_spec(Dims(n_layer=1)), load_recipe("q4_0")
    for bad in (
        KeyValue("x.bad", -1, GGUFValueType.UINT32),
        KeyValue("x.bad", "text", GGUFValueType.FLOAT32),
        KeyValue("x.bad", [[1]], GGUFValueType.ARRAY, GGUFValueType.ARRAY),
        KeyValue("general.architecture", "twice", GGUFValueType.STRING),
    ):
        metadata = (*spec.metadata, bad)
        with pytest.raises(InputError, match=bad.key.replace(".", r"\.")):
            artifact_bytes(dataclasses.replace(spec, metadata=metadata), recipe)
    with pytest.raises(InputError, match="two tensors are named"):
        twice = (*spec.tensors, spec.tensors[0])
        artifact_bytes(dataclasses.replace(spec, tensors=twice), recipe)
