"""The presets as they ship, and TOML that is none."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.tasks import Length, find_task, load_tasks
from boardfit.edge.tasks.command import tasks
from boardfit.edge.tasks.task import language_name, languages, parse_task

GOOD = b"""
title = "Echo"
message = "Say: {text}"
[prompt]
low = 1
typical = 2
high = 3
[answer]
low = 4
typical = 5
high = 6
[budget]
within = "2s"
"""


def test_every_task_of_the_field_is_there() -> None:
    found = load_tasks()
    assert set(found) == {
        "assistant", "customer-service", "manual-question", "translate", "translate-paragraph",
        "summarize",
    }  # fmt: skip
    for task in found.values():
        assert task.system and task.title and task.about
        assert task.budget().on_miss == "best"
        assert task.first_within_s is not None and task.first_within_s < task.within_s
    assert {t.name for t in found.values() if t.extractive} == {"manual-question", "summarize"}
    assert set(found["translate"].parameters) == {"to"}


@given(st.text(max_size=60))
def test_what_the_user_writes_is_never_read_as_a_place(text: str) -> None:
    task = find_task("translate")
    filled = task.fill({"to": "Chinese", "text": text + "{to}{text}{system}"})
    assert filled == f"Translate into Chinese: {text}{{to}}{{text}}{{system}}"


@pytest.mark.parametrize(
    ("wrong", "near"), [("transalte", "translate"), ("summarise", "summarize"), ("zzz", "tasks:")]
)
def test_an_unknown_task_is_an_error_with_the_nearest_name(wrong: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_task(wrong)
    assert near in f"{caught.value} {caught.value.next_step}"


def test_a_task_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "echo.toml"
    path.write_bytes(GOOD)
    task = find_task(str(path))
    assert task.name == "echo" and task.fill({"text": "x"}) == "Say: x"
    with pytest.raises(InputError, match="no such file"):
        find_task(str(tmp_path / "nothing.toml"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((b"title", b"titel"), "Did you mean 'title'"),
        ((b"{text}", b"nothing"), "text"),
        ((b"{text}", b"{text} {other}"), "other"),
        ((b"low = 1", b"low = 9"), "low <= typical"),
        ((b"low = 1", b"low = true"), "whole numbers"),
        ((b"low = 1", b"low = 0"), "low"),
        ((b'"2s"', b'"2 parsecs"'), "2 parsecs"),
        ((b'"2s"', b'"0s"'), "more than zero"),
        ((b'"2s"', b'"nan"'), "not a time"),
        ((b"[budget]", b"[budgets]"), "Did you mean 'budget'"),
        ((b"[budget]", b"[sampling]\ntemperature = nan\n[budget]"), "temperature"),
        ((b"[budget]", b"[sampling]\ntemprature = 1\n[budget]"), "Did you mean 'temperature'"),
        ((b"[budget]", b"[parameters.to]\nkind = 'x'\n[budget]"), "kind"),
        ((b"title =", b"title = ["), "not TOML"),
        ((b"Echo", b"\xff"), "not TOML"),
    ],
)
def test_a_broken_task_says_what_is_wrong(change: tuple[bytes, bytes], said: str) -> None:
    parse_task("echo", GOOD)
    with pytest.raises(InputError, match="task echo") as caught:
        parse_task("echo", GOOD.replace(*change))
    assert said in str(caught.value)


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_any_bytes_are_a_task_or_an_input_error(junk: bytes, at: int) -> None:
    with contextlib.suppress(InputError):
        parse_task("echo", GOOD[:at] + junk + GOOD[at:])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("zh", "Chinese"),
        ("ZH", "Chinese"),
        ("chinese", "Chinese"),
        ("pt_br", "Brazilian Portuguese"),
    ],
)
def test_languages_are_found_by_code_and_name(text: str, name: str) -> None:
    assert language_name(text) == name
    assert len(languages()) > 50


def test_an_unknown_language_is_an_error_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'german'"):
        language_name("germn")


@given(st.tuples(*[st.integers(1, 3000)] * 3).map(sorted), st.floats(0, 1), st.floats(0, 1))
def test_lengths_stay_in_their_range_and_grow_with_the_share(
    values: list[int], a: float, b: float
) -> None:
    length = Length(*values)
    low, high = sorted((a, b))
    assert length.low <= length.quantile(low) <= length.quantile(high) <= length.high
    assert (length.quantile(0), length.quantile(1)) == (length.low, length.high)


def test_nine_of_ten_draws_are_within_the_ninetieth_percent() -> None:
    length, rng = Length(300, 600, 1100), random.Random(1)
    drawn = [length.draw(rng) for _ in range(4000)]
    assert sum(n <= length.quantile(0.9) for n in drawn) / len(drawn) == pytest.approx(
        0.9, abs=0.02
    )


def test_the_command_lists_and_shows() -> None:
    listed = CliRunner().invoke(tasks, [], catch_exceptions=False).output
    assert all(name in listed for name in load_tasks())
    shown = CliRunner().invoke(tasks, ["translate"], catch_exceptions=False).output
    assert "--to" in shown and "Translate into {to}: {text}" in shown and "2.00 s" in shown
    lines = CliRunner().invoke(tasks, ["--json"], catch_exceptions=False).output.splitlines()
    assert len(lines) == len(load_tasks())
