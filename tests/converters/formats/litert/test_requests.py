"""What is refused before the environment is even made."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.formats.base import FORMATS
from boardfit.converters.formats.converted import FAMILIES, ConvertedFormat
from boardfit.converters.formats.litert.convert import (
    convert_litert,
    start_token,
    stop_tokens,
)
from boardfit.converters.formats.litert.recipe import load_recipe
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source.hf import open_directory
from boardfit.converters.spec import ModelSpec
from boardfit.edge.errors import UnsupportedModelError, UsageError


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return open_directory(MODEL_DIR)


@pytest.mark.parametrize("name", ["litertlm", "tflite", "onnx"])
def test_a_family_that_is_not_supported(name: str) -> None:
    target = FORMATS[name].load()
    assert isinstance(target, ConvertedFormat)
    with pytest.raises(UnsupportedModelError, match=r"'qwen3_moe' models.*Gemma 3.*LFM2") as caught:
        target.check_family("qwen3_moe")
    assert "gguf" in str(caught.value.next_step)
    with pytest.raises(UnsupportedModelError, match="Did you mean 'lfm2'"):
        target.check_family("lfm22")
    for family in FAMILIES:
        target.check_family(family)


@pytest.mark.parametrize(
    ("name", "recipe", "message", "advice"),
    [
        ("tflite", "litert_int8", "makes litertlm, not tflite", "tflite_int4"),
        ("litertlm", "tflite_int4", "makes tflite, not litertlm", "litert_int8"),
    ],
    ids=["tflite", "litertlm"],
)
def test_a_recipe_of_the_other_flavour_is_refused_before_anything_is_planned(
    spec: ModelSpec, name: str, recipe: str, message: str, advice: str
) -> None:
    target = FORMATS[name].load()
    assert isinstance(target, ConvertedFormat)
    for ask in (target.describe_recipe, lambda recipe: target.weigh(spec, recipe)):
        with pytest.raises(UsageError, match=message) as caught:
            ask(recipe)
        assert advice in str(caught.value.next_step)


def test_a_folder_that_is_not_there(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        convert_litert(
            spec, MODEL_DIR, load_recipe("litert_int4_b32"), tmp_path / "nowhere/x.litertlm",
            prefill_lengths=[128], cache_length=512,
        )  # fmt: skip


def test_where_texts_begin_and_answers_end(spec: ModelSpec) -> None:
    assert start_token(spec) is None
    assert stop_tokens(spec) == [0, 2]  # <|endoftext|>, <|im_end|>
