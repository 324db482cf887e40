"""`edge plan --within TIME --workload TASK`: what answers a workload in time, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from boardfit.converters.formats.base import AUTO, FORMATS
from boardfit.converters.plan import candidate
from boardfit.converters.plan.catalogue import open_to_plan
from boardfit.converters.plan.choose import NearestTime, choose_candidate, find_nearest_time
from boardfit.converters.plan.compare import SIZES, make_hollow_spec
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.make import plan_any
from boardfit.converters.plan.options import SHARE, Need, PlanOptions, describe_needs
from boardfit.converters.plan.planner import ENGINE, Planner
from boardfit.converters.plan.text import bound_text
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.catalog import all_profiles
from boardfit.device_profiles.cost.speed import SpeedEstimate
from boardfit.device_profiles.models import known_models
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DeadlineError, DoesNotFitError, EdgeError
from boardfit.edge.report.rows import align_columns
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import ProgressLine
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes, format_seconds, printable

# -- a row: one model in one format on one board ---------------------------------------------------


@dataclass(frozen=True)
class WorkloadRow:
    """One model in one format on one board. `recipe` and what follows is None when it cannot run
    there; `answers` is what it takes, in time or not; `near` the least time it could keep; `error`
    is set where it is not time that is short.
    """

    name: str
    n_params: int
    engine: str
    reach: candidate.Reach
    why: str = ""
    recipe: str | None = None
    n_ctx: int | None = None
    peak_bytes: int | None = None
    answers: tuple[candidate.AnswerTime, ...] = ()
    near: NearestTime | None = None
    basis: str = ""
    error: EdgeError | None = None

    def with_run(
        self, run: candidate.Candidate | Plan, answers: Sequence[candidate.AnswerTime], basis: str
    ) -> WorkloadRow:
        """The row with a run that fits, and what its answers take."""
        reach = candidate.find_weakest(answers) if answers else "no"
        return replace(
            self, reach=reach, recipe=run.recipe, n_ctx=run.n_ctx, peak_bytes=run.peak_bytes,
            answers=tuple(answers), basis=basis,
        )  # fmt: skip

    @property
    def is_in_time(self) -> bool:
        return self.reach != "no"

    @property
    def worst(self) -> candidate.AnswerTime:
        """The task that takes the largest part of its time."""
        return max(self.answers, key=lambda answer: answer.share)


def row_record(row: WorkloadRow, profile: DeviceProfile) -> dict[str, Any]:
    """One row as a JSON-able object. Seconds as [low, likely, high]."""
    names = ("n_params", "engine", "reach", "why", "recipe", "n_ctx", "peak_bytes", "basis")
    of_need = ("task", "n_prompt", "n_answer", "within_s", "first_within_s")
    return {
        "device": profile.id,
        "model": row.name,
        **{name: getattr(row, name) for name in names},
        "tasks": [
            {
                **{name: getattr(answer.need, name) for name in of_need},
                "first_s": [answer.first.low, answer.first.mid, answer.first.high],
                "whole_s": [answer.whole.low, answer.whole.mid, answer.whole.high],
                "reach": answer.reach,
            }
            for answer in row.answers
        ],
        "nearest": None if row.near is None else vars(row.near),
    }


class WorkloadPlan:
    """Rows of every board; without models, of the public ones of every size."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        options: PlanOptions,
        formats: Sequence[str],
        learned: Learned,
    ) -> None:
        self._specs = sorted(specs, key=lambda spec: spec.shape.n_params)
        self._options, self._learned = options, learned
        self._formats = list(FORMATS) if AUTO in formats else list(formats)
        self._scales: dict[str, WeighingScale] = {}  # what is weighed for one board serves all

    def list_rows(self, profile: DeviceProfile) -> list[WorkloadRow]:
        """Every model in every format, the smallest model first."""
        if not self._specs:
            return self._size_rows(profile)
        return [
            self._gguf_row(spec, profile, spec.source.fingerprint)
            if FORMATS[name].is_streamed
            else self._format_row(spec, profile, name)
            for spec in self._specs
            for name in self._formats
        ]

    def find_other_board(self, but: DeviceProfile) -> DeviceProfile | None:
        """The board with the least memory that does it; None when none does."""
        boards = sorted(all_profiles().values(), key=lambda p: (p.ram_bytes, p.id))
        line = ProgressLine("looking at other boards")
        try:
            for done, profile in enumerate(boards):
                line(done, len(boards))
                if profile.id != but.id and find_best_row(self.list_rows(profile)):
                    return profile
        finally:
            line.close()
        return None

    def _size_rows(self, profile: DeviceProfile) -> list[WorkloadRow]:
        """Public models of every size, the smallest first, up to two in a row that will not do."""
        rows: list[WorkloadRow] = []
        for name in SIZES:
            row = self._gguf_row(make_hollow_spec(known_models()[name]), profile, name)
            rows.append(replace(row, name=f"{row.n_params / 1e9:.1f}B like {name}"))
            if len(rows) > 2 and not any(r.is_in_time for r in rows[-2:]):
                break
        return rows

    def _gguf_row(self, spec: ModelSpec, profile: DeviceProfile, key: str) -> WorkloadRow:
        """A model as GGUF, or why not. `key` finds its weights again for the next board."""
        scale = self._scales.setdefault(key, WeighingScale(spec))
        row = WorkloadRow(spec.name, spec.shape.n_params, ENGINE, "no")
        try:
            planner = Planner(spec, profile, self._options, scale=scale, learned=self._learned)
        except EdgeError as error:
            return replace(row, why=str(error), error=error)
        try:
            chosen = choose_candidate(planner)
        except DoesNotFitError as error:
            why = f"{format_bytes(error.shortfall_bytes)} too much"
            return replace(row, why=why, error=error)
        except DeadlineError as error:
            return replace(row, why=str(error), near=find_nearest_time(planner))
        answers = planner.predict_answers(chosen) or ()
        return row.with_run(chosen, answers, chosen.describe_basis(profile))

    def _format_row(self, spec: ModelSpec, profile: DeviceProfile, name: str) -> WorkloadRow:
        """A model in another format: its one plan, in time or not."""
        row = WorkloadRow(spec.name, spec.shape.n_params, name, "no")
        try:
            plan = plan_any(spec, profile, name, replace(self._options, needs=()), self._learned)
        except EdgeError as error:
            return replace(row, why=str(error), error=error)
        bound = plan.error_bound or 0.0
        speed = SpeedEstimate(plan.decode_tps, plan.prefill_tps, bound, bound)
        found = [candidate.predict_answer(need, speed) for need in self._options.needs]
        answers = [answer for answer in found if answer is not None]
        if not answers:
            return replace(row, why="no speed is known")
        return replace(row, engine=plan.engine).with_run(plan, answers, plan.basis)


