"""Prefixes of several conversations in one context: computed once, and never mixed up."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_many
from boardfit.converters.source.resolve import open_model
from boardfit.edge.chat.session import Session
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.llama.engine import LlamaCppEngine
from boardfit.edge.engines.llama.estimate import cache_bytes_per_token, shelf_bytes, state_bytes
from boardfit.edge.engines.settings import CHAT_MARKS
from boardfit.edge.files.gguf import read_header
from boardfit.edge.states import StateStore
from boardfit.edge.types import GenerationConfig, Message, TokenEvent
from tests.edge.engines import tiny_gguf
from tests.edge.engines.llama.hybrids import CONFIGS, write_hybrid

pytestmark = pytest.mark.engine

SYSTEM = "You are the assistant of a small board and you answer in one sentence. " * 20
SHORT = GenerationConfig(max_tokens=12, ignore_eos=True)


def opened(model: Path, **changes: Any) -> LlamaCppEngine:
    given = {"n_threads": 1, "prefill_chunk": 64, "n_shelves": 4, **changes}
    engine = open_engine("llama_cpp", model, EngineSettings(**given))
    assert isinstance(engine, LlamaCppEngine)
    return engine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.random_llama(tmp_path_factory.mktemp("plain") / "model.gguf", n_ctx=4096)


@pytest.fixture(scope="module", params=["llama", "gemma3", "mamba", *CONFIGS])
def any_memory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in CONFIGS:
        return write_hybrid(folder, request.param)
    make = getattr(tiny_gguf, f"random_{request.param}")
    wide = {"window": 256} if request.param == "gemma3" else {}
    path: Path = make(folder / "model.gguf", n_ctx=4096, **wide)
    return path


@dataclass
class Talk:
    """A conversation that counts what is computed for it."""

    engine: LlamaCppEngine
    system: str
    n_computed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Session(self.engine, system=self.system)

    def ask(self, text: str, config: GenerationConfig = SHORT) -> str:
        said = "".join(event.text for event in self.session.ask(text, config))
        answer = self.session.last_answer
        assert answer is not None
        self.n_computed.append(answer.n_prompt - answer.n_reused)
        return said


def test_one_system_prompt_is_read_once_for_all(any_memory: Path) -> None:
    with opened(any_memory) as engine:
        talks = [Talk(engine, SYSTEM) for _ in range(4)]
        said = [talk.ask(f"question {i}") for i, talk in enumerate(talks)]
        first, *others = [talk.n_computed[0] for talk in talks]
        assert first > 900 and max(others) < 60
    with opened(any_memory, n_shelves=0) as alone:
        assert Talk(alone, SYSTEM).ask("question 3") == said[3]


def test_interleaved_conversations_keep_what_is_theirs(plain: Path) -> None:
    with opened(plain) as engine:
        talks = [Talk(engine, f"{name}. {SYSTEM[:800]}") for name in ("Ann", "Ben", "Cy")]
        for turn in range(3):
            for talk in talks:
                talk.ask(f"question {turn}")
        for talk in talks:
            assert talk.n_computed[0] > 800 and max(talk.n_computed[1:]) < 100


def test_the_second_turn_of_a_hybrid_reads_little_again(any_memory: Path) -> None:
    """Their history leaves thoughts out, so that no turn begins as the last one ended."""
    with opened(any_memory) as engine:
        talk, other = Talk(engine, SYSTEM), Talk(engine, SYSTEM)
        talk.ask("first question")
        other.ask("somebody else")
        before = engine.render([*talk.session._head(), *talk.session.messages])
        talk.ask("second question")
        start = engine.last_start
        assert start is not None and len(before) - start.n_reused < 0.05 * len(before)


@pytest.mark.parametrize("kind", ["mamba", *CONFIGS])
def test_a_chat_with_a_recurrent_model_reads_little_again(tmp_path: Path, kind: str) -> None:
    model = (
        write_hybrid(tmp_path, kind)
        if kind in CONFIGS
        else tiny_gguf.random_mamba(tmp_path / "model.gguf", n_ctx=4096)
    )
    with opened(model, n_shelves=0, n_marks=CHAT_MARKS) as engine:
        talk = Talk(engine, SYSTEM)
        for i in range(4):
            talk.ask(f"question {i}")
        assert talk.n_computed[0] > 900 and max(talk.n_computed[1:]) < 110


def test_what_one_more_sequence_takes_is_not_more_than_was_counted(any_memory: Path) -> None:
    header = read_header(any_memory)
    with opened(any_memory, n_ctx=512) as engine:
        list(engine.stream([5], GenerationConfig(max_tokens=1, ignore_eos=True)))
        n_bytes = engine._lease.get()._state_bytes()
    one_token = cache_bytes_per_token(any_memory, header, "f16")
    if state_bytes(header):
        assert 0 < n_bytes - 1.2 * one_token - 500 < state_bytes(header) < 4 * n_bytes
    assert shelf_bytes(any_memory, header, EngineSettings()) >= state_bytes(header)


def test_a_full_cache_makes_room(plain: Path) -> None:
    """Each takes two fifths: the third conversation pushes the first out. No answer fails."""
    with opened(plain, n_ctx=1536) as engine:
        talks = [Talk(engine, f"{i} {SYSTEM[:560]}") for i in range(3)]
        said = [[talk.ask("question"), talk.ask("and then?")] for talk in talks]
        again = Talk(engine, talks[0].system)
        assert again.ask("question") == said[0][0]
        long = Talk(engine, SYSTEM)
        long.ask("question", GenerationConfig(max_tokens=100, ignore_eos=True))
        assert long.session.last_answer is not None and long.session.last_answer.n_out == 100
        check_memory(engine)


def test_shelves_fit_the_memory_that_is_free(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from boardfit.edge.engines.llama import ready

    monkeypatch.setattr(ready, "SHELF_BYTES", 3 * 8 * tiny_gguf.N_VOCAB)
    with opened(plain, n_shelves=6) as engine:
        assert engine.describe().details["n_shelves"] == 3


def test_a_reset_forgets_all(any_memory: Path) -> None:
    with opened(any_memory) as engine:
        Talk(engine, SYSTEM).ask("question")
        Talk(engine, "Another.").ask("question")
        engine.reset()
        talk = Talk(engine, SYSTEM)
        talk.ask("question")
        assert talk.n_computed[0] > 900


def test_a_state_is_restored_beside_other_conversations(any_memory: Path, tmp_path: Path) -> None:
    """And saved from the shelf, where the memory cannot be cut back to it."""
    store = StateStore(tmp_path, "m", {}, read_bytes_per_s=1e12)
    with opened(any_memory) as engine:
        session = Session(engine, system=SYSTEM, states=store)
        expected = [event.token_id for event in session.ask("question", SHORT)]
        assert store.save(engine, session.system_prefix()) is not None
    with opened(any_memory) as engine:
        other = Talk(engine, "Another. " + SYSTEM[:300])
        other.ask("question")
        session = Session(engine, system=SYSTEM, states=store)
        assert [event.token_id for event in session.ask("question", SHORT)] == expected
        assert session.last_answer is not None and session.last_answer.n_reused > 900
        other.ask("and then?")
        assert other.n_computed[1] < 100
        check_memory(engine)


def test_a_state_of_somebody_else_is_not_stored(plain: Path, tmp_path: Path) -> None:
    store = StateStore(tmp_path, "m", {})
    with opened(plain) as engine:
        mine = Session(engine, system=SYSTEM, states=store)
        list(mine.ask("question", SHORT))
        Talk(engine, "Another. " + SYSTEM).ask("question")
        assert engine.reusable([*mine.system_prefix(), 0]) > 900
        assert store.save(engine, mine.system_prefix()) is None
        assert not list(tmp_path.glob("*.kv"))


# ---- no token of one conversation in another ----------------------------------------------------


def check_memory(engine: LlamaCppEngine) -> None:
    """What Python takes to be cached is what the library holds, for every sequence."""
    context = engine._lease.get().context
    lib, memory = context.lib, context.memory
    running = {each.seq: each.cached for each in context.sequences}
    kept = {**running, **context.shelves._kept}
    for seq in range(int(lib.llama_n_seq_max(context.handle))):
        last = lib.llama_memory_seq_pos_max(memory, seq)
        assert last == len(kept.get(seq, [])) - 1, f"sequence {seq}"


@dataclass
class World:
    """An engine with shelves, and what each prompt is answered by an engine without any."""

    engine: LlamaCppEngine
    prompts: list[list[int]]
    answers: list[list[int | None]]

    def step(self, which: int, stop_after: int | None) -> None:
        """Answer a prompt, or be stopped after some looks of the engine."""
        looks = iter(range(stop_after if stop_after is not None else 10**9))
        events = self.engine.stream(
            self.prompts[which], SHORT_SAID, lambda: next(looks, None) is None
        )
        said = [event.token_id for event in events if event.token_id is not None]
        expected = self.answers[which]
        assert said == expected[: len(said)], f"prompt {which}"
        assert stop_after is not None or said == expected


SHORT_SAID = GenerationConfig(max_tokens=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Conversations of the sample model that share heads of several lengths. The pool holds a
    third of them.
    """
    path = tmp_path_factory.mktemp("sample") / "sample.gguf"
    list(write_many(open_model("sample"), [(load_recipe("q8_0"), path)]))
    questions = ("How warm is the board?", "What is the humidity?", "Who are you?")
    systems = ("You are brief.", "You are brief. The canary is red.", "The canary is blue.", "")
    with opened(path, n_shelves=0, n_ctx=512) as alone, opened(path, n_ctx=512) as engine:
        prompts = []
        for system in systems:
            head = [Message("system", system)] if system else []
            for question in questions:
                asked = [*head, Message("user", question)]
                told = [*asked, Message("assistant", "It is 61 degrees."), Message("user", "Why?")]
                prompts += [alone.render(asked), alone.render(told)]
        answers = []
        for prompt in prompts:
            alone.reset()
            answers.append([e.token_id for e in alone.stream(prompt, SHORT_SAID) if e.token_id])
        yield World(engine, prompts, answers)


