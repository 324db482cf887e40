"""What a restart costs with states kept, and that no answer differs by one token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.chat.session import Session
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.deadline import Deadline
from boardfit.edge.deadline.time_model import Prior, TimeModel
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.kv_state import MAGIC, mapped_state, write_state
from boardfit.edge.errors import InputError
from boardfit.edge.states import StateStore
from boardfit.edge.states.store import entries
from boardfit.edge.types import GenerationConfig
from tests.edge.engines import tiny_gguf

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[3]
SYSTEM = "You are the assistant of a small board and you answer in one sentence. " * 8
CONFIG = GenerationConfig(max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its system prompt takes more than the 20 ms that are worth a file."""
    path = tmp_path_factory.mktemp("states") / "model.gguf"
    return tiny_gguf.random_llama(path, n_ctx=2048, n_embd=256, n_layer=4, n_ff=1024)


def states_in(folder: Path) -> StateStore:
    return StateStore(folder, "m", {}, read_bytes_per_s=1e12)


@contextmanager
def session_on(model: Path, folder: Path | None, **changes: Any) -> Iterator[Session]:
    """As a process that starts anew."""
    settings = EngineSettings(n_threads=1)
    engine = open_engine("llama_cpp", model, settings.replace(**changes))
    yield Session(engine, system=SYSTEM, states=states_in(folder) if folder else None)
    engine.close()


def said(session: Session, text: str = "hello") -> list[int | None]:
    return [event.token_id for event in session.ask(text, CONFIG)]


def reused(session: Session) -> int:
    assert session.last_answer is not None
    return session.last_answer.n_reused


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """With the state of the system prompt in it."""
    with session_on(model, tmp_path / "states") as session:
        said(session)
        assert session.store_prefix()
    return tmp_path / "states"


def test_first_turn_after_a_restart_computes_the_question_only(model: Path, folder: Path) -> None:
    with session_on(model, None) as cold:
        expected = [said(cold), said(cold, "and then?")]
        assert reused(cold) > 0
    with session_on(model, folder) as session:
        assert session.prepare().n_tokens > 500
        assert [said(session), said(session, "and then?")] == expected
    with session_on(model, folder) as session:  # without being prepared
        assert said(session) == expected[0] and reused(session) > 500
        session.reset()
        assert said(session) == expected[0] and reused(session) > 500, "nor after a reset"
    with session_on(model, folder) as session:
        session.system = "Something else."
        assert session.prepare().n_tokens == 0 and said(session) and reused(session) == 0


def test_storing_leaves_the_conversation_where_it_was(model: Path, tmp_path: Path) -> None:
    with session_on(model, None) as plain:
        said(plain)
        expected, n_reused = said(plain, "and then?"), reused(plain)
    with session_on(model, tmp_path) as session:
        said(session)
        assert session.store_prefix() and not session.store_prefix(), "once is enough"
        assert said(session, "and then?") == expected and reused(session) == n_reused > 500
        assert [path.suffix for path in tmp_path.iterdir()] == [".kv"], "nothing else is left"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def edited(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def of_another_build(path: Path) -> None:
    """Whole, with a right hash, by an engine that calls itself 0.0.1."""
    data = path.read_bytes()
    length = int.from_bytes(data[-len(MAGIC) - 4 : -len(MAGIC)], "little")
    footer = json.loads(data[-len(MAGIC) - 4 - length : -len(MAGIC) - 4])
    identity = {k: v for k, v in footer.items() if k not in ("n_tokens", "state_bytes", "mac")}
    with mapped_state(path, identity, 4096) as (tokens, state):
        content = bytes(state)
    identity["build"] = "0.0.1"
    write_state(path, identity, tokens, len(content), lambda target: target.write(content))


def grown(path: Path) -> None:
    """A right hash over a state that says it holds more than it does."""
    with path.open("r+b") as file:
        file.write(b"\xff" * 64)


@pytest.mark.parametrize("damage", [truncated, edited, of_another_build, grown])
def test_a_bad_state_costs_one_line_and_nothing_else(
    model: Path, folder: Path, damage: Callable[[Path], None]
) -> None:
    with session_on(model, None) as cold:
        expected = said(cold)
    (entry,) = entries(folder)
    damage(entry.path)
    with session_on(model, folder) as session:
        assert said(session) == expected and reused(session) == 0
        # What has no footer any more is not even looked at.
        assert len(session.problems) == (damage is not truncated), session.problems
        assert session.store_prefix(), "and it is stored anew"
    with session_on(model, folder) as session:
        assert said(session) == expected and reused(session) > 500 and not session.problems


def test_a_state_that_the_library_refuses_is_no_crash(model: Path, folder: Path) -> None:
    """Everything right but what llama.cpp wrote itself."""
    (entry,) = entries(folder)
    data = entry.path.read_bytes()
    length = int.from_bytes(data[-len(MAGIC) - 4 : -len(MAGIC)], "little")
    footer = json.loads(data[-len(MAGIC) - 4 - length : -len(MAGIC) - 4])
    identity = {k: v for k, v in footer.items() if k not in ("n_tokens", "state_bytes", "mac")}
    with mapped_state(entry.path, identity, 4096) as (tokens, state):
        content = bytes(state)
    for wrong in (b"\xff" * len(content), content[:-4096], content[:64] + bytes(len(content) - 64)):
        write_state(entry.path, identity, tokens, len(wrong), lambda t, w=wrong: t.write(w))
        with session_on(model, folder) as session:
            assert said(session) and reused(session) == 0
            assert len(session.problems) == 1 and "could not load" in session.problems[0]


@pytest.mark.parametrize("kind", ["gemma3", "mamba"])
def test_memory_that_cannot_be_cut_is_computed_again(tmp_path: Path, kind: str) -> None:
    make = {"gemma3": tiny_gguf.random_gemma3, "mamba": tiny_gguf.random_mamba}[kind]
    model = make(tmp_path / "model.gguf")
    answers = []
    for _ in range(2):
        with session_on(model, tmp_path / "states") as session:
            session.prefixes.clear()
            answers.append((said(session), said(session, "more")))
            session.store_prefix()
    assert answers[0] == answers[1]


def test_a_budget_tells_what_was_restored(model: Path, folder: Path) -> None:
    with session_on(model, folder) as plain:
        times = TimeModel(Prior(prefill_tps=2000.0, decode_tps=500.0))
        deadline, budget = Deadline(plain.engine, times), Budget(within_s=60.0)
        session = Session(plain.engine, system=SYSTEM, states=plain.states, deadline=deadline)
        events = list(session.ask("hello", CONFIG, budget=budget))
        outcome = session.last_outcome
        assert events and outcome is not None
        (restored,) = [a for a in outcome.adjustments if a.kind == "restored"]
        assert restored.gain_s > 0 and "tokens" in restored.cost
        list(session.ask("more", CONFIG, budget=budget))
        assert session.last_outcome is not None
        assert [a.kind for a in session.last_outcome.adjustments] == ["reused"]


def test_a_template_without_a_system_role(tmp_path: Path) -> None:
    refusing = tiny_gguf.TEMPLATE.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}",
    )
    model = tiny_gguf.random_llama(tmp_path / "model.gguf", template=refusing)
    with session_on(model, tmp_path / "states") as session:
        assert session.prepare().n_tokens == 0 and not session.store_prefix()
        with pytest.raises(InputError, match="System role not supported"):
            said(session)
        session.system = None
        assert said(session) and not session.store_prefix()


