"""A step whose threads stand in each other's way is given up and done again by fewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from boardfit.edge.engines import open_engine
from boardfit.edge.engines.llama.engine import LlamaCppEngine
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.engines.threads import ThreadGovernor
from boardfit.edge.types import Engine, GenerationConfig
from tests.edge.engines.engine_models import Models

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine-llama_cpp")]

CONFIG = GenerationConfig(max_tokens=4, ignore_eos=True)


@pytest.fixture
def engine(models: Models) -> Iterator[Engine]:
    settings = EngineSettings(n_threads=2, n_ctx=2048)
    with open_engine("llama_cpp", models.heavy, settings) as opened:
        yield opened


def answer(
    engine: Engine, stop: Callable[[], bool], n_prompt: int = 1200
) -> tuple[list[int | None], str | None]:
    engine.reset()
    tokens = engine.tokenize("abcdefgh" * (n_prompt // 8))
    events = list(engine.stream(tokens, CONFIG, stop))
    said = [event.token_id for event in events if event.token_id is not None]
    return said, events[-1].finish_reason


class Stuck:
    """Says, as the governor's `is_stuck`, that the running step is; so many times."""

    def __init__(self, governor: ThreadGovernor, times: int = 1) -> None:
        self.left, self._governor = times, governor

    def __call__(self) -> bool:
        if self.left and self._governor._before is not None:
            self.left -= 1
            return True
        return False


def governor_of(engine: Engine) -> ThreadGovernor:
    assert isinstance(engine, LlamaCppEngine)
    governor = engine._lease.get().context._governor
    assert governor is not None
    return governor


def test_the_answer_is_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answer(engine, lambda: False)
    governor = governor_of(engine)
    stuck = Stuck(governor)
    monkeypatch.setattr(governor, "is_stuck", stuck)
    fewest = []
    assert answer(engine, lambda: bool(fewest.append(governor.now))) == plain
    assert plain[1] == "length"
    assert stuck.left == 0 and min(fewest) == 1


def test_a_stop_meanwhile_is_not_lost(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(engine, lambda: False)
    governor = governor_of(engine)
    stuck = Stuck(governor, times=1000)
    monkeypatch.setattr(governor, "is_stuck", stuck)
    assert answer(engine, lambda: stuck.left < 1000) == ([], "aborted")


def test_what_cannot_be_cut_is_not_given_up(models: Models) -> None:
    """A recurrent state has mixed half of the step in: there is no going back."""
    assert models.recurrent is not None
    with open_engine("llama_cpp", models.recurrent, EngineSettings(n_threads=2)) as engine:
        assert isinstance(engine, LlamaCppEngine)
        context, governor = engine._lease.get().context, governor_of(engine)
        answer(engine, lambda: False, 64)
        governor.is_stuck = lambda: True  # type: ignore[method-assign]
        context.give_up_if_stuck()
        assert not context.was_given_up() and not context.abort.is_set()
