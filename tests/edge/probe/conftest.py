"""The sample model as a GGUF file of several tensor types."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_many
from boardfit.converters.source.resolve import open_model


@pytest.fixture(scope="session")
def sample_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.gguf"
    list(write_many(open_model("sample"), [(load_recipe("q4_k_m"), path)]))
    return path