# ---- conversations ------------------------------------------------------------------------------


def test_a_conversation_goes_on_after_a_restart(model: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with session_on(model, folder) as session:
        said(session)
        first = session.save(path, state=True)
        expected = said(session, "and then?")
        second = session.save(path, state=True)
        last, held = said(session, "the end?"), reused(session)
    assert first is not None and second is not None
    assert second.exists() and not first.exists(), "the same conversation is not kept twice"
    assert len(entries(folder)) == 2, "nor does it push out the system prompt"
    with session_on(model, folder) as session:
        assert "tokens restored" in session.load(path) and not session.problems
        assert said(session, "the end?") == last and reused(session) == held
        assert session.messages[3].content and expected
    edited(second)
    with session_on(model, folder) as session:
        assert "tokens restored" in session.load(path), "the system prompt's, that is"
        assert len(session.problems) == 1
        assert said(session, "the end?") == last and 500 < reused(session) < held


def test_conversations_are_bounded_and_the_oldest_goes(model: Path, tmp_path: Path) -> None:
    with session_on(model, tmp_path / "states") as session:
        assert session.states is not None
        made = []
        for i in range(4):
            session.reset()
            said(session, f"{i} question")
            made.append(session.save(tmp_path / f"{i}.json", state=True))
            assert made[i] is not None
            os.utime(made[i], (i, i))  # file systems round times
            if i == 0:
                session.states.limit_bytes = 2 * made[0].stat().st_size + 10_000
        # Which of the older two stays depends on which the last one's prefix was read from.
        kept = [path.exists() for path in made if path]
        assert sum(kept) == 2 and kept[3] and not kept[0]


# ---- commands -----------------------------------------------------------------------------------


def edge(*arguments: object, typed: str = "") -> str:
    command = [sys.executable, "-m", "boardfit", *map(str, arguments)]
    done = subprocess.run(
        command, input=typed, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_chat_and_states(model: Path, tmp_path: Path) -> None:
    run = ("run", model, "hello", "--system", SYSTEM, "--threads", 1, "--max-tokens", 8, "--json")
    records = [json.loads(edge(*run)) for _ in range(2)]
    assert records[0]["n_reused"] == 0 and records[1]["n_reused"] > 500
    assert records[0]["text"] == records[1]["text"]
    talk = tmp_path / "talk.json"
    chat = ("chat", model, "--system", SYSTEM, "--threads", 1, "--max-tokens", 8, "--session", talk)
    edge(*chat, typed="hello\n")
    said = edge(*chat, typed="and then?\n/stats\n")
    assert len(json.loads(talk.read_text(encoding="utf-8"))["messages"]) == 4
    n_prompt, n_reused = said.split("prompt ")[1].split()[0], said.split("tokens, ")[1].split()[0]
    assert int(n_prompt) - 60 < int(n_reused) < int(n_prompt)
    listed = json.loads(edge("states", "--json"))
    assert {row["engine"] for row in listed["states"]} == {"llama_cpp"}
    assert sorted(row["n_tokens"] for row in listed["states"])[0] > 500
    assert "freed" in edge("states", model, "--clear") and "no states" in edge("states")
