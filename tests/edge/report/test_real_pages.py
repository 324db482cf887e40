"""Pages of real runs in a real browser: every engine on this machine, and this machine's runs with
the sensors of a Raspberry Pi 5, an Orin Nano and a phone.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.edge.bench.heat import find_meter
from boardfit.edge.bench.record import MeasuredArtifact, make_records
from boardfit.edge.bench.runner import run_tests
from boardfit.edge.bench.sampler import ResourceSampler
from boardfit.edge.bench.store import append_results, read_results
from boardfit.edge.bench.workloads import Test as BenchTest
from boardfit.edge.engines import ENGINES, EngineSettings, open_engine
from boardfit.edge.report.command import report
from boardfit.edge.report.compare import Side, compare
from boardfit.edge.report.figures import group_runs
from boardfit.edge.report.verify import verify_run
from tests.edge.engines import tiny_gguf
from tests.edge.engines.engine_models import ModelShelf
from tests.edge.report.boards import BOARDS, Replay
from tests.edge.report.test_page_in_chromium import CONTRAST, Visit

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.xdist_group("chromium")]

ROOT = Path(__file__).parents[3]
OPEN_ALL = "document.querySelectorAll('details').forEach((d) => d.open = true)"


def page_of(results: Path) -> Path:
    page = results.with_suffix(".html")
    CliRunner().invoke(report, [str(results), "-o", str(page)], catch_exceptions=False)
    return page


@pytest.fixture(scope="module")
def engines_results(model_shelf: ModelShelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`edge bench` of one tiny model in every engine, each in a process of its own."""
    results = tmp_path_factory.mktemp("engines") / "engines.jsonl"
    options = ["--quick", "--repeats", "3", "--gen", "8", "--threads", "1", "-o", str(results)]
    for engine in ENGINES:
        command = [sys.executable, "-m", "boardfit", "bench", str(model_shelf[engine].random)]
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{engine}: {done.stderr}"
    return results


@pytest.fixture(scope="module")
def boards_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs, their heat and power from the sensors of three boards."""
    folder = tmp_path_factory.mktemp("boards")
    results = folder / "boards.jsonl"
    model = tiny_gguf.random_llama(folder / "tiny.gguf")
    subject = MeasuredArtifact(
        "tiny", None, model.stat().st_size, None, "llama", "apache-2.0", None, None
    )
    tests = [BenchTest("prefill", 128, 0, 0), BenchTest("decode", 0, 0, 200)]
    tests += [BenchTest("decode", 0, 256, 200), BenchTest("end-to-end", 64, 0, 100)]
    engine = open_engine("llama_cpp", model, EngineSettings(n_threads=1, n_ctx=512))
    for name, (captures, machine) in BOARDS.items():
        replay = Replay(captures())
        sampler = ResourceSampler(interval_s=0.004, slow_s=0.01, system=replay)
        runs = run_tests(engine, tests, repeats=3, sampler=sampler)
        meter = find_meter(replay)
        facts = {**machine, "power_sensor": meter.kind if meter else None}
        made = make_records(runs, subject, engine.describe(), f"edge bench tiny  # {name}", {})
        append_results(results, [{**r, "machine": {**r["machine"], **facts}} for r in made])
    engine.close()
    return results


@pytest.fixture(scope="module", params=["engines", "boards"])
def real_page(request: pytest.FixtureRequest) -> Path:
    return page_of(request.getfixturevalue(f"{request.param}_results"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_error_no_request_enough_contrast(browser: Any, real_page: Path, scheme: str) -> None:
    visit = Visit(browser, real_page, color_scheme=scheme)
    visit.evaluate(OPEN_ALL)
    judged = visit.evaluate(CONTRAST)
    low = [found for found in judged if found["ratio"] < found["needed"]]
    assert len(judged) > 300 and not low, low[:10]
    assert visit.said == [] and visit.requests == [real_page.as_uri()]
    charts = visit.page.get_by_role("img").all()
    assert len(charts) > 10
    for chart in charts:
        words = chart.evaluate("(e) => e.querySelector('desc').textContent")
        assert len(words) > 30 and not re.search(r"\b(nan|inf|None)\b", words), words


def test_it_fits_a_phone_a_desk_and_paper(browser: Any, real_page: Path) -> None:
    visit = Visit(browser, real_page, viewport={"width": 360, "height": 800})
    visit.evaluate(OPEN_ALL)
    for width in (360, 1440):
        visit.page.set_viewport_size({"width": width, "height": 800})
        assert visit.evaluate("document.documentElement.scrollWidth") <= width
    visit.page.emulate_media(media="print")
    assert visit.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    low = [found for found in visit.evaluate(CONTRAST) if found["ratio"] < found["needed"]]
    assert not low, low[:10]
    assert visit.page.pdf(format="A4")[:5] == b"%PDF-"
    assert real_page.stat().st_size < 2_000_000


def test_every_engine_is_on_the_page_and_every_figure_holds(engines_results: Path) -> None:
    found = read_results([engines_results])
    runs = group_runs(found.records)
    assert {run.head["engine"]["name"] for run in runs} == set(ENGINES)
    for run in runs:
        checked = verify_run(run)
        assert not checked.problems and checked.n_figures > 50
        assert run.tests("decode") and run.tests("prefill") and run.tests("load")
    text = html.unescape(page_of(engines_results).read_text())
    for name in ENGINES:
        assert name in text
    first, *others = runs
    for other in others:
        ratios = compare(Side("a", (first,)), Side("b", (other,)))
        assert {"decode", "prefill", "memory"} <= {ratio.figure.name for ratio in ratios}


def test_the_boards_sensors_are_on_the_page(boards_results: Path) -> None:
    found = read_results([boards_results])
    for run in group_runs(found.records):
        assert not verify_run(run).problems
    text = html.unescape(page_of(boards_results).read_text())
    for machine in ("Raspberry Pi 5", "Jetson Orin Nano", "Samsung Galaxy S22"):
        assert machine in text
    for reading in ("76.80", "82.90", "2.26", "50.59", "49.16", "1.34", "6.63", "40.80"):
        assert reading in text, reading
    assert "Not measured here: clock, power" in text  # the phone, on its cable
    pi = json.loads(boards_results.read_text().splitlines()[1])
    heat = [row for trace in pi["traces"] for row in trace["heat"]]
    assert {row[1] for row in heat} <= {76.8, 77.4, 82.9} and all(row[4] for row in heat)


def test_a_throttled_board_is_flagged(tmp_path: Path) -> None:
    """Bits as a Raspberry Pi printed them (0x50005), read once: the test is over before a second
    look, as a short test on a fast board is.
    """
    from boardfit.edge.bench.conditions import read_conditions
    from boardfit.edge.bench.runner import TestRun, finish, record
    from boardfit.edge.probe.system import CapturedSystem
    from boardfit.edge.types import GenerationConfig

    model = tiny_gguf.random_llama(tmp_path / "tiny.gguf")
    engine = open_engine("llama_cpp", model, EngineSettings(n_threads=1, n_ctx=256))
    captured = CapturedSystem({}, {"throttled": "throttled=0x50005\n"})
    run, before = TestRun(BenchTest("decode", 0, 0, 100)), read_conditions()
    with ResourceSampler(interval_s=60, slow_s=60, system=captured) as sampler:
        for _ in range(3):
            config = GenerationConfig(max_tokens=101, ignore_eos=True)
            run.traces.append(record(engine, [5], config, time.monotonic_ns()))
    engine.close()
    finish(run, sampler, before, read_conditions())
    assert any(flag.startswith("throttled: the firmware") for flag in run.flags)