# -- what is printed -----------------------------------------------------------------------------


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
    planned = [open_to_plan(name) for name in models]
    for note in filter(None, (model.note for model in planned)):
        echo(f"note: {printable(note, 400)}", err=True)
    specs = [model.spec for model in planned]
    plan = WorkloadPlan(specs, options, formats, learned)
    if profiles:
        echo_workload_plan(plan, profiles, options, as_json=as_json)
    else:
        echo_workload_boards(plan, options, as_json=as_json)


def find_best_row(rows: Sequence[WorkloadRow]) -> WorkloadRow | None:
    """The largest model in time; of its formats, the first that keeps the high bound too."""
    good = [row for row in rows if row.is_in_time]
    return max(good, key=lambda row: (row.n_params, row.reach == "sure"), default=None)


def echo_workload_plan(
    plan: WorkloadPlan, profiles: Sequence[DeviceProfile], options: PlanOptions, *, as_json: bool
) -> None:
    """The rows of every board on stdout. Raises DeadlineError when nothing is in time on any."""
    good = 0
    for number, profile in enumerate(profiles):
        rows = plan.list_rows(profile)
        if len(profiles) == len(rows) == 1 and rows[0].error is not None:
            raise rows[0].error
        good += find_best_row(rows) is not None
        if as_json:
            for row in rows:
                echo(json.dumps(row_record(row, profile)))
            continue
        lines = board_lines(profile, rows, options.needs)
        echo("\n".join([*([""] if number else []), *lines]))
    if good:
        return
    if len(profiles) > 1:
        raise DeadlineError(
            f"{describe_needs(options.needs)} is impossible on these boards",
            next_step="more time, a smaller model, or --any-device to see where it is possible",
        )
    raise explain_refusal(plan, profiles[0], rows, options)


def explain_refusal(
    plan: WorkloadPlan, profile: DeviceProfile, rows: Sequence[WorkloadRow], options: PlanOptions
) -> DeadlineError:
    """What is impossible, what would be the nearest time, and on which board it is possible."""
    near = [row for row in rows if row.near is not None]
    other = plan.find_other_board(profile)
    board = f"this board: {other.name} (--device {other.id})" if other else ""
    text = f"{describe_needs(options.needs)} is impossible on {profile.name}"
    if not near:
        reasons = sorted({row.why for row in rows})
        return DeadlineError(f"{text}: {reasons[0]}", next_step=board or "edge devices")
    row = min(near, key=_seconds)
    assert row.near is not None
    message = f"{text}; nearest: {row.near.text} with {row.name}"
    return DeadlineError(message, next_step=" or ".join(filter(None, (row.near.options, board))))


