"""The scorer: counts everything it asked, forgives nothing but outer white space."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lab.sample import task

SCRIPTS = Path(__file__).parents[3] / "scripts"


def oracle(examples):
    """An answer function that knows everything."""
    known = {e.messages[-1]["content"]: e.expected for e in examples}
    return lambda messages: known[messages[-1]["content"]]


def test_held_out_is_always_the_same_and_has_every_kind():
    first = task.held_out()
    task._examples.cache_clear()
    assert task.held_out() == first
    counts = Counter(e.kind for e in first)
    assert set(counts) == set(task.KINDS) - {"new-word"}
    assert counts["command"] >= 700 and counts["unseen-name"] >= 200 and counts["plain"] >= 70


def test_a_limited_part_is_fixed_and_even():
    part = task.held_out(limit=200)
    assert part == task.held_out(limit=200) and len(part) == 200
    whole = Counter(e.kind for e in task.held_out())
    for kind, n in Counter(e.kind for e in part).items():
        assert n == pytest.approx(200 * whole[kind] / whole.total(), abs=1)
    verbs = {e.expected.split(",")[0] for e in task.held_out() if e.kind == "command"}
    assert len({e.expected.split(",")[0] for e in part if e.kind == "command"}) >= 0.7 * len(verbs)


def test_limit_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        task.held_out(limit=0)


def test_a_perfect_answer_scores_one():
    examples = task.held_out(limit=60)
    found = task.score(examples, oracle(examples))
    assert found.accuracy() == 1.0 and found.misses == ()


def test_white_space_at_the_ends_is_forgiven_and_nothing_else():
    examples = [e for e in task.held_out() if e.kind == "command"][:20]
    good = oracle(examples)
    assert task.score(examples, lambda m: f" {good(m)}\n").accuracy("command") == 1.0
    assert task.score(examples, lambda m: good(m).replace(":", ": ")).accuracy("command") == 0.0


def test_empty_answers_are_misses_not_dropped():
    examples = task.held_out(limit=90)
    found = task.score(examples, lambda _messages: "")
    assert sum(found.n_asked.values()) == 90 == len(found.misses)
    assert found.accuracy() == 0.0


def test_kinds_are_counted_apart():
    examples = task.held_out(limit=120)
    good = oracle(examples)
    plain = {e.messages[-1]["content"] for e in examples if e.kind == "plain"}

    def only_plain(messages):
        return good(messages) if messages[-1]["content"] in plain else "no"

    found = task.score(examples, only_plain)
    assert found.accuracy("plain") == 1.0 and found.accuracy("command") == 0.0
    assert found.to_dict()["exact"]["unseen-name"] == 0.0


def test_nothing_asked_is_none_not_zero():
    assert task.score([], lambda _messages: "").accuracy() is None


def test_history_keeps_the_request_last():
    examples = task.held_out(limit=10)
    grown = task.with_history(examples, 3)
    assert [e.messages[-1] for e in grown] == [e.messages[-1] for e in examples]
    assert {len(e.messages) for e in grown} == {7}
    assert grown == task.with_history(examples, 3)


def test_the_task_needs_no_heavy_package():
    code = (
        "import sys, lab.sample.task, lab.sample.results\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
