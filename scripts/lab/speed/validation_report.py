"""The validation report: errors and coverage by board and engine class, with groups left out.

report(read_rows(path))["cpu"]["decode_median_error"]
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import exp, log
from typing import Any

from boardfit.device_profiles.cost.engine_classes import EngineClass
from lab.speed.engine_classes import ENGINE_CLASSES
from lab.speed.published import counted, slug
from lab.speed.published_rows import Row
from lab.speed.validation import METRICS, Aside, Case, judge, without_own_bandwidth
from lab.speed.validation_bounds import fitted_bounds, refitted_coverage


def summarize(cases: Sequence[Case]) -> dict[str, Any]:
    """Medians, 90th percentiles and coverage of a set of cases; None where there is none."""
    out: dict[str, Any] = {"rows_used": len({case.line for case in cases})}
    for metric in METRICS:
        errors = sorted(case.error for case in cases if case.metric == metric)
        out[f"{metric}_rows"] = len(errors)
        out[f"{metric}_median_error"] = statistics.median(errors) if errors else None
        high = min(len(errors) - 1, int(0.9 * len(errors)))
        out[f"{metric}_p90_error"] = errors[high] if errors else None
    out["coverage"] = sum(case.covered for case in cases) / len(cases) if cases else None
    return out


def _kin(case: Case) -> str:
    """Engine classes that share one table of kernel rates."""
    shared = case.engine.on_cpu and case.engine.name.startswith("llama.cpp")
    return "llama.cpp" if shared else case.engine.name


def leave_one_out(
    cases: Sequence[Case], group: Callable[[Case], str], blind: Sequence[Case] | None = None
) -> tuple[list[Case], int]:
    """Each group predicted with the scale of its engine class and metric refitted (median ratio) on
    the other groups, or that of its kin where only this group has the class. `blind` are the same
    cases without what was measured on their own board. Also returns how many cases have nothing to
    learn from; they are left out of the list.
    """
    ratios: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for case in cases:
        found = (group(case), log(case.measured / case.predicted))
        for name in {case.engine.name, f"kin of {_kin(case)}"}:
            ratios.setdefault((name, case.metric), []).append(found)
    scales: dict[tuple[str, str, str], float | None] = {}

    def scale(name: str, metric: str, left_out: str) -> float | None:
        if (name, metric, left_out) not in scales:
            known = ratios.get((name, metric), [])
            others = [ratio for other, ratio in known if other != left_out]
            scales[name, metric, left_out] = exp(statistics.median(others)) if others else None
        return scales[name, metric, left_out]

    out, alone = [], 0
    for case in cases if blind is None else blind:
        for name in (case.engine.name, f"kin of {_kin(case)}"):
            factor = scale(name, case.metric, group(case))
            if factor is not None:
                out.append(case.scaled(factor))
                break
        else:
            alone += 1
    return out, alone


def _soc(case: Case) -> str:
    """The SoC, higher bins of it included ("... for Galaxy")."""
    return slug(case.soc).split("-for-")[0]


def _model(case: Case) -> str:
    return case.model


def _left_out(cases: Sequence[Case], group: Callable[[Case], str]) -> dict[str, Any]:
    refitted = refitted_coverage(cases, group)
    return {**summarize(cases), "coverage_of_bounds_refitted": refitted}


def _of_family(family: str) -> EngineClass:
    return next(engine for engine in ENGINE_CLASSES.values() if engine.family == family)


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that `scripts/validate_predictions` prints."""
    cases, aside = judge(rows)
    blind, _ = judge(rows, without_own_bandwidth)
    known = [case for case in cases if case.model_known]
    cpu = [case for case in known if case.engine.on_cpu]
    by_board, board_alone = leave_one_out(
        cpu, _soc, [c for c in blind if c.model_known and c.engine.on_cpu]
    )
    by_board_known, _ = leave_one_out(cpu, _soc)
    by_model, model_alone = leave_one_out(cpu, _model)
    accelerated = [case for case in known if not case.engine.on_cpu]
    left_out = [by_board_known]
    left_out += [leave_one_out(accelerated, group)[0] for group in (_soc, _model)]
    return {
        "rows": len(rows),
        "cpu": summarize(cpu),
        "cpu_leave_one_board_out": {**_left_out(by_board, _soc), "cases_alone": board_alone},
        "cpu_leave_one_board_out_bandwidth_kept": _left_out(by_board_known, _soc),
        "cpu_leave_one_model_out": {**_left_out(by_model, _model), "cases_alone": model_alone},
        "accelerators": summarize(accelerated),
        "models_not_in_catalogue": summarize([case for case in cases if not case.model_known]),
        "boards": _by_board(known, aside),
        "engine_classes": _grouped(known, aside, lambda c: c.engine.name, lambda a: a.engine),
        "bounds": [
            {
                "family": family,
                "unusual_model": unusual,
                "metric": metric,
                "figures": figures,
                "needed": needed,
                "stated": getattr(_of_family(family).bounds(unusual=unusual), metric),
            }
            for (family, unusual, metric), (needed, figures) in sorted(
                fitted_bounds(left_out).items()
            )
        ],
        "set_aside": {
            reason: {
                "rows": count,
                "boards": counted(item.board for item in aside if item.reason == reason),
            }
            for reason, count in counted(item.reason for item in aside).items()
        },
    }


