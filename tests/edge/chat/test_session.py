"""A conversation: history, trimming, save and load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from boardfit.edge.chat.session import Session, summarize
from boardfit.edge.errors import InputError
from boardfit.edge.states import StateStore
from boardfit.edge.types import Engine, GenerationConfig, Message, StreamStart, TokenEvent, Trace
from tests.edge.engines.conftest import CHAT_REPLY, Models, opened

pytestmark = pytest.mark.engine


@pytest.fixture
def models(engine_models: Models) -> Models:
    """In the format of the engine under test."""
    return engine_models


def say(session: Session, text: str, **config: object) -> str:
    events = session.ask(text, GenerationConfig(**config))  # type: ignore[arg-type]
    return "".join(event.text for event in events)


def test_turns_enter_the_history(scripted_engine: Engine) -> None:
    session = Session(scripted_engine, system="Be brief.")
    assert say(session, "hello") == CHAT_REPLY
    assert say(session, "again") == CHAT_REPLY
    assert [m.role for m in session.messages] == ["user", "assistant"] * 2
    assert [m.content for m in session.messages] == ["hello", CHAT_REPLY, "again", CHAT_REPLY]


def test_second_turn_computes_only_what_is_new(scripted_engine: Engine) -> None:
    session = Session(scripted_engine, system="A rather long system prompt. " * 8)
    say(session, "hello")
    first = session.last_answer
    say(session, "again")
    second = session.last_answer
    assert first is not None and second is not None
    assert first.n_reused == 0
    assert second.n_reused == first.n_prompt + first.n_out
    assert second.ttft_s and second.decode_tps and second.finish_reason == "stop"


def test_old_turns_are_dropped_and_the_system_prompt_stays(scripted_engine: Engine) -> None:
    session = Session(scripted_engine, system="SYSTEM")
    dropped = 0
    for i in range(60):
        assert say(session, f"question {i} " + "word " * 10) == CHAT_REPLY
        assert session.last_answer is not None
        dropped += session.last_answer.n_dropped
        assert session.last_answer.n_prompt < scripted_engine.n_ctx
    assert dropped > 0 and len(session.messages) + dropped == 120
    assert session.messages[0].role == "user", "whole turns are dropped"
    assert session.messages[-2].content.startswith("question 59")
    rendered = scripted_engine.render([Message("system", "SYSTEM"), *session.messages])
    assert "SYSTEM" in scripted_engine.detokenize(rendered)


def test_trimming_leaves_room_for_turns_that_reuse_the_cache(scripted_engine: Engine) -> None:
    session = Session(scripted_engine)
    cold = 0
    for i in range(60):
        say(session, f"question {i} " + "word " * 10)
        assert session.last_answer is not None
        cold += session.last_answer.n_reused == 0 and i > 0
    assert cold <= 10


def test_question_larger_than_the_context(scripted_engine: Engine) -> None:
    session = Session(scripted_engine, system="S")
    say(session, "hello")
    before = list(session.messages)
    with pytest.raises(InputError, match="1024"):
        say(session, "x" * 3000)
    assert session.messages == before


def test_stopped_answers_are_kept_as_far_as_they_came(scripted_engine: Engine) -> None:
    session = Session(scripted_engine)
    heard: list[TokenEvent] = []
    for event in session.ask("hello", stop=lambda: len(heard) >= 2):
        heard.append(event)
    assert session.messages[-1] == Message("assistant", "Hi")
    stream = session.ask("again")
    next(stream)
    assert isinstance(stream, Iterator)
    stream.close()  # type: ignore[attr-defined]
    assert session.messages[-1] == Message("assistant", "H")
    list(session.ask("never heard", stop=lambda: True))
    assert len(session.messages) == 4, "a turn without a word is no turn"


def test_reset(scripted_engine: Engine) -> None:
    session = Session(scripted_engine, system="S")
    say(session, "hello")
    session.reset()
    assert session.messages == [] and session.system == "S"
    say(session, "hello")
    assert session.last_answer is not None and session.last_answer.n_reused == 0


# ---- save and load ------------------------------------------------------------------------------


def test_saved_session_goes_on_without_computing_again(
    engine_name: str, models: Models, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    engine = opened(engine_name, models.random)
    session = Session(engine, system="S", states=StateStore(tmp_path / "states", "m", {}))
    say(session, "hello", max_tokens=20, ignore_eos=True)
    session.save(path, state=True)
    expected = say(session, "and now?", max_tokens=20, ignore_eos=True)
    reused = session.last_answer.n_reused if session.last_answer else 0
    engine.close()
    fresh = opened(engine_name, models.random)
    restored = Session(fresh, states=StateStore(tmp_path / "states", "m", {}))
    can_save = fresh.describe().details["can_save_prefix"]
    assert ("restored" if can_save else "no saved state") in restored.load(path)
    assert restored.system == "S" and len(restored.messages) == 2
    assert say(restored, "and now?", max_tokens=20, ignore_eos=True) == expected
    assert restored.last_answer is not None and reused > 0
    assert restored.last_answer.n_reused == (reused if can_save else 0)
    fresh.close()


def test_damaged_state_is_said_and_not_used(scripted_engine: Engine, tmp_path: Path) -> None:
    path, states = tmp_path / "talk.json", StateStore(tmp_path / "states", "m", {})
    session = Session(scripted_engine, states=states)
    say(session, "hello, how are you today?")
    state = session.save(path, state=True)
    if not scripted_engine.describe().details["can_save_prefix"]:
        assert state is None and "no saved state" in session.load(path)
        return
    assert state is not None
    data = state.read_bytes()
    state.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert "no saved state" in session.load(path)
    assert [problem for problem in session.problems if "sha256" in problem]
    assert say(session, "again") == CHAT_REPLY
    assert not state.exists(), "what is damaged is removed"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"kind": "boardfit-session", "schema": 2, "system": null, "messages": []}',
        b'{"kind": "boardfit-session", "schema": 1, "system": 5, "messages": []}',
        b'{"kind": "boardfit-session", "schema": 1, "system": null, "messages": [{"role": "system",'
        b' "content": "x"}]}',
        b'{"kind": "boardfit-session", "schema": 1, "system": null, "messages": [{"role": "user",'
        b' "content": 1}]}',
    ],
)
def test_what_is_no_session_is_refused(
    scripted_engine: Engine, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    session = Session(scripted_engine)
    say(session, "hello")
    before = list(session.messages)
    with pytest.raises(InputError):
        session.load(path)
    assert session.messages == before
    with pytest.raises(InputError, match="left alone"):
        session.save(path)
    assert path.read_bytes() == content


def test_save_is_readable_json_and_may_be_repeated(scripted_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    session = Session(scripted_engine)
    say(session, "hello")
    session.save(path)
    session.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["messages"][1] == {"role": "assistant", "content": CHAT_REPLY}
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]


def test_summary_formulas() -> None:
    events = tuple(TokenEvent(1, "a", t * 10**9) for t in (3, 4, 6))
    trace = Trace(
        request_start_ns=10**9,
        n_prompt=30,
        n_reused=10,
        prefill_end_ns=2 * 10**9,
        events=(*events, TokenEvent(None, "", 7 * 10**9, "stop")),
        request_end_ns=8 * 10**9,
    )
    start = StreamStart(30, 10, t_start_ns=15 * 10**8, t_prefill_end_ns=2 * 10**9)
    answer = summarize(trace, start)
    assert (answer.ttft_s, answer.prefill_tps, answer.total_s) == (2.0, 40.0, 7.0)
    assert summarize(trace, None).prefill_tps is None
    assert answer.decode_tps == pytest.approx(2 / 3)
    assert (answer.n_out, answer.text, answer.finish_reason) == (3, "aaa", "stop")
