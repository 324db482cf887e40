"""Runs of unlike kinds stand on one page and are not compared; latencies stand at their budget."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.edge.report.charts import deadline_charts
from boardfit.edge.report.compare_command import compare_command
from boardfit.edge.report.draw import Chart, Missing, draw_svg
from boardfit.edge.report.figures import group_runs, page_title
from boardfit.edge.report.fleet import fleet_verdict
from boardfit.edge.report.kinds import find_kind, group_alike
from boardfit.edge.report.page import render_page
from tests.edge.report.deadline_stored import row, workload_records
from tests.edge.report.stored import records, stored

SPEED = records(time="2026-01-01T00:00:00")
SLOWER = records(time="2026-01-01T00:00:01", name="other", engine="litert")
WARM = [row(t) for t in (1.0, 2.0, 3.0, 5.0)]
WORKLOAD = workload_records(WARM, [row(3.9, first_s=None)] * 3, time="2026-01-02T00:00:00")


def visible(page: str) -> str:
    return re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.S)


def with_memory(found: list[dict[str, Any]], mib: float) -> list[dict[str, Any]]:
    spread = {"n": 5, "median": mib * 2**20, "maximum": mib * 2**20}
    return [{**r, "metrics": {**r["metrics"], "peak_anon_bytes": spread}} for r in found]


def test_a_speed_run_is_not_compared_with_a_workload() -> None:
    """The first one here needs more memory, and was once called the one that needs the least."""
    speed, workload = with_memory(SPEED, 245.2), with_memory(WORKLOAD, 241.2)
    text = visible(render_page([*speed, *workload]))
    assert "not compared" in text
    assert "least memory" not in text and "decodes fastest" not in text
    assert "side by side" not in text and "customer-service within 4.00 s" in text


def test_each_kind_is_compared_with_itself() -> None:
    other = workload_records([row(t) for t in (1.0, 2.0)], time="2026-01-03T00:00:00", name="b")
    again = workload_records([row(t) for t in (1.0, 9.0)], time="2026-01-04T00:00:00", name="c")
    runs = group_runs([*SPEED, *other, *SLOWER, *again])
    assert [len(group) for group in group_alike(runs)] == [2, 2]
    text = visible(render_page([r for run in runs for r in run.records]))
    assert "2 runs side by side: speed" in text
    assert "2 runs side by side: customer-service within 4.00 s" in text
    assert "b answers most in time (100.0 %)" in text


def test_workloads_with_other_budgets_are_other_kinds() -> None:
    longer = workload_records(WARM, within_s=9.0, time="2026-01-03T00:00:00")
    assert len(group_alike(group_runs([*WORKLOAD, *longer]))) == 2


@pytest.mark.parametrize("better", [240.0, 250.0])
def test_the_headline_names_the_run_that_is_ahead(better: float) -> None:
    runs = group_runs([*with_memory(SPEED, 245.0), *with_memory(SLOWER, better)])
    ahead = "other" if better < 245.0 else "qwen3-0.6b"
    assert f"{ahead}, litert needs" in fleet_verdict(runs) or (
        f"{ahead}, llama_cpp needs" in fleet_verdict(runs)
    )


def test_no_run_is_ahead_of_its_equal() -> None:
    same = records(time="2026-01-05T00:00:00")
    assert "none is ahead" in fleet_verdict(group_runs([*SPEED, *same]))


def test_one_model_measured_twice_is_no_second_model() -> None:
    assert page_title(group_runs([*SPEED, *WORKLOAD])).endswith(", 2 runs")


def test_a_fleet_has_a_table_for_each_kind(tmp_path: Path) -> None:
    path = stored(tmp_path, SPEED, WORKLOAD)
    run = CliRunner().invoke(compare_command, [str(path)], catch_exceptions=False)
    assert run.output.index("decode, tokens/s") < run.output.index("answered in time")
    rows = json.loads(CliRunner().invoke(compare_command, [str(path), "--json"]).output)
    assert [row["kind"] for row in rows] == ["speed", "customer-service within 4.00 s"]


# -- a workload's latencies ------------------------------------------------------------------------


def whole_answers(found: list[dict[str, Any]]) -> Chart:
    [run] = group_runs(found)
    chart = deadline_charts(run)[0]
    assert isinstance(chart, Chart)
    return chart


def test_latencies_stand_against_the_budget() -> None:
    chart = whole_answers(WORKLOAD)
    assert "budget of 4.00 s</text>" in draw_svg(chart)
    assert "3 of 4 met the budget of 4.00 s" in chart.summary
    assert chart.rows[-1] == ("slowest", "5.00 s")
    assert "cold: 3 of 3 gave no answer" in (chart.note or "")
    [run] = group_runs(WORKLOAD)
    assert "cold 0 of 3" in find_kind(run).verdict(run)


def test_different_budgets_are_drawn_as_shares() -> None:
    rows = [row(1.0, 2.0), row(3.0, 4.0), row(9.0, 6.0)]
    chart = whole_answers(workload_records(rows, within_s=None))
    assert "own budget</text>" in draw_svg(chart)
    assert chart.rows[-1] == ("slowest", "150 %")
    assert "2 of 3 met the own budget" in chart.summary


@pytest.mark.parametrize(
    "section",
    [None, 3, {}, {"requests": 7}, {"requests": [3, {"total_s": "x"}, {"total_s": True}]}],
)
def test_an_odd_workload_is_missing_and_no_crash(section: Mapping[str, Any] | None) -> None:
    [run] = group_runs([{**WORKLOAD[0], "deadline": section}])
    assert isinstance(deadline_charts(run)[0], Missing)
    assert "Result" in render_page(list(run.records))
