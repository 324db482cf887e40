"""What every engine owes its callers (boardfit.edge.types.Engine), checked on every installed
engine.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from boardfit.edge.engines import ENGINES, EngineSettings, open_engine
from boardfit.edge.errors import (
    DoesNotFitError,
    EngineError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UnsupportedModelError,
    UsageError,
)
from boardfit.edge.types import Engine, GenerationConfig, Message, TokenEvent
from tests.edge.engines import tiny_gguf
from tests.edge.engines.conftest import CHAT_REPLY, REPLY, Models, opened
from tests.edge.engines.tiny_gguf import BOS, IM_END, IM_START

pytestmark = pytest.mark.engine


@pytest.fixture
def models(engine_models: Models) -> Models:
    """In the format of the engine under test."""
    return engine_models


LONG = "The quick brown fox jumps over the lazy dog. " * 12


def ids(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


def text(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def greedy(engine: Engine, tokens: list[int], n: int = 24) -> list[int]:
    return ids(list(engine.stream(tokens, GenerationConfig(max_tokens=n, ignore_eos=True))))


def existing(models: Models, kind: str) -> Path:
    """The model of that kind, where the engine's format has one."""
    path: Path | None = getattr(models, kind)
    if path is None:
        pytest.skip(f"the tiny models of this format include no {kind} one")
    return path


# ---- text ---------------------------------------------------------------------------------------


def test_satisfies_the_protocol(random_engine: Engine) -> None:
    assert isinstance(random_engine, Engine)


@pytest.mark.parametrize(
    "sample", ["", "hello", " two  spaces\n", "žluťoučký 😀 \u200d", "\x00\x1b["]
)
def test_tokens_round_trip(random_engine: Engine, sample: str) -> None:
    tokens = random_engine.tokenize(sample)
    assert random_engine.detokenize(tokens) == sample
    assert random_engine.count(sample) == len(tokens)


def test_special_tokens_are_parsed_only_when_asked(random_engine: Engine) -> None:
    assert random_engine.tokenize("<|im_end|>", special=True) == [IM_END]
    assert IM_END not in random_engine.tokenize("<|im_end|>")
    assert random_engine.detokenize([IM_START, *random_engine.tokenize("ok"), IM_END]) == "ok"


def test_render_writes_the_beginning_once(random_engine: Engine) -> None:
    tokens = random_engine.render([Message("system", "s"), Message("user", "hello")])
    assert tokens[0] == BOS and tokens.count(BOS) == 1
    assert tokens.count(IM_START) == 3 and tokens.count(IM_END) == 2
    closed = random_engine.render([Message("user", "hello")], generate=False)
    assert closed.count(IM_START) == closed.count(IM_END) == 1


# ---- streaming ----------------------------------------------------------------------------------


def test_only_the_last_event_has_a_reason_and_times_do_not_fall(random_engine: Engine) -> None:
    events = list(random_engine.stream([BOS, 5], GenerationConfig(max_tokens=9, ignore_eos=True)))
    assert [e.finish_reason for e in events] == [None] * 8 + ["length"]
    times = [e.t_ns for e in events]
    assert times == sorted(times)
    start = random_engine.last_start
    assert start is not None and start.n_prompt == 2 and start.n_reused == 0
    assert start.t_start_ns < start.t_prefill_end_ns <= times[0] <= time.monotonic_ns()


def test_characters_come_whole_and_the_turn_ends(scripted_engine: Engine) -> None:
    events = list(scripted_engine.stream([BOS, ord("x")], GenerationConfig()))
    assert text(events) == REPLY
    assert [e.text for e in events if e.text] == list(REPLY)
    assert events[-1].token_id is None and events[-1].finish_reason == "stop"
    assert len(ids(events)) == len(REPLY.encode())


def test_ignore_eos_gives_the_exact_count(scripted_engine: Engine) -> None:
    config = GenerationConfig(max_tokens=40, ignore_eos=True)
    events = list(scripted_engine.stream([BOS, ord("x")], config))
    assert len(ids(events)) == 40 and events[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("€",), "a"),
        (("😀é",), "a€"),
        (("😀!", "é"), "a€😀"),
        (("nothing",), REPLY),
        (("!?",), REPLY),
    ],
)
def test_stop_strings_across_tokens(
    scripted_engine: Engine, stop: tuple[str, ...], expected: str
) -> None:
    events = list(scripted_engine.stream([BOS, ord("x")], GenerationConfig(stop=stop)))
    assert text(events) == expected and events[-1].finish_reason == "stop"


