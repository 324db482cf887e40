"""Models for the runtime tests, built once per session, and every engine that can load them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from boardfit.edge.engines import ENGINES, EngineSettings, is_installed, open_engine
from boardfit.edge.types import Engine
from tests.edge.engines.engine_models import (
    CHAT_REPLY,
    REPLY,
    Models,
    ModelShelf,
    endless,
    successors,
)
from tests.programs import skip_or_fail

__all__ = ["CHAT_REPLY", "REPLY", "Models", "endless", "opened", "successors"]


@pytest.fixture(scope="session")
def model_shelf(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> ModelShelf:
    return ModelShelf(tmp_path_factory.mktemp, request.config.cache.mkdir("boardfit-models"))


@pytest.fixture(scope="session")
def models(model_shelf: ModelShelf) -> Models:
    """The GGUF ones, for what is tested on one engine."""
    return model_shelf["llama_cpp"]


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(f"engine-{name}"))
        for name in sorted(ENGINES)
    ]
)
def engine_name(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not is_installed(name):
        skip_or_fail(f"{name} is not installed: {ENGINES[name].pip_line}")
    return name


@pytest.fixture
def engine_models(engine_name: str, model_shelf: ModelShelf) -> Models:
    """Models in the format of the engine under test."""
    return model_shelf[engine_name]


def opened(name: str, path: object, **changes: object) -> Engine:
    return open_engine(name, path, EngineSettings(n_threads=1).replace(**changes))  # type: ignore[arg-type]


@pytest.fixture
def random_engine(engine_name: str, engine_models: Models) -> Iterator[Engine]:
    engine = opened(engine_name, engine_models.random)
    yield engine
    engine.close()


@pytest.fixture
def scripted_engine(engine_name: str, engine_models: Models) -> Iterator[Engine]:
    engine = opened(engine_name, engine_models.scripted)
    yield engine
    engine.close()
