"""The queue: who comes first, which promises hold, and the same answers on every engine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.deadline.budget import Budget
from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.errors import InputError
from boardfit.edge.serve import app
from boardfit.edge.serve import job as job_module
from boardfit.edge.serve.access import AccessRules, own_names
from boardfit.edge.serve.ask import Ask, Rank
from boardfit.edge.serve.job import Ended, Job, JobCost
from boardfit.edge.serve.queue import MAX_QUEUED, AnswerQueue
from boardfit.edge.serve.refused import RequestRefused
from boardfit.edge.types import GenerationConfig, Message, TokenEvent
from tests.edge.engines.engine_models import CHAT_REPLY, Models

HELLO = Ask(GenerationConfig(), False, (Message("user", "hello"),))


@contextmanager
def running(
    model: Path, *, is_steady: bool = False, is_gated: bool = True, **settings: Any
) -> Iterator[AnswerQueue]:
    def load() -> OpenModel:
        return open_model(model, n_threads=1, **settings)

    runner = AnswerQueue(load, is_steady=is_steady, is_gated=is_gated)
    runner.start()
    runner.ready.wait()
    yield runner
    runner.close()


async def text_of(runner: AnswerQueue, ask: Ask) -> tuple[str, Ended]:
    job, parts = await runner.submit(ask), list[str]()
    while True:
        item = await job.next()
        if isinstance(item, TokenEvent):
            parts.append(item.text)
        if isinstance(item, Ended):
            return "".join(parts), item


@pytest.mark.engine
def test_every_engine_answers(engine_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOARDFIT_STATES", "off")
    with running(engine_models.scripted) as runner:
        assert runner.failure is None, runner.failure
        text, ended = asyncio.run(text_of(runner, HELLO))
        assert text == CHAT_REPLY and ended.answer.finish_reason == "stop"
        timed = Ask(GenerationConfig(), False, HELLO.messages, budget=Budget(30.0))
        text, ended = asyncio.run(text_of(runner, timed))
        assert text == CHAT_REPLY and ended.outcome is not None and ended.outcome.met
        plain = Ask(GenerationConfig(max_tokens=20), False, prompt="x")
        assert asyncio.run(text_of(runner, plain))[1].answer.finish_reason == "stop"


@pytest.mark.engine
def test_a_model_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with running(tmp_path / "broken.gguf") as runner:
        assert isinstance(runner.failure, InputError)
        with pytest.raises(RequestRefused) as refused:
            asyncio.run(runner.submit(HELLO))
    assert refused.value.status == 503


@pytest.mark.engine
def test_a_server_that_ends_says_so_to_who_waits(models: Models) -> None:
    assert models.endless is not None

    async def main(runner: AnswerQueue) -> list[Any]:
        jobs = [await runner.submit(HELLO)]
        await jobs[0].next()  # it computes: it is not stopped in the queue
        jobs += [await runner.submit(HELLO) for _ in range(2)]
        asyncio.get_running_loop().run_in_executor(None, runner.close)
        found = []
        for job in jobs:
            try:
                while not isinstance(item := await job.next(), Ended):
                    pass
                found.append(item.answer.finish_reason)
            except RequestRefused as refused:
                found.append(refused.status)
        return found

    runner = AnswerQueue(lambda: open_model(models.endless, n_threads=1, n_ctx=16384))
    runner.start()
    runner.ready.wait()
    assert asyncio.run(main(runner)) == ["aborted", 503, 503]


@pytest.mark.engine
@pytest.mark.parametrize("takes", ["nothing", "everything", "little"])
def test_a_reader_that_takes_nothing_is_given_up(
    models: Models, monkeypatch: pytest.MonkeyPatch, takes: str
) -> None:
    """Half-open connections and slow readers: the engine waits for none of them."""
    assert models.endless is not None
    monkeypatch.setattr(app, "STALL_S", 0.2)
    monkeypatch.setattr(job_module, "MAX_UNREAD_BYTES", 10_000)
    body = json.dumps({"stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    messages = iter([{"type": "http.request", "body": body}])
    sent: list[int] = []

    async def receive() -> dict[str, Any]:
        if (message := next(messages, None)) is not None:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))
        if takes == "nothing":
            await asyncio.Event().wait()
        await asyncio.sleep(0.1 if takes == "little" else 0)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions",
             "raw_path": b"/v1/chat/completions", "headers": [(b"host", b"localhost")]}  # fmt: skip
    with running(models.endless, n_ctx=2048) as queue:
        served = app.App(queue, AccessRules(own_names((), ())))
        asyncio.run(asyncio.wait_for(served(scope, receive, send), 60))
        while queue.counts()["running"]:
            time.sleep(0.01)
        told = queue.counters.to_text({})
    status = 'status="499"' if takes == "nothing" else 'status="200"'
    assert status in told and "edge_answer_tokens_total" in told
    n_tokens = int(re.findall(r"answer_tokens_total (\d+)", told)[0])
    assert (n_tokens > 1900) == (takes == "everything"), (n_tokens, len(sent))


@pytest.mark.engine
def test_a_full_queue_is_429(models: Models) -> None:
    assert models.endless is not None

    async def main(runner: AnswerQueue) -> int:
        jobs = [await runner.submit(HELLO)]
        with pytest.raises(RequestRefused) as refused:
            for _ in range(MAX_QUEUED + 2):
                jobs.append(await runner.submit(HELLO))
        for job in jobs:
            runner.give_up(job)
        return refused.value.status

    with running(models.endless, n_ctx=16384) as runner:
        assert asyncio.run(main(runner)) == 429


BACKGROUND = Ask(GenerationConfig(max_tokens=400), False, HELLO.messages, rank="background")


@pytest.mark.engine
@pytest.mark.parametrize("n_shelves", [0, 2], ids=["rewinds", "shelves"])
def test_what_is_in_the_background_lets_others_pass(models: Models, n_shelves: int) -> None:
    """And says afterwards what it would have said."""
    question = (Message("system", "Be brief. " * 30), Message("user", "Who?"))
    urgent = Ask(GenerationConfig(max_tokens=5), False, question, budget=Budget(30.0))
    ended: list[str] = []

    async def follow(runner: AnswerQueue, name: str, job: Job) -> tuple[str, Ended]:
        parts = []
        while not isinstance(item := await job.next(), Ended):
            if isinstance(item, TokenEvent):
                parts.append(item.text)
        ended.append(name)
        return "".join(parts), item

    async def main(runner: AnswerQueue) -> list[tuple[str, Ended]]:
        alone = await text_of(runner, BACKGROUND)
        job = await runner.submit(BACKGROUND)
        while not isinstance(await job.next(), TokenEvent):
            pass  # it computes
        first = asyncio.create_task(follow(runner, "background", job))
        later = await runner.submit(BACKGROUND)
        passing = [await runner.submit(urgent) for _ in range(2)]
        rest = [follow(runner, "urgent", each) for each in passing]
        return [alone, *await asyncio.gather(*rest, first, follow(runner, "later", later))]

    assert models.endless is not None
    with running(models.endless, n_ctx=2048, n_shelves=n_shelves) as runner:
        alone, one, two, paused, later = asyncio.run(main(runner))
    assert ended == ["urgent", "urgent", "background", "later"]
    assert alone[0].endswith(paused[0]) and len(alone[0]) - len(paused[0]) < 8
    assert later[0] == alone[0] and one[1].answer.n_out == two[1].answer.n_out == 5
    assert paused[1].answer.n_out == 400 and "2 more urgent" in str(paused[1].notes)
    assert not later[1].notes


@pytest.mark.engine
@pytest.mark.parametrize("n_slots", [1, 3])
def test_answers_at_once_are_those_one_after_another(models: Models, n_slots: int) -> None:
    """With several slots all have begun before one has ended."""
    texts = ["hello", "Who are you?", "Name a colour. " * 20, "Why?"]
    asks = [Ask(GenerationConfig(max_tokens=60), False, (Message("user", text),)) for text in texts]
    order: list[str] = []

    async def follow(runner: AnswerQueue, ask: Ask) -> str:
        job, parts = await runner.submit(ask), list[str]()
        while not isinstance(item := await job.next(), Ended):
            if isinstance(item, TokenEvent):
                order.append("token" if parts else "first")
                parts.append(item.text)
        order.append("end")
        return "".join(parts)

    async def main(runner: AnswerQueue) -> tuple[list[str], list[str]]:
        alone = [await follow(runner, ask) for ask in asks]
        order.clear()
        return alone, await asyncio.gather(*(follow(runner, ask) for ask in asks))

    assert models.endless is not None
    with running(models.endless, is_gated=False, n_ctx=2048, n_slots=n_slots) as runner:
        alone, together = asyncio.run(main(runner))
    assert together == alone
    assert order[: order.index("end")].count("first") == n_slots


# ---- admission, with made-up times ---------------------------------------------------------------


def waiting(
    received_s: float, needs_s: float, most_s: float, within_s: float | None, rank: Rank = "normal"
) -> Job:
    budget = Budget(within_s) if within_s is not None else None
    ask = Ask(GenerationConfig(), False, HELLO.messages, budget=budget, rank=rank)
    loop = cast(asyncio.AbstractEventLoop, None)
    job = Job(ask, cast(Any, None), loop, (), round(received_s * 1e9))
    job.cost = JobCost(needs_s, max(needs_s, most_s))
    return job


_JOBS = st.lists(
    st.tuples(
        st.floats(0.01, 2), st.floats(0.01, 5), st.none() | st.floats(0.05, 10),
        st.sampled_from(["interactive", "normal", "background"]),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@given(_JOBS)
def test_a_later_arrival_breaks_no_promise(arrivals: list[Any]) -> None:
    """Each job that was admitted is done in time, when all take as long as they may."""
    runner = AnswerQueue(lambda: cast(Any, None))
    runner._monotonic_ns = lambda: 0
    accepted: list[Job] = []
    for needs_s, most_s, within_s, rank in arrivals:
        job = waiting(0.0, needs_s, most_s, within_s, rank)
        try:
            runner._admit(job)
        except RequestRefused as refused:
            assert refused.status in (422, 429)
            continue
        accepted.append(job)
        runner._waiting.append(job)
    first, *others = accepted
    now_ns = 0
    for job in sorted(accepted, key=lambda each: each.due_ns):
        promised_ns = job.promised_ns
        if promised_ns is not None and (job is not first or others):
            in_time = now_ns + job.cost.needs_s * 1e9 <= promised_ns  # type: ignore[union-attr]
            assert in_time or job is first
        work = job.work(now_ns)
        now_ns += round(min(work.most_s, max(0.0, work.end_s)) * 1e9)


def test_the_earliest_deadline_is_taken_first() -> None:
    runner = AnswerQueue(lambda: cast(Any, None))
    late = waiting(0, 0.1, 0.1, 9.0)
    soon = waiting(1, 0.1, 0.1, 2.0)
    patient, background = waiting(0, 0.1, 0.1, None), waiting(0, 0.1, 0.1, None, "background")
    runner._waiting = [background, patient, late, soon]
    begun = []
    while runner._waiting:
        assert runner._take()
        begun += list(runner._running)
        runner._running.clear()
    assert begun == [soon, late, patient, background]
