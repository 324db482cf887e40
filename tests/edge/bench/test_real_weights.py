"""Published models are measured as they are, a base model too."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.edge.bench.command import bench
from boardfit.edge.bench.store import read_results
from boardfit.edge.report.command import report

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.engine]


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_a_model_is_measured_with_its_bandwidth(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(model)
    results = tmp_path / "r.jsonl"
    words = [str(source), "-o", str(results), "--quick", "--gen", "4", "--repeats", "1"]
    done = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert ("base model without chat template" in done.output) == (model == "gemma3")
    records = read_results([results]).records
    assert {"prefill", "decode", "end-to-end", "load"} == {r["test"]["kind"] for r in records}
    moved = [r["moved"] for r in records if r["test"]["kind"] == "decode"]
    size = source.stat().st_size
    assert all(0.8 * size < entry["bytes_per_step"] < 1.2 * size for entry in moved)
    assert "memory bandwidth used (MBU)" in done.output
    page = tmp_path / "report.html"
    made = CliRunner().invoke(report, [str(results), "-o", str(page)], catch_exceptions=False)
    assert made.exit_code == 0 and source.stem in page.read_text()
