"""Covering a prompt with steps of fixed lengths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.engines.litert.signature_decoder import StepChooser

LENGTHS = st.lists(st.integers(2, 600), max_size=4)
SECONDS = st.dictionaries(st.integers(1, 600), st.floats(1e-4, 10), max_size=4)


@given(LENGTHS, SECONDS, st.integers(1, 2000), st.integers(1, 2000), st.none() | st.just(0.04))
def test_a_step_exists_and_stays_in_the_cache(
    lengths: list[int], seconds: dict[int, float], n_left: int, room: int, budget_s: float | None
) -> None:
    steps = StepChooser(lengths)
    for length, taken in seconds.items():
        steps.measured(length, taken)
    n = steps.next_length(n_left, room, budget_s=budget_s)
    assert n == 1 or (n in lengths and n <= room)


@given(LENGTHS, st.integers(1, 3000))
def test_a_prompt_is_covered_in_steps_that_get_somewhere(lengths: list[int], n_prompt: int) -> None:
    steps, left, n_steps = StepChooser(lengths), n_prompt, 0
    while left > 0:
        n = steps.next_length(left, room=4000)
        left -= min(n, left)
        n_steps += 1
    assert n_steps <= n_prompt


def test_long_prompts_take_the_longest_step_and_its_rest_a_short_one() -> None:
    steps = StepChooser([8, 64, 512])
    assert steps.next_length(2000, 4096) == 512
    assert steps.next_length(100, 4096) == 64
    assert steps.next_length(3, 4096) == 8, "a step that is not full beats three single tokens"
    assert steps.next_length(1, 4096) == 1
    assert steps.next_length(2000, 100) == 64, "a step writes all of its positions"


def test_measurements_decide() -> None:
    steps = StepChooser([64])
    steps.measured(1, 0.001)
    steps.measured(64, 0.010)
    assert steps.next_length(9, 4096) == 1, "nine single tokens take 9 ms, a step takes 10"
    assert steps.next_length(11, 4096) == 64


def test_a_budget_keeps_steps_short_unless_there_is_no_choice() -> None:
    steps = StepChooser([32, 128, 512])
    assert steps.next_length(2000, 4096, budget_s=0.04) == 32, "untried: the smallest first"
    steps.measured(32, 0.010)
    assert steps.next_length(2000, 4096, budget_s=0.04) == 128, "may fit: 34 ms by its speed"
    steps.measured(128, 0.060)
    assert steps.next_length(2000, 4096, budget_s=0.04) == 32
    assert steps.next_length(2000, 4096) == 512, "nobody can stop: as fast as possible"
    slow = StepChooser([128])
    slow.measured(128, 1.0)
    slow.measured(1, 0.1)
    assert slow.next_length(2000, 4096, budget_s=0.04) == 128


def test_a_longest_step_can_be_asked_for() -> None:
    assert StepChooser([8, 64, 512], largest=100).next_length(2000, 4096) == 64
    assert StepChooser([64], largest=7).next_length(2000, 4096) == 1
