from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bench.metrics import measure, spread
from boardfit.edge.bench.store import digest_of, read_results, sealed
from boardfit.edge.bench.trace_rows import compact_trace, expand_trace
from boardfit.edge.bench.workloads import Test as BenchTest
from boardfit.edge.errors import InputError, IntegrityError
from boardfit.edge.report.command import report
from tests.edge.report.stored import records, request, run_of, stored

Line = dict[str, Any]


def verify(path: Path) -> Result:
    return CliRunner().invoke(report, [str(path), "--verify"])


def edit(path: Path, change: Callable[[Line], None], *, reseal: bool = False) -> None:
    """Change every line as somebody with an editor would; `reseal` also repairs the digest."""
    lines = []
    for text in path.read_text().splitlines():
        line = json.loads(text)
        change(line)
        lines.append(json.dumps(sealed(line) if reseal else line))
    path.write_text("\n".join(lines) + "\n")


def test_untouched_results_hold(tmp_path: Path) -> None:
    result = verify(stored(tmp_path))
    assert result.exit_code == 0 and "all equal" in result.output
    assert "could not" not in result.output


def faster(line: Line) -> None:
    figure = line["metrics"].get("decode_tps")
    if figure:
        figure["median"] *= 2


def faster_everywhere(line: Line) -> None:
    faster(line)
    for figures in line["figures"]:
        if figures.get("decode_tps"):
            figures["decode_tps"] *= 2


def without_flags(line: Line) -> None:
    line["flags"] = []


def other_board(line: Line) -> None:
    line["machine"]["model"] = "Raspberry Pi Zero 2 W"


@pytest.mark.parametrize("change", [faster, faster_everywhere, without_flags, other_board])
def test_an_edit_breaks_the_digest(tmp_path: Path, change: Callable[[Line], None]) -> None:
    path = stored(tmp_path)
    edit(path, change)
    result = verify(path)
    assert isinstance(result.exception, IntegrityError) and result.exception.exit_code == 7
    assert "digest does not match" in result.output


@pytest.mark.parametrize("change", [faster, faster_everywhere])
def test_a_new_digest_does_not_help_a_changed_figure(
    tmp_path: Path, change: Callable[[Line], None]
) -> None:
    path = stored(tmp_path)
    edit(path, change, reseal=True)
    result = verify(path)
    assert isinstance(result.exception, IntegrityError)
    assert "the trace gives" in result.output and "digest" not in result.output


def test_a_repetition_left_out_is_seen(tmp_path: Path) -> None:
    path = stored(tmp_path)
    edit(path, lambda line: line["figures"].pop(), reseal=True)
    assert "does not match the number of traces" in verify(path).output


def test_a_test_left_out_is_seen(tmp_path: Path) -> None:
    path = stored(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    result = verify(path)
    assert isinstance(result.exception, IntegrityError)
    assert "1 of 6 tests are missing (number 3)" in result.output


def test_schema_1_is_read_and_said_to_have_no_digest(tmp_path: Path) -> None:
    path = stored(tmp_path)

    def older(line: Line) -> None:
        line["schema"] = 1
        del line["digest"], line["part"]
        for trace in line["traces"]:
            del trace["start_ns"]

    edit(path, older)
    result = verify(path)
    assert result.exit_code == 0 and "schema 1 has no digest" in result.output
    page = CliRunner().invoke(report, [str(path)], catch_exceptions=False)
    assert "qwen3-0.6b" in page.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["token_t_ns"].reverse(), "clock goes backwards"),
        (lambda t: t.update(end_ns=0), "clock goes backwards"),
        (lambda t: t.update(end_ns=1.5), "end_ns must be a whole number"),
        (lambda t: t.update(end_ns=10**30), "end_ns must be a whole number"),
        (lambda t: t.update(token_t_ns=None), "token_t_ns must be a list"),
    ],
)
def test_a_trace_out_of_order_is_refused_when_read(
    tmp_path: Path, change: Callable[[Line], None], message: str
) -> None:
    path = stored(tmp_path)

    def broken(line: Line) -> None:
        if line["test"]["kind"] == "decode":
            change(line["traces"][0])

    edit(path, broken, reseal=True)
    with pytest.raises(InputError, match=rf"r\.jsonl:3: trace 1: .*{message}"):
        read_results([path])


@given(
    st.integers(0, 10**6),
    st.integers(0, 5000),
    st.lists(st.integers(0, 10**10), min_size=1, max_size=40),
)
def test_a_stored_trace_measures_like_the_original(
    start_ms: int, prefill_ms: int, gaps: list[int]
) -> None:
    base = request(start_ms, n_prompt=9, prefill_ms=prefill_ms, n_out=len(gaps), step_ms=7)
    at, events = base.events[0].t_ns, []
    for event, gap in zip(base.events, gaps, strict=True):
        at += gap
        events.append(type(event)(event.token_id, "", at))
    trace = type(base)(**{**base.__dict__, "events": tuple(events), "request_end_ns": at})
    again = expand_trace(json.loads(json.dumps(compact_trace(trace, 12345))))
    assert measure(again) == measure(trace)


def test_the_digest_ignores_key_order_and_sees_types() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    assert digest_of({"a": 1, "digest": "x"}) == digest_of({"a": 1})


def test_latencies_of_a_network_answer_for_their_own_spread(tmp_path: Path) -> None:
    made = records([run_of(BenchTest("inference", 0, 0, 0), [])])  # type: ignore[arg-type]
    figures = [{"latency_s": s} for s in (0.010, 0.011, 0.012)]
    trace = compact_trace(request(0, n_prompt=0, prefill_ms=1, n_out=3, step_ms=10))
    spread_ = spread([f["latency_s"] for f in figures])
    assert spread_ is not None
    made[0].update(traces=[trace], figures=figures, metrics={"latency_s": spread_})
    path = stored(tmp_path, made)
    assert verify(path).exit_code == 0
    edit(path, lambda line: line["metrics"]["latency_s"].update(median=0.005), reseal=True)
    result = verify(path)
    assert isinstance(result.exception, IntegrityError)
    assert "latency_s: median is 0.005" in result.output
