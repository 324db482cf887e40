"""Minutes of decode, a cool start, and what is said when there is none."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.edge.bench.command import bench
from boardfit.edge.bench.language_model import wait_until_cool
from boardfit.edge.bench.metrics import measure, sustained_ratio
from boardfit.edge.bench.runner import TokenTimes
from boardfit.edge.bench.store import read_results
from boardfit.edge.bench.trace_rows import compact_trace
from boardfit.edge.report.charts import sustained_share
from boardfit.edge.report.figures import group_runs
from boardfit.edge.report.verify import verify_run
from boardfit.edge.types import TokenEvent, Trace
from tests.edge.engines import tiny_gguf


def test_the_ratio_compares_the_first_and_the_last_tenth() -> None:
    cooling_off = [(float(i), 20.0 if i < 30 else 12.0) for i in range(100)]
    assert sustained_ratio(cooling_off) == pytest.approx(0.6)
    assert sustained_ratio([(0.0, 20.0), (9.0, 12.0), (10.0, 12.0)]) is None
    assert sustained_ratio([(0, 20), (1, 20), (2, 10), (3, 10)]) == pytest.approx(0.5)


def test_waiting_ends_when_the_board_is_cool() -> None:
    temps, slept, said = iter([70.0, 62.0, 55.0]), list[float](), list[str]()
    flag = wait_until_cool(60, read=lambda: next(temps), sleep=slept.append, say=said.append)
    assert flag is None and len(slept) == 2 and "cooling: 70 °C" in said[0]


def test_a_board_that_stays_warm_is_flagged() -> None:
    flag = wait_until_cool(60, read=lambda: 71.0, max_wait_s=10, sleep=lambda s: None)
    assert flag == "warm start: 71 °C after 10 s of cooling, asked for 60"
    unknown = wait_until_cool(60, read=lambda: None)
    assert unknown is not None and "no sensor" in unknown


@pytest.mark.engine
def test_the_sustained_protocol(tmp_path: Path) -> None:
    model, results = tmp_path / "tiny.gguf", tmp_path / "r.jsonl"
    tiny_gguf.random_llama(model)
    words = [str(model), "-o", str(results), "--protocol", "sustained", "--minutes", "0.05"]
    done = CliRunner().invoke(
        bench,
        [*words, "--repeats", "1", "--gen", "4", "--cool-below", "149"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    (run,) = group_runs(read_results([results]).records)
    (record,) = run.tests("sustained")
    assert record["test"]["n_repeats"] >= 4 and record["test"]["n_gen"] > 4
    last = record["traces"][-1]
    assert (last["start_ns"] + last["end_ns"] - record["traces"][0]["start_ns"]) * 1e-9 >= 2.5
    assert set(record["states"]) == {"before", "after"}
    assert "--protocol sustained --minutes 0.05" in record["repeat"]
    share = sustained_share(run)
    assert share is not None and share > 0
    assert not verify_run(run).problems


def test_what_is_kept_of_a_token_is_its_time() -> None:
    """Else the benchmark's own objects show as the model's memory, 130 MiB in ten minutes."""
    events = [TokenEvent(i, "text", 10 * i) for i in range(1000)]
    ended = [*events, TokenEvent(None, "", 10_000, "stop")]
    tracemalloc.start()
    times = TokenTimes(iter(ended))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 12 * 1000
    assert [e.t_ns for e in times] == [e.t_ns for e in events] and len(times) == 1000
    assert times[-1].t_ns == 9990 and [e.t_ns for e in times[:2]] == [0, 10]
    whole = Trace(0, 1, 0, 0, tuple(ended), 10_000)
    kept = replace(whole, events=times)
    assert measure(kept) == measure(whole) and compact_trace(kept) == compact_trace(whole)