def test_incomplete_character_at_the_end_is_replaced(scripted_engine: Engine) -> None:
    events = list(scripted_engine.stream([BOS, ord("x")], GenerationConfig(max_tokens=3)))
    assert text(events) == "a\ufffd" and events[-1].finish_reason == "length"


def test_full_context_ends_the_stream(engine_name: str, models: Models) -> None:
    engine = opened(engine_name, models.random, n_ctx=64)
    events = list(engine.stream([BOS] + [7] * 59, GenerationConfig(ignore_eos=True)))
    assert len(ids(events)) == engine.n_ctx - 60 + 1 and events[-1].finish_reason == "context"
    engine.close()


def test_prompt_must_fit_and_exist(random_engine: Engine) -> None:
    for bad in ([], [7] * random_engine.n_ctx, [-1], [10**6]):
        with pytest.raises(InputError):
            random_engine.stream(bad, GenerationConfig())


def test_seeds_repeat_and_differ(random_engine: Engine) -> None:
    def draw(seed: int) -> list[int]:
        config = GenerationConfig(max_tokens=16, temperature=1.5, seed=seed, ignore_eos=True)
        return ids(list(random_engine.stream([BOS, 9], config)))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_repeat_penalty_varies_the_answer(random_engine: Engine) -> None:
    plain = GenerationConfig(max_tokens=60, ignore_eos=True)
    penalized = dataclasses.replace(plain, repeat_penalty=10.0)
    loop = ids(list(random_engine.stream([BOS, 9], plain)))
    varied = ids(list(random_engine.stream([BOS, 9], penalized)))
    assert len(set(varied)) > len(set(loop))


# ---- KV reuse -----------------------------------------------------------------------------------


def test_same_tokens_cold_warm_and_in_any_chunk(engine_name: str, models: Models) -> None:
    engine = opened(engine_name, models.random)
    prompt = [BOS, *engine.tokenize(LONG)]
    cold = greedy(engine, prompt)
    assert engine.last_start is not None and engine.last_start.n_reused == 0
    assert greedy(engine, prompt) == cold
    assert engine.last_start.n_reused == len(prompt) - 1
    engine.reset()
    assert greedy(engine, prompt) == cold and engine.last_start.n_reused == 0
    engine.close()
    for chunk in (1, 7, 64):
        cut = opened(engine_name, models.random, prefill_chunk=chunk)
        assert greedy(cut, prompt) == cold, f"prefilled in steps of {chunk}"
        cut.close()


def test_common_prefix_is_reused_after_a_branch(random_engine: Engine) -> None:
    prompt = [BOS, *random_engine.tokenize(LONG)]
    other = [*prompt[:100], *random_engine.tokenize("Something else entirely.")]
    greedy(random_engine, prompt)
    branched = greedy(random_engine, other)
    start = random_engine.last_start
    assert start is not None and start.n_reused == 100
    random_engine.reset()
    assert greedy(random_engine, other) == branched


@pytest.mark.parametrize("kind", ["window", "recurrent"])
def test_memories_that_cannot_be_cut_start_over(
    engine_name: str, models: Models, kind: str
) -> None:
    # Small steps keep the window's cache small too: it has room for window + step.
    engine = opened(engine_name, existing(models, kind), n_batch=32, n_ubatch=32)
    prompt = [BOS, *engine.tokenize(LONG)]
    other = [*prompt[:60], *engine.tokenize("Something else.")]
    cold = greedy(engine, prompt)
    branched = greedy(engine, other)
    assert engine.last_start is not None and engine.last_start.n_reused == 0
    engine.reset()
    assert greedy(engine, other) == branched
    # Going on where the last stream ended needs no cut, whatever the memory.
    more = greedy(engine, [*other, *branched, 5], 4)
    assert engine.last_start.n_reused == len(other) + len(branched) - 1
    engine.reset()
    assert greedy(engine, [*other, *branched, 5], 4) == more
    assert greedy(engine, prompt) == cold
    engine.close()


