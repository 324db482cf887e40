"""Models for the runtime tests, built once per test session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.engines import ENGINES, EngineSettings, is_installed, open_engine
from edge.types import Engine

from . import tiny_gguf


@dataclass(frozen=True)
class Models:
    """Files of one engine's format. `scripted` says "a€😀é!" and ends after a prompt ending in x,
    and after the template's newline "Hi ž." and ends; `endless` counts there and never ends.
    """

    random: Path
    scripted: Path
    window: Path
    recurrent: Path
    heavy: Path
    endless: Path


REPLY = "a€😀é!"
CHAT_REPLY = "Hi ž."


def successors() -> dict[int, int]:
    table = tiny_gguf.script(REPLY, after=ord("x"), then=tiny_gguf.IM_END)
    table |= tiny_gguf.script(CHAT_REPLY, after=ord("\n"), then=tiny_gguf.IM_END)
    return table | endless(ord("z"))


def endless(after: int) -> dict[int, int]:
    """0 1 2 … 9 0 1 2 … for whoever wants to interrupt."""
    return tiny_gguf.script("0123456789", after=after, then=ord("0"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("gguf")
    return Models(
        random=tiny_gguf.random_llama(folder / "random.gguf"),
        scripted=tiny_gguf.scripted_llama(folder / "scripted.gguf", successors()),
        window=tiny_gguf.random_gemma3(folder / "window.gguf"),
        recurrent=tiny_gguf.random_mamba(folder / "recurrent.gguf"),
        endless=tiny_gguf.scripted_llama(folder / "endless.gguf", endless(ord("\n")), n_ctx=16384),
        heavy=tiny_gguf.random_llama(
            folder / "heavy.gguf", n_ctx=4096, n_embd=512, n_layer=4, n_ff=2048
        ),
    )


@pytest.fixture(params=sorted(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not is_installed(name):
        pytest.skip(f"{name} is not installed: {ENGINES[name].pip_line}")
    return name


def opened(name: str, path: Path, **changes: object) -> Engine:
    return open_engine(name, path, EngineSettings(n_threads=1).replace(**changes))


@pytest.fixture
def random_engine(engine_name: str, models: Models) -> Iterator[Engine]:
    engine = opened(engine_name, models.random)
    yield engine
    engine.close()


@pytest.fixture
def scripted_engine(engine_name: str, models: Models) -> Iterator[Engine]:
    engine = opened(engine_name, models.scripted)
    yield engine
    engine.close()
