from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bench.workloads import Test as BenchTest
from boardfit.edge.errors import EdgeError, InputError, UsageError
from boardfit.edge.report.compare import FIGURES, Side, compare, parse_gate, ratio
from boardfit.edge.report.compare_command import compare_command
from boardfit.edge.report.figures import group_runs
from tests.edge.report.stored import PI5, records, request, run_of, some_runs, stored

DECODE = FIGURES[0]
DAY = "2026-01-0{}T00:00:00"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(compare_command, [str(a) for a in arguments])


def error_of(result: Result) -> EdgeError:
    assert isinstance(result.exception, EdgeError), result.exception
    return result.exception


def decode_runs(steps_ms: list[int]) -> list[Any]:
    """One decode test whose repetitions have these times per token."""
    traces = [
        request(i * 9000, n_prompt=1, prefill_ms=1, n_out=33, step_ms=step)
        for i, step in enumerate(steps_ms)
    ]
    return [run_of(BenchTest("decode", 0, 0, 32), traces)]


def side(steps_ms: list[int]) -> Side:
    return Side("x", tuple(group_runs(records(decode_runs(steps_ms)))))


def test_a_real_difference_is_seen_and_has_its_size() -> None:
    found = ratio(side([50, 51, 50, 52, 50]), side([100, 101, 100, 102, 100]), DECODE)
    assert found and found.value == pytest.approx(0.5, abs=0.01)
    assert found.low and found.high and 0.45 < found.low <= found.value <= found.high < 0.55
    assert found.is_significant and found.verdict == "worse"


def test_noise_is_no_difference() -> None:
    found = ratio(side([50, 60, 55, 48, 62]), side([52, 61, 47, 57, 59]), DECODE)
    assert found and found.is_significant is False and found.verdict == "no difference seen"


def test_too_few_repetitions_have_no_interval() -> None:
    found = ratio(side([50]), side([100]), DECODE)
    assert found and found.low is None and found.is_significant is None
    assert found.verdict == "too few repetitions to decide"


@given(st.lists(st.integers(20, 200), min_size=3, max_size=6))
def test_a_side_against_itself_never_differs(steps: list[int]) -> None:
    found = ratio(side(steps), side(steps), DECODE, n_draws=200)
    assert found and found.value == pytest.approx(1) and found.is_significant is False


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """80 pairs of ten noisy repetitions, true ratio 0.8; percentile intervals are narrow."""
    draw, covered = random.Random(7), 0
    for _ in range(80):
        a = [max(1, round(draw.gauss(1000, 60))) for _ in range(10)]
        b = [max(1, round(draw.gauss(1250, 75))) for _ in range(10)]
        found = ratio(side(a), side(b), DECODE, n_draws=300)
        assert found and found.low and found.high
        covered += found.low <= 0.8 <= found.high
    assert covered >= 68


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = side([50, 60, 55]), side([70, 80, 75])
    assert compare(a, b) == compare(a, b)


def test_boards_may_differ_but_not_boards_and_engines(tmp_path: Path) -> None:
    pi = stored(tmp_path, records(), name="pi.jsonl")
    other = {**PI5, "model": "Other Board", "n_cores": 8}
    board = stored(tmp_path, records(machine=other), name="board.jsonl")
    both = stored(tmp_path, records(machine=other, engine="litert"), name="both.jsonl")
    assert run(pi, board).exit_code == 0
    refused = error_of(run(pi, both))
    assert refused.exit_code == 3 and "differ in machine and engine" in str(refused)
    assert "--unlike" in (refused.next_step or "")
    assert run(pi, both, "--unlike").exit_code == 0


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    changed = records()
    for record in changed:
        record["test"]["prompt_sha256"] = "00" * 32
    a, b = stored(tmp_path, name="a.jsonl"), stored(tmp_path, changed, name="b.jsonl")
    assert "differ in prompts" in str(error_of(run(a, b)))


def test_the_gate(tmp_path: Path) -> None:
    a = stored(tmp_path, records(some_runs(step_ms=50)), name="a.jsonl")
    b = stored(tmp_path, records(some_runs(step_ms=80)), name="b.jsonl")
    slower = run(a, b, "--fail-if", "decode<0.95x")
    assert slower.exit_code == 1 and "failed: decode<0.95x" in slower.output
    assert run(b, a, "--fail-if", "decode<0.95x").exit_code == 0
    assert run(a, a, "--fail-if", "decode<0.95x", "--fail-if", "memory>1.05x").exit_code == 0
    assert run(a, b, "--fail-if", "answer>1.1").exit_code == 1


def test_a_gate_on_what_was_not_measured_is_an_error(tmp_path: Path) -> None:
    a = stored(tmp_path, records(decode_runs([50, 50, 50])), name="a.jsonl")
    found = error_of(run(a, a, "--fail-if", "prefill<0.9x"))
    assert isinstance(found, InputError) and "prefill is not in both" in str(found)


def test_noise_beyond_the_bound_does_not_fail() -> None:
    ratios = compare(side([50, 90, 40, 95, 60]), side([95, 45, 88, 60, 80]))
    assert ratios[0].value < 0.95 and not parse_gate("decode<0.95x").is_missed(ratios)


@pytest.mark.parametrize(
    ("text", "message"),
    [("decode", "not a condition"), ("decod<0.9x", "Did you mean 'decode'"), ("decode<x", "not a")],
)
def test_a_gate_that_is_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_gate(text)


def test_several_runs_of_one_set_up_count_together(tmp_path: Path) -> None:
    a = stored(tmp_path, *(records(time=DAY.format(i)) for i in (1, 2, 3)), name="a.jsonl")
    b = stored(tmp_path, records(time=DAY.format(4)), name="b.jsonl")
    result = run(a, b)
    assert "(3 runs)" in result.output and "(1 run)" in result.output


def test_no_test_in_common(tmp_path: Path) -> None:
    a = stored(tmp_path, records(decode_runs([50])), name="a.jsonl")
    other = [run_of(BenchTest("decode", 0, 99, 32), [request(0, n_prompt=99, prefill_ms=9, n_out=9, step_ms=9)])]  # fmt: skip  # noqa: E501
    b = stored(tmp_path, records(other), name="b.jsonl")
    # memory is compared test by test too
    assert "no test in common" in str(error_of(run(a, b)))


def test_one_file_is_a_fleet(tmp_path: Path) -> None:
    small = {**PI5, "model": "Raspberry Pi Zero 2 W", "ram_bytes": 2**29}
    path = stored(
        tmp_path,
        records(time=DAY.format(1)),
        records(some_runs(step_ms=400), machine=small, time=DAY.format(2)),
    )
    text = run(path).output
    assert "Raspberry Pi Zero 2 W" in text and "████" in text
    data = json.loads(run(path, "--json").output)
    assert data[0]["decode, tokens/s"] > 5 * data[1]["decode, tokens/s"]


def test_json_holds_every_ratio(tmp_path: Path) -> None:
    a = stored(tmp_path, name="a.jsonl")
    (pair,) = json.loads(run(a, a, "--json").output)
    assert pair["ratios"]["decode"]["ratio"] == 1
    assert set(pair["ratios"]) == {"decode", "prefill", "ttft", "answer", "load", "memory"}
