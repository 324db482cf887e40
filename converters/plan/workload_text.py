"""`edge plan --within TIME --workload TASK`: what answers a workload in time, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from boardfit.converters.formats.table import AUTO, FORMATS
from boardfit.converters.plan.cells import bound_text
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.reach import SHARE, Need, needs_text
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.plan.workload_rows import WorkloadRow, model_rows, row_record, size_rows
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.catalog import all_profiles
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DeadlineError
from boardfit.edge.report.terminal import align_columns
from boardfit.edge.terminal import ProgressLine
from boardfit.edge.units import format_bytes, format_seconds, printable


class WorkloadPlan:
    """Rows of every board; without models, of the public ones of every size."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        options: PlanOptions,
        formats: Sequence[str],
        learned: Learned,
    ) -> None:
        self._specs, self._options, self._learned = list(specs), options, learned
        self._formats = list(FORMATS) if AUTO in formats else list(formats)
        self._scales: dict[str, WeighingScale] = {}

    def rows(self, profile: DeviceProfile) -> list[WorkloadRow]:
        if not self._specs:
            return size_rows(profile, self._options, self._learned, self._scales)
        return model_rows(
            self._specs, profile, self._options, self._formats, self._learned, self._scales
        )

    def other_board(self, but: DeviceProfile) -> DeviceProfile | None:
        """The board with the least memory that does it; None when none does."""
        boards = sorted(all_profiles().values(), key=lambda p: (p.ram_bytes, p.id))
        line = ProgressLine("looking at other boards")
        try:
            for done, profile in enumerate(boards):
                line(done, len(boards))
                if profile.id != but.id and best_row(self.rows(profile)):
                    return profile
        finally:
            line.close()
        return None


def plan_for_workload(
    models: Sequence[str],
    profiles: Sequence[DeviceProfile],
    options: PlanOptions,
    formats: Sequence[str],
    learned: Learned,
    *,
    as_json: bool,
) -> None:
    """Print what answers the workload on each of the boards; on all that we know, for none."""
    from boardfit.converters.source.resolve import open_model

    specs = [open_model(name) for name in models]
    plan = WorkloadPlan(specs, options, formats, learned)
    if profiles:
        echo_workload_plan(plan, profiles, options, as_json=as_json)
    else:
        echo_workload_boards(plan, options, as_json=as_json)


def best_row(rows: Sequence[WorkloadRow]) -> WorkloadRow | None:
    """The largest model in time; of its formats, the first that keeps the high bound too."""
    good = [row for row in rows if row.is_in_time]
    return max(good, key=lambda row: (row.n_params, row.reach == "sure"), default=None)


def echo_workload_plan(
    plan: WorkloadPlan, profiles: Sequence[DeviceProfile], options: PlanOptions, *, as_json: bool
) -> None:
    """The rows of every board on stdout. Raises DeadlineError when nothing is in time on any."""
    good = 0
    for number, profile in enumerate(profiles):
        rows = plan.rows(profile)
        if len(profiles) == len(rows) == 1 and rows[0].error is not None:
            raise rows[0].error
        good += best_row(rows) is not None
        if as_json:
            for row in rows:
                click.echo(json.dumps(row_record(row, profile)))
            continue
        lines = board_lines(profile, rows, options.needs)
        click.echo("\n".join([*([""] if number else []), *lines]))
    if good:
        return
    if len(profiles) > 1:
        raise DeadlineError(
            f"{needs_text(options.needs)} is impossible on these boards",
            next_step="more time, a smaller model, or --any-device to see where it is possible",
        )
    raise refusal(plan, profiles[0], rows, options)


def refusal(
    plan: WorkloadPlan, profile: DeviceProfile, rows: Sequence[WorkloadRow], options: PlanOptions
) -> DeadlineError:
    """What is impossible, what would be the nearest time, and on which board it is possible."""
    near = [row for row in rows if row.near is not None]
    other = plan.other_board(profile)
    board = f"this board: {other.name} (--device {other.id})" if other else ""
    text = f"{needs_text(options.needs)} is impossible on {profile.name}"
    if not near:
        reasons = sorted({row.why for row in rows})
        return DeadlineError(f"{text}: {reasons[0]}", next_step=board or "edge devices")
    row = min(near, key=lambda r: _seconds(r))
    assert row.near is not None
    first = row.near.first_within_s
    tail = "" if first is None else f", first token {format_seconds(first)}"
    message = f"{text}; nearest: {format_seconds(row.near.within_s)}{tail} with {row.name}"
    return DeadlineError(message, next_step=" or ".join(filter(None, (row.near.options, board))))


def _seconds(row: WorkloadRow) -> tuple[float, float]:
    return (row.near.within_s, row.near.first_within_s or 0.0) if row.near else (0.0, 0.0)


