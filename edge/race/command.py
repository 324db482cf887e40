"""`edge race`: measure bundles of one model against each other on this machine."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click

from boardfit.edge.bench.record import MeasuredArtifact, make_records
from boardfit.edge.bench.store import append_results, find_month_file
from boardfit.edge.bench.workloads import Test
from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.errors import UsageError
from boardfit.edge.race.turns import (
    Course,
    EntrantAgreement,
    check_agreement,
    compare_answers,
    make_entrants,
    run_race,
)
from boardfit.edge.race.verdict import EntrantPace, Lead, find_leads, sentence
from boardfit.edge.report.rows import align_columns
from boardfit.edge.terminal.options import add_options
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import ProgressLine
from boardfit.edge.types import EngineInfo
from boardfit.edge.units import format_bytes, format_seconds, printable

PREFILL = (16, 128, 512, 2048)
DEPTHS = (0, 512, 2048)
QUICK_PREFILL, QUICK_DEPTHS = (16, 128), (0, 128)
ROUNDS, N_GEN = 5, 32

#: Adds the options of a race to every command that ends in one.
race_options = add_options(
    click.option(
        "--rounds", type=click.IntRange(min=1), default=ROUNDS, show_default=True,
        help="Number of rounds.",
    ),
    click.option(
        "--threads", "n_threads",
        help="Thread counts to try, for example 1,2,4. [default: 1, half, all cores]",
    ),
    click.option(
        "--ctx", "n_ctx", type=click.IntRange(min=64),
        help="Context length, in tokens. [default: the plans']",
    ),
    click.option("--quick", is_flag=True, help="Use short prompts and two rounds."),
    click.option(
        "--any-answers", is_flag=True, help="Race even if the engines answer differently."
    ),
    click.option(
        "--output", "-o", type=click.Path(path_type=Path), help="Append the results to this file."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
)  # fmt: skip


@click.command(name="race")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@race_options
def race(bundles: tuple[Path, ...], **options: Any) -> None:
    """Measure BUNDLES of one model in turns, to find the fastest engine and thread count.

    The result also shows for which prompt lengths each engine wins. Each engine runs in its own
    process. The results are stored, and `edge plan` uses them.
    """
    hold_race([open_bundle(path) for path in bundles], **options)


def hold_race(
    bundles: Sequence[Bundle],
    *,
    rounds: int,
    n_threads: str | None,
    n_ctx: int | None,
    quick: bool,
    any_answers: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Race, print and store. See the command for the errors."""
    entrants = make_entrants(bundles, parse_threads(n_threads))
    n_ctx = n_ctx or min(bundle.plan.n_ctx for bundle in bundles)
    tests = race_tests(n_ctx, quick=quick)
    agreements = compare_answers(entrants, n_ctx)
    if not any_answers:
        check_agreement(entrants[0], agreements)
    with closing(ProgressLine("measuring")) as line:
        courses = run_race(
            entrants, tests, n_ctx, rounds=min(2, rounds) if quick else rounds, progress=line
        )
    longest = max(test.n_prompt for test in tests)
    found = find_leads([measure_pace(course) for course in courses], longest)
    path = output or find_month_file()
    append_results(path, make_race_records(courses, found))
    if as_json:
        echo(json.dumps(as_record(courses, found, agreements)))
        return
    echo("\n".join(race_lines(courses, tests, found, agreements)))
    echo(f"\nstored in {path}; edge plan uses it", err=True)


def parse_threads(text: str | None) -> list[int]:
    """`1,2,4` → numbers. Raises UsageError."""
    if text is None:
        return []
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--threads is {printable(text)!r}; expected numbers such as 1,2,4")
    return [int(part) for part in parts]


def race_tests(n_ctx: int, *, quick: bool = False) -> list[Test]:
    """What a context of `n_ctx` tokens has room for. Raises UsageError when that is nothing."""
    n_gen = N_GEN // 2 if quick else N_GEN
    lengths = [n for n in (QUICK_PREFILL if quick else PREFILL) if n + 1 <= n_ctx]
    depths = [n for n in (QUICK_DEPTHS if quick else DEPTHS) if n + n_gen + 1 <= n_ctx]
    if not lengths or not depths:
        raise UsageError(f"a context of {n_ctx} tokens is too short to race", next_step="--ctx 512")
    return [Test("prefill", n, 0, 0) for n in lengths] + [
        Test("decode", 0, depth, n_gen) for depth in depths
    ]


