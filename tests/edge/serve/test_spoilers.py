"""What broke a prefix is found, named and moved. Prefixes outlive a request, and the server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.serve.ask import Ask
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.queue import AnswerQueue
from boardfit.edge.serve.server import N_SHELVES
from boardfit.edge.serve.spoilers import PromptHistory, classify, move_clocks, steady
from boardfit.edge.serve.wire.base import edge_facts
from boardfit.edge.types import GenerationConfig, Message
from tests.edge.engines import tiny_gguf
from tests.edge.serve.test_queue import running, text_of

HOME = "You control lights, blinds and the heating of a home. Answer in one sentence. " * 12


def ask_about(system: str, text: str = "hello", **fields: Any) -> Ask:
    config = GenerationConfig(max_tokens=6, ignore_eos=True)
    return Ask(config, False, (Message("system", system), Message("user", text)), **fields)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("Current time is 20:37:19. Rest", "Current time is 20:38:02. Rest", "clock"),
        ("The time is 8 PM", "The time is 9 PM", "clock"),
        ("now 2026-11-30T20:37:19Z", "now 2026-11-30T20:37:21Z", "clock"),
        ("Today's date is 2026-11-30. x", "Today's date is 2026-12-01. x", "date"),
        ("It is Monday, 3 May.\nx", "It is Tuesday, 4 May.\nx", "date"),
        ("Day 3 of the trip", "Day 4 of the trip", "date"),
        ("Request 17 of x", "Request 18 of x", "counter"),
        ("x-billing-header: cch=a3f91;", "x-billing-header: cch=b2c11;", "id"),
        ("session 9f8e7d6c5b4a lives", "session 0f1e7d6c5b4a lives", "id"),
        ("You are Ann", "You are Ben", "text"),
        ("You are Ann", "You are Ann, or not", "text"),
    ],
    ids=lambda value: value[:12],
)
def test_what_changed_is_named(old: str, new: str, kind: str) -> None:
    assert classify(old, new) == kind


@given(old=st.text(max_size=40), new=st.text(max_size=40))
def test_any_change_has_a_class(old: str, new: str) -> None:
    assert classify(old, new) in ("clock", "date", "id", "counter", "text")
    text, n_moved = move_clocks(new)
    assert sorted("".join(text.split())) == sorted("".join(new.split())) or n_moved == 0


@pytest.mark.parametrize(
    ("system", "moved"),
    [
        (
            "Current time is 20:37:19. Today's date is 2026-11-30.\nYou run v1.2. Be brief.",
            "You run v1.2. Be brief.\n\nCurrent time is 20:37:19. Today's date is 2026-11-30.",
        ),
        (
            "You are brief.\nIt is now Monday, 20:37.\nlight: on since 20:11",
            "You are brief.\nlight: on since 20:11\n\nIt is now Monday, 20:37.",
        ),
        ("You are brief. It is 20:37 now.", None),
        ("The shop opens at 08:00. Be brief.", None),
        ("Now answer in 2 words. Be brief.", None),
    ],
    ids=["head", "line", "last", "hours", "number"],
)
def test_sentences_with_a_clock_move(system: str, moved: str | None) -> None:
    assert move_clocks(system)[0] == (moved or system)
    after = steady(ask_about(system))
    assert (after.notes != ()) == (moved is not None) and after.question.content == "hello"


def test_the_loss_is_counted_against_the_most_alike() -> None:
    history, body = PromptHistory(), list(range(100, 300))
    assert history.compare("Ann 1", [1, *body]) is None
    assert history.compare("Ben", [7] * 50) is None, "it shares nothing"
    assert history.compare("Ann 1", [1, *body]) is None, "it is the same"
    lost = history.compare("Ann 2", [2, *body])
    assert lost is not None and (lost.at_token, lost.n, lost.kind) == (0, 200, "counter")
    # A second change further on takes no more than its neighbourhood.
    lost = history.compare("Ann 3", [3, *body[:100], 9, *body[101:]])
    assert lost is not None and 180 < lost.n < 200
    assert history.shared([1, *body[:50], 5]) == 51
    for i in range(20):
        history.compare(f"other {i}", [i])
    assert history.compare("Ann 4", [4, *body]) is None, "the latest few are remembered"


# ---- through the queue --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its system prompt takes more than the 20 ms that are worth a file."""
    path = tmp_path_factory.mktemp("spoilers") / "model.gguf"
    return tiny_gguf.random_llama(path, n_ctx=2048, n_embd=256, n_layer=4, n_ff=1024)


def answers(queue: AnswerQueue, *asks: Ask) -> list[Ended]:
    async def main() -> list[Ended]:
        return [(await text_of(queue, ask))[1] for ask in asks]

    return asyncio.run(main())


def at_time(text: str) -> Ask:
    return ask_about(f"Current time is {text}. {HOME}")


@pytest.mark.engine
def test_a_clock_is_reported_and_nothing_of_the_prompt(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BOARDFIT_STATES", "off")
    caplog.set_level(logging.DEBUG)
    with running(model, n_shelves=N_SHELVES) as queue:
        _, ended, _ = answers(queue, at_time("20:37:19"), at_time("20:38:02"), at_time("20:38:02"))
        told = queue.counters.to_text({})
    found = edge_facts(ended)["prefix_lost"]
    assert found["text_class"] == "clock" and found["n"] > 800 and found["cost_s"] > 0
    assert 0 < found["at_token"] < 80
    assert f'edge_prefix_lost_tokens_total{{class="clock"}} {found["n"]}' in told
    assert "20:3" not in told + str(edge_facts(ended)) + caplog.text
    assert "heating" not in told + str(edge_facts(ended)) + caplog.text


@pytest.mark.engine
@pytest.mark.parametrize("memory", ["llama", "mamba"])
def test_a_steady_prefix_is_reused(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recurrent memory learns where prompts part from the second of them."""
    monkeypatch.setenv("BOARDFIT_STATES", "off")
    path = getattr(tiny_gguf, f"random_{memory}")(tmp_path / "model.gguf", n_ctx=2048)
    with running(path, n_shelves=N_SHELVES, is_steady=True) as queue:
        asks = [at_time(text) for text in ("20:37:19", "20:38:02", "20:39:12")]
        last = answers(queue, *asks)[-1]
    assert last.answer.n_reused > 850 and last.lost is None
    assert "1 sentence with a clock moved behind the system prompt" in edge_facts(last)["notes"]


@pytest.mark.engine
def test_clients_at_once_read_one_system_prompt_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_STATES", "off")

    async def main(queue: AnswerQueue) -> list[Ended]:
        asks = [ask_about(HOME, f"question {i}") for i in range(4)]
        return [ended for _, ended in await asyncio.gather(*(text_of(queue, a) for a in asks))]

    with running(model, n_shelves=N_SHELVES) as queue:
        ended = asyncio.run(main(queue))
        told = queue.counters.to_text({})
    computed = sorted(each.answer.n_prompt - each.answer.n_reused for each in ended)
    assert computed[3] > 900 and computed[2] < 60
    assert f'edge_prompt_tokens_total{{from="computed"}} {sum(computed)}' in told


@pytest.mark.engine
def test_a_restarted_server_has_read_the_system_prompt(model: Path) -> None:
    with running(model, n_shelves=N_SHELVES) as queue:
        first = answers(queue, ask_about(HOME))[0]
    with running(model, n_shelves=N_SHELVES) as queue:
        again = answers(queue, ask_about(HOME, "another question"), ask_about(HOME, "a third"))
    assert first.answer.n_reused == 0
    assert all(each.answer.n_reused > 850 for each in again)
