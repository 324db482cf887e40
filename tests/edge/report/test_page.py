"""The page as text: what it says, what it escapes, what it leaves out and how large it may get."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bench import store
from boardfit.edge.bench.store import MAX_LINES, find_newest, line_spans, read_results
from boardfit.edge.bench.workloads import Test as BenchTest
from boardfit.edge.errors import EngineMissingError, InputError
from boardfit.edge.report.charts import memory_over_time, rate_chart
from boardfit.edge.report.command import choose_results, report
from boardfit.edge.report.draw import Chart, Missing
from boardfit.edge.report.figures import group_runs, run_labels
from boardfit.edge.report.kinds import find_kind
from boardfit.edge.report.page import render_page
from boardfit.edge.report.rows import flag_lines
from boardfit.edge.report.verify import verify_run
from tests.edge.report.stored import PI5, plan, records, request, run_of, some_runs, stored

HOSTILE = "</title><script>fetch('http://x.invalid')</script><img src=x onerror=alert(1)> $\\frac{"
CARD = {"texts": [{"name": "held-out", "kld_mean": 0.012, "kld_mean_stderr": 0.001}]}


def page_of(path: Path, **options: Any) -> str:
    found = read_results([path])
    return render_page(found.records, found.notes, **options)


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    page = page_of(stored(tmp_path))
    assert "qwen3-0.6b (Q4_K - Medium) answers a 200-token question" in page
    assert "memory is no limit (41.0 MiB of 7.87 GiB)" in page
    assert page.count('role="img"') == 7
    assert "Quality against size: no bundle here carries a quality card" in page
    assert "drift: a little (end-to-end 64+32)" in page
    assert "figures of 6 tests derived again, all equal" in page


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = page_of(stored(tmp_path))
    assert "<script" not in page and "default-src 'none'" in page
    links = set(re.findall(r"""(?:href|src)=["']([^"']*)""", page))
    assert all(link.startswith("#") or link == "data:," for link in links), links
    assert "@import" not in page and "url(http" not in page
    assert len(page.encode()) < 2_000_000


def test_ids_are_unique_and_every_picture_is_named(tmp_path: Path) -> None:
    first, second = records(time="2026-01-01T00:00:00"), records(time="2026-01-02T00:00:00")
    page = page_of(stored(tmp_path, first, second))
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for names in re.findall(r'aria-labelledby="([^"]+)"', page):
        assert set(names.split()) <= set(ids)
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
        assert target in ids


@pytest.mark.parametrize("where", ["name", "quant", "engine", "model", "flag"])
def test_hostile_text_stays_text(tmp_path: Path, where: str) -> None:
    machine = {**PI5, "model": HOSTILE} if where == "model" else PI5
    run = records(
        machine=machine,
        **{key: HOSTILE for key in ("name", "quant", "engine") if key == where},  # type: ignore[arg-type]
    )
    if where == "flag":
        run[0]["flags"] = [HOSTILE]
    other = records(time="2026-01-02T00:00:00", quality=CARD)
    page = page_of(stored(tmp_path, run, other))
    assert "<script" not in page and "<img" not in page
    assert "&lt;script" in page


def test_hostile_escapes_and_surrogates_can_be_written(tmp_path: Path) -> None:
    page = page_of(stored(tmp_path, records(name="\ud800\x1b[2J\u202e x")))
    assert "\x1b" not in page and "\u202e" not in page
    page.encode()


def test_one_repetition_shows_no_interval(tmp_path: Path) -> None:
    path = stored(tmp_path, records(some_runs(repeats=1)))
    run = group_runs(read_results([path]).records)[0]
    chart = rate_chart(run, "decode")
    assert isinstance(chart, Chart)
    assert chart.note == "One repetition: there is no interval to show."
    assert "<small>" not in page_of(path)


def test_zero_repetitions_are_a_dash(tmp_path: Path) -> None:
    path = stored(tmp_path, records([run_of(BenchTest("decode", 0, 0, 32), [])]))
    run = group_runs(read_results([path]).records)[0]
    assert all(isinstance(chart, Missing) for chart in find_kind(run).charts(run, None)[:4])
    page = page_of(path)
    assert "not enough was measured for a verdict" in page and "<dd>–</dd>" in page


def test_two_boards_under_one_name_are_kept_apart(tmp_path: Path) -> None:
    one = records(run_id="same", time="2026-01-01T00:00:00")
    two = records(run_id="same", time="2026-01-01T00:00:00", machine={**PI5, "ram_bytes": 2**32})
    path = stored(tmp_path, one, two)
    runs = group_runs(read_results([path]).records)
    assert len(runs) == 2 and len(set(run_labels(runs))) == 2
    page = page_of(path)
    assert "2 different machines are called" in page and "4.00 GiB" in page


def test_a_plan_for_another_board_is_not_compared(tmp_path: Path) -> None:
    other = records(subject_plan=plan(device="jetson-orin-nano-8gb"))
    page = page_of(stored(tmp_path, other))
    assert "the plan was made for jetson-orin-nano-8gb, not this machine" in page


def test_quality_cards_and_engines_stand_side_by_side(tmp_path: Path) -> None:
    path = stored(
        tmp_path,
        records(quality=CARD, time="2026-01-01T00:00:00", n_bytes=400 * 2**20),
        records(engine="litert", quant="int4", time="2026-01-02T00:00:00"),
    )
    page = page_of(path)
    assert "Nearest to its source is q4_k_m" in page and "Side by side" in page
    assert "qwen3-0.6b, int4" in page and "Of 2 runs, " in page


def test_the_budget_is_drawn_and_counted(tmp_path: Path) -> None:
    page = page_of(stored(tmp_path), within_s=2.3)
    assert re.search(r"\d of 5 met the budget of 2.30 s\.", page)


def test_a_limit_near_the_data_is_drawn_in_scale(tmp_path: Path) -> None:
    small = {**PI5, "memory_limit_bytes": 100 * 2**20}
    near = page_of(stored(tmp_path, records(machine=small)))
    assert "limit 100.0 MiB</text>" in near
    assert "limit 7.87 GiB, " in page_of(stored(tmp_path, name="far.jsonl"))


def test_a_trace_of_a_hundred_thousand_rows_makes_a_small_page(tmp_path: Path) -> None:
    long = request(0, n_prompt=1, prefill_ms=1, n_out=100_000, step_ms=5, n_memory=100_000)
    path = stored(tmp_path, records([run_of(BenchTest("decode", 0, 0, 99_999), [long])]))
    page = page_of(path)
    assert "derived again, all equal" in page and len(page.encode()) < 500_000


def copies(folder: Path, n: int, run_id: str = "{:08x}") -> Path:
    """A file of `n` lines, one run each or as `run_id` says, written without sealing each."""
    (folder / "r.jsonl").unlink(missing_ok=True)
    path = stored(folder, records(decode_run(), run_id="RUN", time="TIME"))
    line = path.read_text()
    with path.open("w") as file:
        for i in range(n):
            stamp = f"2026-01-{1 + i // 86400:02}T{i // 3600 % 24:02}:{i // 60 % 60:02}:{i % 60:02}"
            file.write(
                line.replace('"RUN"', f'"{run_id.format(i)}"').replace('"TIME"', f'"{stamp}"')
            )
    return path


def decode_run() -> list[Any]:
    one = request(0, n_prompt=1, prefill_ms=1, n_out=9, step_ms=9)
    return [run_of(BenchTest("decode", 0, 0, 8), [one])]


@pytest.mark.slow
def test_a_hundred_thousand_tests_make_a_small_page(tmp_path: Path) -> None:
    """As the command reads them; what was left out is said. `scripts/bench_report` times it."""
    path, out = copies(tmp_path, 100_000), tmp_path / "r.html"
    CliRunner().invoke(report, [str(path), "-o", str(out)], catch_exceptions=False)
    page = out.read_text()
    assert "r.jsonl holds 100,000 tests of 100,000 run(s); shown are 2,000 of the newest" in page
    assert len(page) < 2_000_000 and "0001869f" in page  # the newest, 99,999


def test_work_does_not_grow_with_what_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines parsed, counted: the same for 3,000 as for 6,000."""
    parsed = []
    check = store.check_record
    monkeypatch.setattr(store, "check_record", lambda *a: parsed.append(1) or check(*a))
    for n in (3_000, 6_000):
        parsed.clear()
        found = choose_results([copies(tmp_path, n)], most=MAX_LINES)
        assert (len(parsed), len(found.records)) == (MAX_LINES, MAX_LINES)
    n_all = len(choose_results([copies(tmp_path, 3_000)]).records)
    assert n_all == 3_000


def test_one_run_of_very_many_tests_is_cut_and_says_so(tmp_path: Path) -> None:
    path, out = copies(tmp_path, 2_100, run_id="same"), tmp_path / "r.html"
    CliRunner().invoke(report, [str(path), "-o", str(out)], catch_exceptions=False)
    page = out.read_text()
    assert "tests are missing" not in page and "holds 2,100 tests of 1 run(s)" in page
    assert "and 1,800 more" in page and len(page) < 5_000_000
    found = choose_results([path], most=MAX_LINES)
    (run,) = group_runs(found.records)
    assert found.partial == {"same"} and len(run.records) == MAX_LINES
    assert "only the first tests" in verify_run(run, partial=True).gaps[-1]
    checked = CliRunner().invoke(report, [str(path), "--verify"])
    assert checked.exit_code != 0 and "a test is there twice" in checked.output


def test_a_broken_line_is_found_even_among_many(tmp_path: Path) -> None:
    path = copies(tmp_path, 3_000)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:7], "no result\n", *lines[7:]]))
    with pytest.raises(InputError, match=r"r\.jsonl:8: not JSON"):
        choose_results([path], most=MAX_LINES)
    path.write_text("".join(lines)[:-40])
    assert "cut short" in " ".join(choose_results([path], most=MAX_LINES).notes)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30), st.integers(1, 12))
def test_the_newest_runs_are_taken_whole(rows: list[tuple[int, int]], most: int) -> None:
    data = "".join(
        json.dumps({"a": '"run_id": "x"', "run_id": f"r{run}", "time": f"t{time}"}) + "\n"
        for run, time in rows
    ).encode()
    newest = find_newest(data, line_spans(data), most)
    assert newest.n_tests == len(rows) and newest.n_runs == len({run for run, _ in rows})
    taken = {rows[i][0] for i in newest.lines}
    assert len(taken) == newest.n_taken and (len(newest.lines) <= most)
    latest = {run: max(t for r, t in rows if r == run) for run, _ in rows}
    if newest.cut_run is None:
        assert len(newest.lines) == sum(run in taken for run, _ in rows)
    left = set(latest) - taken
    assert all(latest[a] <= latest[b] for a in left for b in taken)


def test_many_runs_are_summed_up(tmp_path: Path) -> None:
    one = request(0, n_prompt=1, prefill_ms=1, n_out=9, step_ms=9)
    base = records([run_of(BenchTest("decode", 0, 0, 8), [one])])[0]
    many = [
        {**base, "run_id": f"{i:08x}", "time": f"2026-01-01T{i // 60:02}:{i % 60:02}:00"}
        for i in range(300)
    ]
    page = page_of(stored(tmp_path, many))
    assert "300 runs side by side" in page and "The newest 200 of 300 runs" in page
    assert len(page.encode()) < 2_000_000


def test_flags_that_differ_in_a_percentage_share_a_line() -> None:
    made = records()
    made[1]["flags"] = ["shared CPU: others used 1.20 cores"]
    made[2]["flags"] = ["drift: the second half ran -9%"]
    made[3]["flags"] = ["drift: the second half ran +7%"]
    made[4]["flags"] = []
    assert flag_lines(group_runs(made)[0]) == [
        "shared CPU: others used 1.20 cores (prefill 512)",
        "drift: the second half ran -9% (decode 32 at depth 0), +7% (decode 32 at depth 512)",
    ]


def test_memory_without_samples_is_not_measured(tmp_path: Path) -> None:
    run = records()
    for record in run:
        for trace in record["traces"]:
            trace["memory"] = []
    found = memory_over_time(group_runs(run)[0])
    assert isinstance(found, Missing)


def test_formats_follow_the_suffix(tmp_path: Path) -> None:
    path = stored(tmp_path)
    starts = {"html": b"<!doctype", "png": b"\x89PNG", "json": b"[", "md": b"#"}
    for suffix, magic in starts.items():
        out = tmp_path / f"report.{suffix}"
        done = CliRunner().invoke(report, [str(path), "-o", str(out)], catch_exceptions=False)
        assert done.exit_code == 0
        assert out.read_bytes().lstrip().startswith(magic), suffix


def test_without_the_extra_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = CliRunner().invoke(report, [str(path), "-o", str(tmp_path / "r.html")])
    assert isinstance(result.exception, EngineMissingError)
    assert "pip install 'jinja2>=3.1.6' 'matplotlib" in (result.exception.next_step or "")
    assert CliRunner().invoke(report, [str(path)]).exit_code == 0  # Markdown needs nothing