STEPS = st.lists(
    st.tuples(st.integers(0, 23), st.none() | st.integers(0, 12)), min_size=1, max_size=12
)


@given(steps=STEPS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_conversations_never_mix(world: World, steps: list[tuple[int, int | None]]) -> None:
    for which, stop_after in steps:
        world.step(which, stop_after)
    check_memory(world.engine)


@pytest.fixture(scope="module")
def flock(world: World) -> Iterator[World]:
    """The same, with slots for three answers at once."""
    path = world.engine._path
    with opened(path.path, n_ctx=512, n_slots=3) as engine:
        yield World(engine, world.prompts, world.answers)


def play(flock: World, moves: list[tuple[str, int]]) -> None:
    """Begin, ask on and stop answers in any order. Each is what the engine says alone."""
    config = dataclasses.replace(SHORT_SAID, ticks=True)
    streams: list[tuple[int, list[int], list[int], Iterator[TokenEvent]]] = []
    for move, n in moves:
        if move == "begin" and len(streams) < 5:  # more than there are slots
            stopped: list[int] = []
            tokens = flock.prompts[n % 24]
            events = flock.engine.stream(tokens, config, lambda stopped=stopped: bool(stopped))
            streams.append((n % 24, stopped, [], events))
        elif streams:
            which, stopped, said, events = streams[n % len(streams)]
            if move == "stop":
                stopped.append(1)
            event = next(events, None)
            if event is not None and event.token_id is not None:
                said.append(event.token_id)
            if event is None:
                del streams[n % len(streams)]
                assert stopped or said == flock.answers[which], f"prompt {which}"
            assert said == flock.answers[which][: len(said)], f"prompt {which}"
    for which, stopped, said, events in streams:
        said += [event.token_id for event in events if event.token_id is not None]
        assert said == flock.answers[which][: len(said)], f"prompt {which}"
        assert stopped or said == flock.answers[which]
    check_memory(flock.engine)


MOVES = st.lists(
    st.tuples(st.sampled_from(["begin", "ask", "ask", "ask", "stop"]), st.integers(0, 23)),
    min_size=1, max_size=60,
)  # fmt: skip


@given(moves=MOVES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_at_once_are_those_alone(flock: World, moves: list[tuple[str, int]]) -> None:
    play(flock, moves)


def test_answers_at_once_share_their_steps(flock: World) -> None:
    before = flock.engine.n_shared
    play(flock, [*(("begin", i) for i in (0, 7, 12)), *(("ask", i % 3) for i in range(40))])
    assert flock.engine.n_shared > before


def test_every_round_gives_each_a_token(plain: Path) -> None:
    """Beside a prompt that is read, too: then no step leaves those out that wait for a token."""
    with opened(plain, n_slots=3) as engine:
        config = GenerationConfig(max_tokens=30, ignore_eos=True, ticks=True)
        reader = engine.stream([5 + i % 200 for i in range(1500)], config)
        next(reader)
        others = [engine.stream([5 + i, 9], config) for i in range(2)]
        while any(next(other).is_tick for other in others):
            next(reader)
        for _ in range(8):
            next(reader)
            assert not any(next(other).is_tick for other in others)


def test_answers_that_do_not_fit_together_wait(plain: Path) -> None:
    """Three that take half of the cells each: the newest reads its prompt again later."""
    with opened(plain, n_ctx=256, n_slots=3) as engine:
        prompts = [[5 + i, *range(10, 120)] for i in range(3)]
        config = dataclasses.replace(SHORT, ticks=True)
        alone = [list(engine.stream(prompt, config)) for prompt in prompts]
        streams = [engine.stream(prompt, config) for prompt in prompts]
        said: list[list[int | None]] = [[], [], []]
        for _ in range(200):
            for i, stream in enumerate(streams):
                said[i] += [e.token_id for e in (next(stream, None),) if e and not e.is_tick]
        for told, events in zip(said, alone, strict=True):
            assert told == [event.token_id for event in events if not event.is_tick]
        check_memory(engine)


@pytest.mark.slow
def test_ten_thousand_interleavings(world: World) -> None:
    chance = random.Random(7)
    for i in range(10_000):
        world.step(chance.randrange(24), chance.choice([None, None, chance.randrange(13)]))
        if i % 100 == 0:
            check_memory(world.engine)