def _seconds(row: WorkloadRow) -> tuple[float, float]:
    return (row.near.within_s, row.near.first_within_s or 0.0) if row.near else (0.0, 0.0)


def board_lines(
    profile: DeviceProfile, rows: Sequence[WorkloadRow], needs: Sequence[Need]
) -> list[str]:
    """What does it on one board, as a table, and what follows from it."""
    lines = [
        f"{describe_needs(needs)} on {profile.name}",
        *(_need_text(need) for need in needs),
        "",
    ]
    table = [
        ("", "model", "recipe", "engine", "context", "peak", "first token", "whole answer", "")
    ]
    best = find_best_row(rows)
    for row in rows:
        if row.recipe is None or not row.answers:
            why = row.why if row.near is None else f"too slow; nearest: {row.near.text}"
            table.append(("", row.name, "–", row.engine, "", "", "", "", printable(why, 120)))
            continue
        answer = row.worst
        task = f" ({answer.need.task})" if len(needs) > 1 else ""
        mark, first = "▸" if row is best else "", format_seconds(answer.first.mid)
        whole, peak = format_seconds(answer.whole.mid) + task, format_bytes(row.peak_bytes)
        cells = (mark, row.name, row.recipe, row.engine, str(row.n_ctx), peak)
        table.append((*cells, first, whole, reach_text(row)))
    lines += align_columns([tuple(printable(cell, 120) for cell in cells) for cells in table])
    if best is not None:
        lines += ["", *_conclusion(rows, best)]
    return lines


def reach_text(row: WorkloadRow) -> str:
    """Whether the time is kept at the high bound of the speed model, likely, or not."""
    answer = row.worst
    high = format_seconds(answer.whole.high)
    if row.reach == "sure":
        return f"yes, at the high bound too ({high})"
    if row.reach == "likely":
        return f"likely; at the high bound {high}"
    return f"no: {format_seconds(answer.whole.mid)} of {format_seconds(answer.need.within_s)}"


def _conclusion(rows: Sequence[WorkloadRow], best: WorkloadRow) -> list[str]:
    lines = []
    sure = [row for row in rows if row.reach == "sure"]
    if best.reach != "sure":
        largest = max(sure, key=lambda row: row.n_params, default=None)
        surely = f"{largest.name} is, regardless of the bound" if largest else "nothing surely is"
        lines.append(f"  {best.name} is likely in time; {surely}")
    answer = best.worst
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
        found.append((profile, plan.list_rows(profile)))
    line.close()
    found.sort(key=lambda pair: (find_best_row(pair[1]) is None, pair[0].ram_bytes, pair[0].id))
    if as_json:
        for profile, rows in found:
            row = find_best_row(rows)
            record = row_record(row, profile) if row else {"device": profile.id, "reach": "no"}
            echo(json.dumps(record))
    else:
        echo("\n".join(_boards_lines(found, options)))
    if not any(find_best_row(rows) for _, rows in found):
        raise DeadlineError(
            f"{describe_needs(options.needs)} is impossible on every known board",
            next_step="more time, or a smaller model",
        )


def _boards_lines(
    found: Sequence[tuple[DeviceProfile, Sequence[WorkloadRow]]], options: PlanOptions
) -> list[str]:
    good = [(profile, row) for profile, rows in found if (row := find_best_row(rows)) is not None]
    lines = [f"{describe_needs(options.needs)}: {len(good)} of {len(found)} boards", ""]
    table = [("board", "free", "model", "recipe", "whole answer", "")]
    for profile, row in good:
        free, whole = format_bytes(profile.free_ram_bytes), format_seconds(row.worst.whole.mid)
        verdict = f"{reach_text(row)}; {row.basis}"
        table.append((profile.id, free, row.name, str(row.recipe), whole, verdict))
    lines += align_columns(table) if good else []
    bad = [(profile, rows) for profile, rows in found if find_best_row(rows) is None]
    if bad:
        lines += ["", "  these do not fit, or are too slow:"]
        width = max(len(profile.id) for profile, _ in bad)
        for profile, rows in bad:
            near = min((row for row in rows if row.near), key=_seconds, default=None)
            why = f"nearest {format_seconds(near.near.within_s)}" if near and near.near else ""
            why = why or (rows[0].why if rows else "")
            lines.append(f"  {profile.id:<{width}}  {printable(why, 120)}")
    return lines
