from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.edge.bench.command import store
from boardfit.edge.bench.conditions import Conditions, disturbances
from boardfit.edge.bench.sampler import parse_pss, parse_status
from boardfit.edge.bench.store import append_results, read_results
from boardfit.edge.errors import InputError
from boardfit.edge.report.command import report
from boardfit.edge.report.markdown import escape, render
from boardfit.edge.types import HeatSample


def spread_of(value: float, n: int = 5) -> dict[str, Any]:
    keys = ("median", "mean", "minimum", "maximum", "p10", "p90")
    return {"n": n, **dict.fromkeys(keys, value), "stdev": 0.0 if n > 1 else None}


def record(kind: str = "decode", name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A stored result as the runner writes it, figures chosen for easy arithmetic."""
    metrics = {
        "decode_tps": spread_of(20.0),
        "prefill_tps": spread_of(100.0),
        "ttft_s": spread_of(0.25),
        "itl_max_s": spread_of(0.06),
        "peak_anon_bytes": spread_of(64 * 2**20),
        "peak_pss_bytes": None,
    }
    base = {
        "run_id": "r1",
        "time": "2026-01-01T00:00:00+00:00",
        "kit": {"version": "0.1.0"},
        "engine": {"name": "llama_cpp", "version": "0.3.36", "quant": "Q4_K_M"},
        "artifact": {"name": name, "sha256": "ab" * 32, "n_bytes": 1000},
        "board": None,
        "machine": {"model": "Raspberry Pi 5 Model B Rev 1.0", "cpu": "x", "ram_bytes": 2**33},
        "settings": {"n_ctx": 1024, "n_threads": 4, "kv_type": "f16", "n_batch": 512},
        "predicted": None,
        "baseline": {"rss_bytes": 30 * 2**20},
        "repeat": "edge bench X",
        "test": {
            "kind": kind,
            "label": f"{kind} 128",
            "n_prompt": 128,
            "n_depth": 0,
            "n_repeats": 5,
        },
        "metrics": metrics,
        "flags": [],
        "traces": [],
    }
    return {**base, **changes}


def test_results_round_trip_and_append(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "r.jsonl"
    append_results(path, [record()])
    append_results(path, [record(kind="prefill")])
    found = read_results([path])
    assert [r["test"]["kind"] for r in found.records] == ["decode", "prefill"]
    assert not found.notes


def test_a_cut_last_line_is_noted_and_later_lines_survive(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_results(path, [record(), record()])
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    found = read_results([path])
    assert len(found.records) == 1 and "cut short" in found.notes[0]
    append_results(path, [record()])  # the next run starts on a line of its own
    with pytest.raises(InputError, match=r"r\.jsonl:2: not JSON"):
        read_results([path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "result schema 3"),
        ({"kind": "other"}, "not a boardfit result"),
        ({"metrics": {"decode_tps": {"median": "fast"}}}, "median must be null or a finite"),
        ({"metrics": {"decode_tps": 3}}, "must be an object"),
        ({"machine": []}, "machine must be an object"),
    ],
)
def test_broken_records_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        json.dumps({"kind": "boardfit-result", "schema": 1, **record(), **change}) + "\n"
    )
    with pytest.raises(InputError, match=message):
        read_results([path])


def test_nan_is_neither_written_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(ValueError, match="JSON compliant"):
        append_results(path, [record(metrics={"decode_tps": spread_of(float("nan"))})])
    path.write_text('{"kind": NaN}\n{}\n')
    with pytest.raises(InputError, match="NaN is not a figure"):
        read_results([path])


def test_the_report_says_what_limits() -> None:
    text = render([record("decode"), record("prefill"), record("end-to-end")])
    # 200 prompt tokens at 100/s, 100 tokens at 20/s: 2 s + 5 s
    assert "answers a 200-token question with 100 tokens in 7.00 s" in text
    assert "decode takes the larger part" in text
    assert "64.0 MiB" in text and "nothing was flagged" in text
    assert "| PSS | – |" in text  # not measured is a dash


def test_one_repetition_shows_no_interval() -> None:
    single = record(metrics={"decode_tps": spread_of(20.0, n=1)})
    assert "| 20.0 |" in render([single])


def test_a_hostile_model_name_stays_text() -> None:
    text = render([record(name="<script>alert(1)</script>|x\x1b[2J")])
    assert "<script>" not in text and "\x1b" not in text
    assert escape("a|b") == "a\\|b"
    assert escape("Q4_K") == "Q4_K" and escape("_x_") == "\\_x\\_"


def test_report_command_reads_the_store_and_says_when_it_is_empty(tmp_path: Path) -> None:
    result = CliRunner().invoke(report, [])
    assert isinstance(result.exception, InputError) and "edge bench" in (
        result.exception.next_step or ""
    )
    append_results(tmp_path / "r.jsonl", [record(), record(run_id="r2", time="2026-02-01")])
    result = CliRunner().invoke(report, [str(tmp_path / "r.jsonl"), "--last", "--json"])
    shown = json.loads(result.output)
    assert [r["run_id"] for r in shown] == ["r2"] and "traces" not in shown[0]


def test_proc_parsers() -> None:
    # Lines as proc(5) documents them, values from a Linux 6.1 machine.
    status = (
        "Name:\tpython3\nVmRSS:\t   11288 kB\nRssAnon:\t    5092 kB\n"
        "RssFile:\t    6196 kB\nVmSwap:\t       0 kB\n"
    )
    assert parse_status(status) == {
        "rss_bytes": 11288 * 1024,
        "anon_bytes": 5092 * 1024,
        "file_bytes": 6196 * 1024,
        "swap_bytes": 0,
    }
    assert (
        parse_pss("55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 884 kB\nPss: 385 kB\n")
        == 385 * 1024
    )
    assert parse_pss("Rss: 884 kB\n") is None


GROW = """
from boardfit.edge.bench.sampler import ResourceSampler, read_memory
before = read_memory().rss_bytes
with ResourceSampler(interval_s=0.01) as sampler:
    block = bytearray(b"x") * (64 * 2**20)
print(max(s.rss_bytes for s in sampler.memory) - before)
"""


def test_the_sampler_sees_memory_grow() -> None:
    """In a process of its own: a large one may have so much memory left over from before."""
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 48 * 2**20


def test_disturbances_are_said_in_words() -> None:
    before = Conditions(0, 0, 0, 0, 0)
    import psutil

    cores = psutil.cpu_count() or 1
    busy = Conditions(10.0 * cores, 8.0, 2.0, 1.0, 4096)
    flags = disturbances(before, busy, [HeatSample(0, throttled=0x4)], [10, 10, 10, 5, 5, 5])
    joined = "; ".join(flags)
    for word in ("shared CPU", "steal", "swapped out 4096", "throttled", "drift"):
        assert word in joined
    assert (
        disturbances(before, Conditions(10.0 * cores, 2.0, 2.0, 0, 0), [], [10, 10, 10, 10]) == []
    )


def test_a_run_that_cannot_be_stored_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotADirectoryError):
        store([record()], Path("/dev/null/folder/results.jsonl"), False)
    assert "tokens/s" in capsys.readouterr().out
