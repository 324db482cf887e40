"""What is refused before the environment is even made."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.formats.base import FORMATS
from boardfit.converters.formats.converted import FAMILIES, ConvertedFormat, Made
from boardfit.converters.formats.litert.convert import (
    check_request,
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


def convert(spec: ModelSpec, out: Path, **changes: object) -> Made:
    options = {"prefill_lengths": [128], "cache_length": 512, **changes}
    recipe = load_recipe(str(options.pop("recipe", "litert_int4_b32")))
    return convert_litert(spec, MODEL_DIR, recipe, out / "x", **options)  # type: ignore[arg-type]


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
    ("changes", "message"),
    [
        ({"prefill_lengths": []}, "at least one"),
        ({"prefill_lengths": [0]}, "at least one"),
        ({"prefill_lengths": [1024]}, "does not go into a cache of 512"),
        ({"cache_length": 4096}, "more than the 1024 that the model was trained for"),
        ({"flavour": "tflite"}, "makes litertlm, not tflite"),
        ({"recipe": "tflite_int4"}, "makes tflite, not litertlm"),
    ],
)
def test_lengths_and_flavours(
    spec: ModelSpec, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        convert(spec, tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_recipes_of_the_flavour_are_named(spec: ModelSpec) -> None:
    with pytest.raises(UsageError) as caught:
        check_request(spec, load_recipe("litert_int8"), [16], 64, "tflite")
    assert "tflite_int4" in str(caught.value.next_step)


def test_a_folder_that_is_not_there(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        convert(spec, tmp_path / "nowhere")


def test_where_texts_begin_and_answers_end(spec: ModelSpec) -> None:
    assert start_token(spec) is None
    assert stop_tokens(spec) == [0, 2]  # <|endoftext|>, <|im_end|>