def test_a_stream_goes_on_after_others(random_engine: Engine) -> None:
    """Others took its slot, in its prompt and between its tokens. It reads again what is gone."""
    prompt = [BOS, *random_engine.tokenize(LONG)]
    other = [BOS, *random_engine.tokenize("Something else entirely. " * 9)]
    expected = greedy(random_engine, other), greedy(random_engine, prompt)
    random_engine.reset()
    config = GenerationConfig(max_tokens=24, ignore_eos=True, ticks=True)
    said: list[TokenEvent] = []
    for i, event in enumerate(random_engine.stream(prompt, config, lambda: False)):
        said.append(event)
        if i in (0, 3, 8):
            assert greedy(random_engine, other) == expected[0]
    assert ids(said) == expected[1]


def test_a_stop_of_one_stream_ends_no_other(random_engine: Engine) -> None:
    prompt = [BOS, *random_engine.tokenize(LONG)]
    expected = greedy(random_engine, prompt[:200])
    stopped: list[int] = []
    config = GenerationConfig(max_tokens=24, ignore_eos=True, ticks=True)
    stream = random_engine.stream(prompt, config, lambda: bool(stopped))
    next(stream)
    stopped.append(1)
    time.sleep(0.1)  # its watcher has looked
    assert greedy(random_engine, prompt[:200]) == expected
    assert list(stream)[-1].finish_reason == "aborted"


# ---- saved prefixes -----------------------------------------------------------------------------


def lacks_saving(engine: Engine, path: Path) -> bool:
    """Whether the engine cannot save its cache, which it then says in plain words."""
    if engine.describe().details["can_save_prefix"]:
        return False
    with pytest.raises(UnsupportedModelError, match="saved KV state"):
        engine.save_prefix(path)
    engine.close()
    return True


@pytest.mark.parametrize("kind", ["random", "window", "recurrent"])
def test_restored_prefix_continues_identically(
    engine_name: str, models: Models, tmp_path: Path, kind: str
) -> None:
    path = existing(models, kind)
    engine = opened(engine_name, path)
    if lacks_saving(engine, tmp_path / "state"):
        return
    prompt = [BOS, *engine.tokenize(LONG)]
    said = greedy(engine, prompt)
    saved = engine.save_prefix(tmp_path / "state")
    expected = greedy(engine, [*prompt, *said, 5])
    engine.close()
    fresh = opened(engine_name, path)
    assert fresh.restore_prefix(tmp_path / "state") == saved == len(prompt) + len(said) - 1
    assert greedy(fresh, [*prompt, *said, 5]) == expected
    assert fresh.last_start is not None and fresh.last_start.n_reused == saved
    fresh.close()
    assert [p.name for p in tmp_path.iterdir()] == ["state"], "nothing half-written is left"


def flip(position: int) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1
        return bytes(changed)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        flip(3),
        flip(500),
        flip(-1),
        flip(-30),
        lambda d: d[:-40],
        lambda d: d[:10],
        lambda d: d + b"x",
    ],
)
def test_tampered_prefix_is_refused(
    random_engine: Engine, tmp_path: Path, edit: Callable[[bytes], bytes]
) -> None:
    if lacks_saving(random_engine, tmp_path / "state"):
        return
    prompt = [BOS, *random_engine.tokenize("hello there")]
    said = greedy(random_engine, prompt)
    path = tmp_path / "state"
    random_engine.save_prefix(path)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises((IntegrityError, InputError)):
        random_engine.restore_prefix(path)
    assert greedy(random_engine, prompt) == said


def test_prefix_of_another_context_or_model_is_refused(
    engine_name: str, models: Models, tmp_path: Path
) -> None:
    engine = opened(engine_name, models.random)
    if lacks_saving(engine, tmp_path / "state"):
        return
    greedy(engine, [BOS, 5, 6])
    engine.save_prefix(tmp_path / "state")
    engine.close()
    others: list[tuple[Path, dict[str, object]]] = [
        (models.random, {"n_ctx": 512}),
        (models.scripted, {}),
    ]
    if engine_name == "llama_cpp":  # the others' KV type is their file's
        others.append((models.random, {"kv_type": "q8_0"}))
    for path, changes in others:
        other = opened(engine_name, path, **changes)
        with pytest.raises(IntegrityError):
            other.restore_prefix(tmp_path / "state")
        other.close()


