"""Guessing from the prompt: what is guessed, when it pays, and that it changes no answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.engines.lookup import N_GRAM, Gain, Guesser, Lookup, Sharing
from boardfit.edge.types import Engine, GenerationConfig
from tests.edge.engines.conftest import Models, opened

TOKENS = st.lists(st.integers(0, 3), max_size=60)


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_a_guess_is_what_followed_the_same_tokens_last(
    prompt: list[int], more: list[int], n: int
) -> None:
    lookup = Lookup(prompt)
    for token in more:
        lookup.append(token)
    text = [*prompt, *more]
    ends = text[-N_GRAM:]
    starts = [i for i in range(len(text) - N_GRAM) if text[i : i + N_GRAM] == ends]
    expected = []
    if len(text) >= N_GRAM and starts:
        after = starts[-1] + N_GRAM
        expected = text[after : after + n]
    assert lookup.guess(n) == expected


def gain_after(n_steps: int, n_right: int, guess_s: float, most: int = 8) -> Gain:
    gain = Gain(most)
    for _ in range(4):
        gain.plain(0.1)
    for _ in range(n_steps):
        n = gain.allows()
        if n:
            gain.guessed(n, min(n, n_right), guess_s)
    return gain


def test_guessing_goes_on_while_it_pays_and_grows() -> None:
    gain = gain_after(20, n_right=8, guess_s=0.15)
    assert gain.value is not None and gain.value > 3
    assert gain.allows() == 8


def test_guessing_stops_by_itself_when_it_loses() -> None:
    gain = Gain(8)
    for _ in range(4):
        gain.plain(0.1)
    guessed = 0
    for _ in range(1000):
        n = gain.allows()
        if n:
            guessed += 1
            gain.guessed(n, 0, 0.15)
    assert guessed < 40, "each pause is twice as long as the one before"


def test_nothing_is_guessed_before_plain_steps_were_timed() -> None:
    assert Gain(8).allows() == 0


@given(TOKENS, st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_the_cache_never_loses_a_right_token(prompt: list[int], answer: list[int]) -> None:
    """A model that says `answer`, whatever is guessed: cache and answer stay in step."""
    gain = Gain(6)
    for _ in range(3):
        gain.plain(1.0)
    guesser = Guesser(prompt, gain)
    cache: list[int] = list(prompt)
    said: list[int] = []
    while len(said) < len(answer):
        token = answer[len(said)]
        n_cached = len(cache) - guesser.n_left
        is_cached, n_wrong = guesser.check(token)
        if n_wrong:
            del cache[n_cached:]
        assert cache[: len(prompt) + len(said)] == [*prompt, *said]
        said.append(token)
        if not is_cached:
            guesses = guesser.guess(6)
            cache += [token, *guesses]
            guesser.stepped(guesses, 0.5)


def answers(engine: Engine, prompts: Sequence[str], config: GenerationConfig) -> list[list[int]]:
    found = []
    for prompt in prompts:
        stream = engine.stream(engine.prompt(prompt), config)
        found.append([event.token_id for event in stream if event.token_id is not None])
    return found


@pytest.mark.engine
@pytest.mark.parametrize("which", ["scripted", "random"])
def test_answers_are_those_of_plain_greedy_decoding(models: Models, which: str) -> None:
    prompts = [
        "Repeat: turn the kitchen light on, then turn the hall light off. Repeat: turn",
        "one two three four one two three four one two three",
        "set a timer for ten minutes, set a timer for ten minutes, set a timer",
        "What is the temperature of the board?",
    ]
    config = GenerationConfig(max_tokens=60, ignore_eos=True)
    path = getattr(models, which)
    plain, guessing = opened("llama_cpp", path), opened("llama_cpp", path, n_draft=8)
    try:
        expected = answers(plain, prompts, config)
        assert answers(guessing, prompts, config) == expected
        details = guessing.describe().details
        assert details["n_draft"] == 8
        if which == "scripted":  # it counts in circles
            assert details["n_draft_steps"] > 0, "it did guess"
        for n in (1, 2, 7):
            short = GenerationConfig(max_tokens=n, ignore_eos=True)
            assert [len(a) for a in answers(guessing, prompts, short)] == [n] * len(prompts)
    finally:
        plain.close()
        guessing.close()


@pytest.mark.engine
def test_guesses_stay_inside_the_context(models: Models) -> None:
    engine = opened("llama_cpp", models.scripted, n_ctx=64, n_draft=8)
    try:
        prompt = engine.prompt("one two one two one two")[:20]
        events = list(engine.stream(prompt, GenerationConfig(ignore_eos=True)))
        assert events[-1].finish_reason == "context"
        assert sum(event.token_id is not None for event in events) == 64 - len(prompt) + 1
    finally:
        engine.close()


@pytest.mark.engine
def test_a_model_that_cannot_go_back_does_not_guess(models: Models) -> None:
    for path in (models.recurrent, models.window):
        assert path is not None
        engine = opened("llama_cpp", path, n_draft=8)
        try:
            assert engine.describe().details["n_draft"] == 0
        finally:
            engine.close()


def test_sharing_pays_while_a_step_for_several_is_quicker_than_theirs() -> None:
    sharing = Sharing()
    assert sharing.pays(4) and sharing.slowdown(4) == 4.0, "not measured: tried, and not relied on"
    for _ in range(50):
        sharing.observe(1, 0.010)
        sharing.observe(2, 0.012)
        sharing.observe(4, 0.041)
    assert sharing.pays(2) and not sharing.pays(4)
    assert abs(sharing.slowdown(2) - 1.2) < 0.01 and sharing.slowdown(4) == 4.0