def _by_board(cases: Sequence[Case], aside: Sequence[Aside]) -> dict[str, Any]:
    boards = _grouped(cases, aside, lambda c: c.board, lambda a: a.board)
    for name, line in boards.items():
        here = [case for case in cases if case.board == name]
        away = [item for item in aside if item.board == name]
        classes = _grouped(here, away, lambda c: c.engine.name, lambda a: a.engine)
        line["engine_classes"] = classes
    return boards


def _grouped(
    cases: Sequence[Case],
    aside: Sequence[Aside],
    of_case: Callable[[Case], str],
    of_aside: Callable[[Aside], str],
) -> dict[str, Any]:
    names = sorted({of_case(case) for case in cases} | {of_aside(item) for item in aside})
    return {
        name: {
            **summarize([case for case in cases if of_case(case) == name]),
            "set_aside": counted(item.reason for item in aside if of_aside(item) == name),
        }
        for name in names
    }


def render(result: Mapping[str, Any]) -> Iterator[str]:
    """The report as lines of text."""
    yield f"{result['rows']} rows. Error: |predicted / measured - 1|. Bound: see below."
    yield ""
    yield from _table(
        "CPU rows of boards with a profile, models in the catalogue",
        {
            "all": result["cpu"],
            "leave one board out (its bandwidth unknown)": result["cpu_leave_one_board_out"],
            "leave one board out (its bandwidth known)": result[
                "cpu_leave_one_board_out_bandwidth_kept"
            ],
            "leave one model out": result["cpu_leave_one_model_out"],
        },
    )
    alone = result["cpu_leave_one_board_out"]["cases_alone"]
    models = result["cpu_leave_one_model_out"]["cases_alone"]
    yield "Leaving a group out refits the scale of each engine class on the other groups (on its"
    yield "kin, the llama.cpp builds, where only one group has it); the ratios between weight types"
    yield f"stay. {alone} figures have no other board to learn from, {models} no other model: they"
    yield "are not in those lines."
    kept = "cpu_leave_one_board_out_bandwidth_kept"
    names = ("cpu_leave_one_board_out", kept, "cpu_leave_one_model_out")
    shares = [_percent(result[name]["coverage_of_bounds_refitted"], 0) for name in names]
    yield f"With bounds refitted too, of the three lines are covered: {', '.join(shares)}."
    yield ""
    yield from _table(
        "Other rows",
        {
            "accelerators": result["accelerators"],
            "models not in the catalogue": result["models_not_in_catalogue"],
        },
    )
    yield ""
    yield "Bounds by family of engine classes: what 92 % of left-out figures need; what is stated"
    for line in result["bounds"]:
        kind = "per-layer embeddings or states" if line["unusual_model"] else ""
        yield (
            f"  {line['family']:<20} {line['metric']:<8} {kind:<31} {line['figures']:>4} figures"
            f" {line['needed']:>6.0%} needed {line['stated']:>6.0%} stated"
        )
    yield ""
    yield from _table("Engine class", result["engine_classes"])
    yield ""
    lines: dict[str, Any] = {}
    for board, line in result["boards"].items():
        lines[board] = line
        lines |= {f"  {board}: {name}": each for name, each in line["engine_classes"].items()}
    yield from _table("Board and engine class", lines)
    yield ""
    yield "Set aside"
    for reason, found in result["set_aside"].items():
        yield f"{found['rows']:5}  {reason}"
        where = ", ".join(f"{board} {count}" for board, count in found["boards"].items())
        yield from textwrap.wrap(where, 90, initial_indent=" " * 9, subsequent_indent=" " * 9)


def _table(title: str, lines: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"{title:46} {'rows':>4} {'decode':>6} {'median':>7} {'p90':>7}"
        f" {'prefill':>7} {'median':>7} {'p90':>7} {'covered':>8} {'aside':>6}"
    )
    for name, line in lines.items():
        label = f"  {name.split(': ')[-1]}" if name.startswith("  ") else name
        parts = [f"{label[:46]:46} {line['rows_used']:4}"]
        for metric, width in (("decode", 6), ("prefill", 7)):
            parts.append(f"{line[f'{metric}_rows']:{width}}")
            parts += [_percent(line[f"{metric}_{kind}_error"], 7) for kind in ("median", "p90")]
        parts.append(_percent(line["coverage"], 8))
        aside = line.get("set_aside")
        parts.append(f"{'' if aside is None else sum(aside.values()):>6}")
        yield " ".join(parts).rstrip()


def _percent(share: float | None, width: int) -> str:
    return f"{'–' if share is None else f'{share:.1%}':>{width}}"
