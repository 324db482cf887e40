"""Requests that a workload is made of: realistic lengths, no repetition, the same every time."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.deadline.soft_end import sentence_ends
from boardfit.edge.errors import UsageError
from boardfit.edge.tasks import find_task, load_tasks
from boardfit.edge.tasks.material import load_material
from boardfit.edge.tasks.requests import find_workload, make_requests


def count(text: str) -> int:
    """Tokens as ordinary tokenizers of English have them."""
    return -(-len(text) // 4)


@pytest.mark.parametrize("name", list(load_tasks()))
def test_lengths_are_those_of_the_task(name: str) -> None:
    task = find_task(name)
    requests = make_requests([task], 60, count)
    sizes = [request.n_prompt for request in requests]
    assert 0.75 * task.prompt.low <= min(sizes) and max(sizes) <= 1.1 * task.prompt.high + 6
    middle = task.prompt.quantile(0.5)
    assert statistics.median(sizes) == pytest.approx(middle, rel=0.2)
    assert max(sizes) > 1.6 * min(sizes), "requests of one length are no workload"
    assert all(task.answer.low <= r.n_answer <= task.answer.high for r in requests)


@pytest.mark.parametrize("name", list(load_tasks()))
def test_requests_differ_and_come_again_with_their_seed(name: str) -> None:
    task = find_task(name)
    texts = [r.message for r in make_requests([task], 40, count, seed=7)]
    assert len(set(texts)) == len(texts)
    assert texts == [r.message for r in make_requests([task], 40, count, seed=7)]
    assert texts != [r.message for r in make_requests([task], 40, count, seed=8)]
    assert texts[:10] == [r.message for r in make_requests([task], 10, count, seed=7)]


@given(
    st.sampled_from(["commands", "service", "manual", "sentences", "article"]),
    st.integers(0, 2**32),
    st.integers(1, 1500),
    st.integers(1, 6),
)
@settings(max_examples=60)
def test_any_text_has_no_sentence_twice_and_no_open_slot(
    name: str, seed: int, n_tokens: int, width: int
) -> None:
    text = load_material(name).compose(random.Random(seed), n_tokens, lambda t: len(t) // width)
    assert text.text.strip() and "{" not in text.text and "}" not in text.text
    ends = [0, *sentence_ends(text.text)]
    sentences = [text.text[a:b].strip() for a, b in pairwise(ends)]
    long = [s for s in sentences if len(s) > 30]
    assert len(set(long)) == len(long)


def test_a_question_is_answered_on_its_page() -> None:
    begins, found = "What do I do when the display shows ", 0
    for seed in range(40):
        page = load_material("manual").compose(random.Random(seed), 600, count)
        assert len(page.questions) > 10
        for question in page.questions:
            if question.startswith(begins):
                code = question.removeprefix(begins).rstrip("?")
                assert f"If the display shows {code}, " in page.text
                found += 1
    assert found > 5


def test_a_mix_takes_the_tasks_in_turn() -> None:
    tasks = find_workload("mix")
    requests = make_requests(tasks, 12, count)
    assert [r.task.name for r in requests] == [t.name for t in tasks] * 2
    with pytest.raises(UsageError, match="Did you mean 'customer-service'"):
        find_workload("customer-servce")
