"""The pinned environment, and models converted once for all tests of a worker process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.environments import find_tool_python
from converters.litert_recipe import load_recipe
from converters.sample import MODEL_DIR
from converters.source.hf import open_directory
from converters.target.tflite import LitertArtifact, convert_litert

# Before any test points the cache elsewhere.
_PYTHON = find_tool_python("litert")

Convert = Callable[[str], LitertArtifact]


@pytest.fixture(scope="session")
def litert_python() -> Path:
    """The interpreter of the litert environment. Its absence fails in CI, and skips elsewhere."""
    if _PYTHON is None or not _PYTHON.exists():
        reason = "the litert environment is not there: scripts/test makes it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return _PYTHON


@pytest.fixture(scope="session")
def sample_in(litert_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """The sample model by recipe, each converted once."""
    made: dict[str, LitertArtifact] = {}

    def convert(recipe_id: str) -> LitertArtifact:
        if recipe_id not in made:
            recipe = load_recipe(recipe_id)
            flavour = "tflite" if "tflite" in recipe.flavours else "litertlm"
            out = tmp_path_factory.mktemp(recipe_id) / f"model.{flavour}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EDGEKIT_LITERT_PYTHON", str(litert_python))
                made[recipe_id] = convert_litert(
                    open_directory(MODEL_DIR),
                    MODEL_DIR,
                    recipe,
                    out,
                    prefill_lengths=[128],
                    cache_length=512,
                    flavour=flavour,  # type: ignore[arg-type]
                    threads=1,
                )
        return made[recipe_id]

    return convert