def board_lines(
    profile: DeviceProfile, rows: Sequence[WorkloadRow], needs: Sequence[Need]
) -> list[str]:
    """What does it on one board, as a table, and what follows from it."""
    lines = [f"{needs_text(needs)} on {profile.name}", *(_need_text(need) for need in needs), ""]
    table = [
        ("", "model", "recipe", "engine", "context", "peak", "first token", "whole answer", "")
    ]
    best = best_row(rows)
    for row in rows:
        if row.recipe is None or not row.answers:
            why = row.why
            if row.near is not None:
                why = f"too slow; nearest: {format_seconds(row.near.within_s)}"
                first = row.near.first_within_s
                why += "" if first is None else f", first token {format_seconds(first)}"
            table.append(("", row.name, "–", row.engine, "", "", "", "", printable(why, 120)))
            continue
        need, answer = row.worst
        task = f" ({need.task})" if len(needs) > 1 else ""
        table.append(
            (
                "▸" if row is best else "",
                row.name,
                row.recipe,
                row.engine,
                str(row.n_ctx),
                format_bytes(row.peak_bytes),
                format_seconds(answer.first.mid),
                format_seconds(answer.whole.mid) + task,
                reach_text(row),
            )
        )
    lines += align_columns([tuple(printable(cell, 120) for cell in cells) for cells in table])
    if best is not None:
        lines += ["", *_conclusion(rows, best)]
    return lines


def reach_text(row: WorkloadRow) -> str:
    """Whether the time is kept at the high bound of the speed model, likely, or not."""
    need, answer = row.worst
    high = format_seconds(answer.whole.high)
    if row.reach == "sure":
        return f"yes, at the high bound too ({high})"
    if row.reach == "likely":
        return f"likely; at the high bound {high}"
    return f"no: {format_seconds(answer.whole.mid)} of {format_seconds(need.within_s)}"


def _conclusion(rows: Sequence[WorkloadRow], best: WorkloadRow) -> list[str]:
    lines = []
    sure = [row for row in rows if row.reach == "sure"]
    if best.reach != "sure":
        largest = max(sure, key=lambda row: row.n_params, default=None)
        surely = f"{largest.name} is, regardless of the bound" if largest else "nothing surely is"
        lines.append(f"  {best.name} is likely in time; {surely}")
    _, answer = best.worst
    spread = bound_text(answer.whole.high / answer.whole.mid - 1)
    lines.append(
        f"  predicted {spread}, {best.basis}; {SHARE:.0%} of the requests are no longer than this"
    )
    return lines


def _need_text(need: Need) -> str:
    limits = format_seconds(need.within_s) if need.within_s is not None else "–"
    first = need.first_within_s
    tail = "" if first is None else f", first token {format_seconds(first)}"
    return (
        f"  {need.task}: {need.n_prompt} tokens read behind a cached system prompt of "
        f"{need.n_past}, {need.n_answer} written; {limits}{tail}"
    )


def echo_workload_boards(plan: WorkloadPlan, options: PlanOptions, *, as_json: bool) -> None:
    """Which boards do it, those with the least memory first. Raises DeadlineError if none does."""
    found = []
    profiles, line = list(all_profiles().values()), ProgressLine("planning")
    for done, profile in enumerate(profiles):
        line(done, len(profiles))
        found.append((profile, plan.rows(profile)))
    line.close()
    found.sort(key=lambda pair: (best_row(pair[1]) is None, pair[0].ram_bytes, pair[0].id))
    if as_json:
        for profile, rows in found:
            row = best_row(rows)
            record = row_record(row, profile) if row else {"device": profile.id, "reach": "no"}
            click.echo(json.dumps(record))
    else:
        click.echo("\n".join(_boards_lines(found, options)))
    if not any(best_row(rows) for _, rows in found):
        raise DeadlineError(
            f"{needs_text(options.needs)} is impossible on every known board",
            next_step="more time, or a smaller model",
        )


def _boards_lines(
    found: Sequence[tuple[DeviceProfile, Sequence[WorkloadRow]]], options: PlanOptions
) -> list[str]:
    good = [(profile, row) for profile, rows in found if (row := best_row(rows)) is not None]
    lines = [f"{needs_text(options.needs)}: {len(good)} of {len(found)} boards", ""]
    table = [("board", "free", "model", "recipe", "whole answer", "")]
    for profile, row in good:
        _, answer = row.worst
        table.append(
            (
                profile.id,
                format_bytes(profile.free_ram_bytes),
                row.name,
                str(row.recipe),
                format_seconds(answer.whole.mid),
                f"{reach_text(row)}; {row.basis}",
            )
        )
    lines += align_columns(table) if good else []
    bad = [(profile, rows) for profile, rows in found if best_row(rows) is None]
    if bad:
        lines += ["", "  these do not fit, or are too slow:"]
        width = max(len(profile.id) for profile, _ in bad)
        for profile, rows in bad:
            near = min((row for row in rows if row.near), key=_seconds, default=None)
            why = f"nearest {format_seconds(near.near.within_s)}" if near and near.near else ""
            why = why or (rows[0].why if rows else "")
            lines.append(f"  {profile.id:<{width}}  {printable(why, 120)}")
    return lines