def test_empty_cache_has_nothing_to_save(random_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        random_engine.save_prefix(tmp_path / "state")


# ---- stopping -----------------------------------------------------------------------------------

# 50 ms is the promise, measured by hand on a quiet machine; tests share a busy one.
PATIENCE_S = 0.25


class StopAfter:
    """True from `delay_s` after the first question on; remembers when that was."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.due_s: float | None = None

    def __call__(self) -> bool:
        now = time.monotonic()
        if self.due_s is None:
            self.due_s = now + self.delay_s
        return now >= self.due_s


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_stop_is_honoured_during_prefill(engine_name: str, models: Models, delay_s: float) -> None:
    engine = opened(engine_name, models.heavy)
    stop = StopAfter(delay_s)
    events = list(engine.stream([BOS] + [7] * 4000, GenerationConfig(), stop))
    late_s = time.monotonic() - (stop.due_s or 0)
    assert [e.finish_reason for e in events] == ["aborted"] and events[0].token_id is None
    assert late_s < PATIENCE_S
    # What was computed before the stop is kept, and correct.
    engine.reset()
    prompt = [BOS, *engine.tokenize(LONG)]
    cold = greedy(engine, prompt, 4)
    engine.reset()
    list(engine.stream(prompt, GenerationConfig(), StopAfter(0.02)))
    assert greedy(engine, prompt, 4) == cold
    engine.close()


def test_stop_is_honoured_between_tokens(random_engine: Engine) -> None:
    events: list[TokenEvent] = []
    config = GenerationConfig(ignore_eos=True)
    for event in random_engine.stream([BOS, 5], config, lambda: len(events) >= 3):
        events.append(event)
    assert len(ids(events)) == 3 and events[-1].finish_reason == "aborted"


def test_error_in_stop_reaches_the_caller(engine_name: str, models: Models) -> None:
    def stop() -> bool:
        raise ZeroDivisionError

    engine = opened(engine_name, models.heavy)
    with pytest.raises(ZeroDivisionError):
        list(engine.stream([BOS] + [7] * 3000, GenerationConfig(), stop))
    assert len(greedy(engine, [BOS, 5], 3)) == 3
    engine.close()


def test_abandoned_stream_leaves_the_engine_usable(random_engine: Engine) -> None:
    config = GenerationConfig(ignore_eos=True)
    expected = greedy(random_engine, [BOS, 5], 8)
    stream = random_engine.stream([BOS, 5], config)
    said = [next(stream)]
    assert greedy(random_engine, [BOS, 5], 8) == expected
    said += [next(stream) for _ in range(7)]
    assert ids(said) == expected


# ---- life and death -----------------------------------------------------------------------------


def test_close_during_a_stream_on_another_thread(engine_name: str, models: Models) -> None:
    engine = opened(engine_name, models.heavy)
    outcome: list[object] = []

    def work() -> None:
        try:
            outcome.extend(engine.stream([BOS] + [7] * 4000, GenerationConfig()))
        except EngineError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    engine.close()
    thread.join(5)
    assert not thread.is_alive()
    last = outcome[-1]
    assert isinstance(last, EngineError) or getattr(last, "finish_reason", None) == "aborted"


def test_closed_engine_says_so(engine_name: str, models: Models) -> None:
    engine = opened(engine_name, models.random)
    stream = engine.stream([BOS, 5], GenerationConfig())
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.tokenize("x")
    with pytest.raises(EngineError, match="closed"):
        next(stream)


def test_a_stream_outlives_the_last_name_of_its_engine(engine_name: str, models: Models) -> None:
    with opened(engine_name, models.random) as engine:
        expected = greedy(engine, [BOS, 5], 6)
    engine = opened(engine_name, models.random)
    stream = engine.stream([BOS, 5], GenerationConfig(max_tokens=6, ignore_eos=True))
    first = next(stream)
    del engine
    gc.collect()
    assert ids([first, *stream]) == expected


def test_memory_is_given_back(engine_name: str, models: Models) -> None:
    def cycle() -> int:
        engine = opened(engine_name, models.heavy)
        greedy(engine, [BOS, 5], 2)
        engine.close()
        return anonymous_bytes()

    for _ in range(3):
        settled = cycle()
    grown = [cycle() for _ in range(17)][-1] - settled
    assert grown < 8 * 2**20, f"17 more cycles took {grown} bytes"


def anonymous_bytes() -> int:
    """What this process holds besides mapped files."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss) - int(getattr(memory, "shared", 0))


def test_describe(engine_name: str, models: Models) -> None:
    engine = opened(engine_name, models.random, n_ctx=512, kv_type="q8_0", n_batch=128)
    info = engine.describe()
    assert (info.name, info.n_ctx, info.n_threads) == (engine_name, 512, 1)
    assert info.version and info.build and info.quant
    if engine_name == "llama_cpp":
        assert (info.n_batch, info.kv_type) == (128, "q8_0")
    else:
        assert info.n_batch >= 1 and info.kv_type == "f32", "what the file was exported with"
    engine.close()


# ---- refusals before anything native runs -------------------------------------------------------


def refuse_native(monkeypatch: pytest.MonkeyPatch) -> None:
    from boardfit.edge.engines.litert import library as litert_library
    from boardfit.edge.engines.llama import library as llama_library

    def reached(*_arguments: object) -> None:
        raise AssertionError("the native library was reached")

    for module in (llama_library, litert_library):
        monkeypatch.setattr(module, "load_library", reached)


def test_a_token_that_appears_twice_is_refused_before_native_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp asserts that texts are unique, which would end this process."""
    path = tmp_path / "twice.gguf"
    tiny_gguf.random_llama(path)
    data = path.read_bytes()
    assert data.count(tiny_gguf.SPECIALS[0].encode()) >= 1
    twice = data.replace(b"<|pad|>", b"<|bos|>")
    path.write_bytes(twice)
    refuse_native(monkeypatch)
    with pytest.raises(UnsafeInputError, match="twice"):
        open_engine("llama_cpp", path)


HOSTILE = {
    "llama_cpp": b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 35,
    "litert": b"LITERTLM" + (1).to_bytes(4, "little") + b"\xff" * 500,
    "tflite": b"\x1c\0\0\0TFL3" + b"\xff" * 500,
    "onnx": b"\x08\x0a" + b"\xff" * 500,
}


def test_hostile_file_never_reaches_native_code(
    engine_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_native(monkeypatch)
    hostile = tmp_path / f"hostile{ENGINES[engine_name].formats[0]}"
    hostile.write_bytes(HOSTILE[engine_name])
    with pytest.raises(InputError):
        open_engine(engine_name, hostile)
    hostile.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(InputError):
        open_engine(engine_name, hostile)
    with pytest.raises(InputError):
        open_engine(engine_name, tmp_path / "absent")


def test_too_large_for_the_free_memory(
    engine_name: str, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EngineSettings(need_bytes=2**60)
    with monkeypatch.context() as patch:
        refuse_native(patch)
        with pytest.raises(DoesNotFitError) as caught:
            open_engine(engine_name, models.random, settings)
    assert caught.value.shortfall_bytes and caught.value.shortfall_bytes > 2**59
    open_engine(
        engine_name, models.random, dataclasses.replace(settings, check_memory=False)
    ).close()


def test_context_beyond_training_is_refused(engine_name: str, models: Models) -> None:
    with pytest.raises(UsageError, match="1024"):
        opened(engine_name, models.random, n_ctx=4096)


def test_progress_is_reported(engine_name: str, models: Models) -> None:
    seen: list[tuple[int, int]] = []
    open_engine(engine_name, models.heavy, progress=lambda d, t: seen.append((d, t))).close()
    assert seen and seen == sorted(seen) and seen[-1][0] == seen[-1][1]


def test_chat_reply(scripted_engine: Engine) -> None:
    tokens = scripted_engine.render([Message("user", "hello")])
    assert text(list(scripted_engine.stream(tokens, GenerationConfig()))) == CHAT_REPLY


def test_closing_while_others_count_is_safe(engine_name: str, models: Models) -> None:
    """Freed memory must never be read: every call either works or says that it is closed."""
    for _ in range(5):
        engine = opened(engine_name, models.random)
        outcomes: list[str] = []

        def count(engine: Engine = engine, outcomes: list[str] = outcomes) -> None:
            try:
                while True:
                    engine.count(LONG)
            except EngineError as error:
                outcomes.append(str(error))

        def talk(engine: Engine = engine, outcomes: list[str] = outcomes) -> None:
            try:
                while True:
                    list(engine.stream([BOS, 5], GenerationConfig(max_tokens=50, ignore_eos=True)))
            except EngineError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=work) for work in (count, talk)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        engine.close()
        for thread in threads:
            thread.join(5)
        assert len(outcomes) == 2 and all("closed" in outcome for outcome in outcomes)