def make_race_records(courses: Sequence[Course], found: Sequence[Lead]) -> list[dict[str, Any]]:
    """Result records, slowest entrant first: a plan takes the newest, which then is the best."""
    order = sorted(courses, key=lambda course: -measure_pace(course).seconds(128))
    start, records = datetime.now(timezone.utc), []
    for number, course in enumerate(order):
        time = (start + timedelta(seconds=number)).isoformat(timespec="seconds")
        info = EngineInfo(**course.info)
        bundle = course.entrant.bundle
        subject, repeat = MeasuredArtifact.from_bundle(bundle), f"edge race {bundle.path.name} …"
        runs = [*course.runs, course.loads]
        made = make_records(runs, subject, info, repeat, course.baseline)
        records += [{**record, "time": time, "race": sentence(found)} for record in made]
    return records


def as_record(
    courses: Sequence[Course], found: Sequence[Lead], agreements: Sequence[EntrantAgreement]
) -> dict[str, Any]:
    """The race as one JSON-able object."""
    return {
        "verdict": sentence(found),
        "leads": [asdict(lead) for lead in found],
        "agreement": [
            {"engine": r.entrant.engine, "recipe": r.entrant.recipe, "share": r.share}
            for r in agreements
        ],
        "entrants": [record_course(course) for course in courses],
    }


def record_course(course: Course) -> dict[str, Any]:
    entrant, names = course.entrant, ("prefill_tps", "decode_tps", "ttft_s")
    metrics = {run.test.label: run.metrics() for run in course.runs}
    return {
        "engine": entrant.engine,
        "recipe": entrant.recipe,
        "n_threads": entrant.n_threads,
        "bundle": str(entrant.bundle.path),
        "n_bytes": entrant.bundle.n_bytes,
        "load_s": find_load(course),
        "peak_anon_bytes": peak_anonymous(course),
        "tests": {
            label: {name: found.get(name) for name in names} for label, found in metrics.items()
        },
        "flags": course.flags,
    }


# ---- as text: one row per entrant, medians, fastest first ----------------------------------------


def measure_pace(course: Course) -> EntrantPace:
    """Medians of a finished course."""
    tests = [run.test for run in course.runs]
    prefill = {t.n_prompt: course.find_median(t, "prefill_s") for t in tests if t.kind == "prefill"}
    decode = {t.n_depth: course.find_median(t, "decode_tps") for t in tests if t.kind == "decode"}
    known = [{n: value for n, value in found.items() if value} for found in (prefill, decode)]
    return EntrantPace(course.entrant.label, *known)


def table(courses: Sequence[Course], tests: Sequence[Test]) -> list[str]:
    """Tokens per second by test; TTFT of the shortest prompt, load, peak of anonymous memory."""
    shortest = next(t for t in tests if t.kind == "prefill")
    heads = [f"pp{t.n_prompt}" if t.kind == "prefill" else f"tg@{t.n_depth}" for t in tests]
    rows = [("entrant", *heads, "TTFT", "load", "anonymous", "file")]
    for course in sorted(courses, key=lambda c: measure_pace(c).seconds(128)):
        rates = [course.find_median(test, f"{test.kind}_tps") for test in tests]
        cells = ["–" if r is None else f"{r:.1f}" if r < 100 else f"{r:.0f}" for r in rates]
        ttft_s, load_s = course.find_median(shortest, "ttft_s"), find_load(course)
        sizes = (peak_anonymous(course), course.entrant.bundle.n_bytes)
        times = (format_seconds(ttft_s), format_seconds(load_s))
        rows.append((course.entrant.label, *cells, *times, *map(format_bytes, sizes)))
    return align_columns(rows)


def find_load(course: Course) -> float | None:
    return course.find_median(course.loads.test, "load_s")


def peak_anonymous(course: Course) -> int | None:
    figures = [run.metrics().get("peak_anon_bytes") for run in course.runs]
    return max((int(figure["maximum"]) for figure in figures if figure), default=None)


def race_lines(
    courses: Sequence[Course],
    tests: Sequence[Test],
    found: Sequence[Lead],
    agreements: Sequence[EntrantAgreement],
) -> list[str]:
    """The verdict, the table, who agrees with whom, and what disturbed it."""
    lines = [sentence(found), "", *table(courses, tests)]
    lines += ["", "  pp: prefill, tg: decode, tokens/s, medians; answers of 64 tokens decide"]
    if agreements:
        first = courses[0].entrant
        shares = ", ".join(
            f"{row.entrant.engine} {row.entrant.recipe} {row.share:.1%}" for row in agreements
        )
        lines.append(f"  same greedy token as {first.engine} {first.recipe}: {shares}")
    flags = sorted({flag.split(":")[0] for course in courses for flag in course.flags})
    if flags:
        lines.append(f"  disturbed: {', '.join(flags)}; repeat it on a quiet machine")
    return lines
