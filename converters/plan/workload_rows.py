"""Models (or sizes of models) against a workload on one board: a row each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from boardfit.converters.build.jobs import plan_any
from boardfit.converters.formats.table import FORMATS
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import ENGINE, Planner
from boardfit.converters.plan.reach import (
    Answer,
    Nearest,
    Need,
    Reach,
    answers_of,
    bounded_answer,
    nearest,
    reach_of,
)
from boardfit.converters.plan.sizes import SIZES, hollow_spec
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.models import known_models
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DeadlineError, DoesNotFitError, EdgeError
from boardfit.edge.units import format_bytes


@dataclass(frozen=True)
class WorkloadRow:
    """One model in one format on one board. `recipe` and what follows is None when it cannot run
    there; `answers` is what it takes, in time or not; `near` the least time it could keep; `error`
    is set where it is not time that is short.
    """

    name: str
    n_params: int
    engine: str
    reach: Reach
    why: str = ""
    recipe: str | None = None
    n_ctx: int | None = None
    peak_bytes: int | None = None
    answers: tuple[tuple[Need, Answer], ...] = ()
    near: Nearest | None = None
    basis: str = ""
    error: EdgeError | None = None

    @property
    def is_in_time(self) -> bool:
        return self.reach != "no"

    @property
    def worst(self) -> tuple[Need, Answer]:
        """The task that takes the largest part of its time."""
        return max(self.answers, key=lambda pair: _part(*pair))


def _part(need: Need, answer: Answer) -> float:
    parts = [0.0]
    if need.within_s is not None:
        parts.append(answer.whole.mid / need.within_s)
    if need.first_within_s is not None:
        parts.append(answer.first.mid / need.first_within_s)
    return max(parts)


def model_rows(
    specs: Sequence[ModelSpec],
    profile: DeviceProfile,
    options: PlanOptions,
    formats: Sequence[str],
    learned: Learned,
    scales: dict[str, WeighingScale],
) -> list[WorkloadRow]:
    """Every model in every format, the smallest model first. `scales` keeps weights for the next
    board.
    """
    rows = []
    for spec in sorted(specs, key=lambda s: s.shape.n_params):
        for name in formats:
            if FORMATS[name].is_streamed:
                scale = scales.setdefault(spec.source.fingerprint, WeighingScale(spec))
                rows.append(gguf_row(spec, profile, options, learned, scale))
            else:
                rows.append(_format_row(spec, profile, options, learned, name))
    return rows


def size_rows(
    profile: DeviceProfile, options: PlanOptions, learned: Learned, scales: dict[str, WeighingScale]
) -> list[WorkloadRow]:
    """Public models of every size, the smallest first, up to two in a row that will not do."""
    rows: list[WorkloadRow] = []
    for row in _sizes(profile, options, learned, scales):
        rows.append(row)
        if len(rows) > 2 and not any(r.is_in_time for r in rows[-2:]):
            break
    return rows


def _sizes(
    profile: DeviceProfile, options: PlanOptions, learned: Learned, scales: dict[str, WeighingScale]
) -> Iterator[WorkloadRow]:
    for name in SIZES:
        spec = hollow_spec(known_models()[name])
        scale = scales.setdefault(name, WeighingScale(spec))
        row = gguf_row(spec, profile, options, learned, scale)
        yield replace(row, name=f"{row.n_params / 1e9:.1f}B like {name}")


def gguf_row(
    spec: ModelSpec,
    profile: DeviceProfile,
    options: PlanOptions,
    learned: Learned,
    scale: WeighingScale,
) -> WorkloadRow:
    """A model as GGUF: the most preferred recipe that is in time, or why there is none."""
    n_params = spec.shape.n_params
    try:
        planner = Planner(spec, profile, options, scale=scale, learned=learned)
    except EdgeError as error:
        return WorkloadRow(spec.name, n_params, ENGINE, "no", str(error), error=error)
    try:
        chosen = planner.choose()
    except DoesNotFitError as error:
        why = f"{format_bytes(error.shortfall_bytes)} too much"
        return WorkloadRow(spec.name, n_params, ENGINE, "no", why, error=error)
    except DeadlineError as error:
        return WorkloadRow(spec.name, n_params, ENGINE, "no", str(error), near=nearest(planner))
    return WorkloadRow(
        spec.name,
        n_params,
        ENGINE,
        reach_of(planner, chosen),
        recipe=chosen.recipe,
        n_ctx=chosen.n_ctx,
        peak_bytes=chosen.peak_bytes,
        answers=tuple(answers_of(planner, chosen) or ()),
        basis="measured here" if chosen.measured else profile.basis,
    )


def _format_row(
    spec: ModelSpec, profile: DeviceProfile, options: PlanOptions, learned: Learned, name: str
) -> WorkloadRow:
    """A model in another format: its one plan, in time or not."""
    n_params = spec.shape.n_params
    try:
        plan = plan_any(spec, profile, name, replace(options, needs=()), learned)
    except EdgeError as error:
        return WorkloadRow(spec.name, n_params, name, "no", str(error), error=error)
    if plan.prefill_tps is None or plan.decode_tps is None:
        return WorkloadRow(spec.name, n_params, name, "no", "no speed is known")
    bound = plan.error_bound or 0.0
    answers = tuple(
        (need, bounded_answer(need, plan.prefill_tps, plan.decode_tps, bound, bound))
        for need in options.needs
    )
    reached = {answer.reach(need) for need, answer in answers}
    reach: Reach = "no" if "no" in reached else "likely" if "likely" in reached else "sure"
    return WorkloadRow(
        spec.name,
        n_params,
        plan.engine,
        reach,
        recipe=plan.recipe,
        n_ctx=plan.n_ctx,
        peak_bytes=plan.peak_bytes,
        answers=answers,
        basis=plan.basis,
    )


def row_record(row: WorkloadRow, profile: DeviceProfile) -> dict[str, Any]:
    """One row as a JSON-able object. Seconds as [low, likely, high]."""
    near = row.near
    return {
        "device": profile.id,
        "model": row.name,
        "n_params": row.n_params,
        "engine": row.engine,
        "reach": row.reach,
        "why": row.why,
        "recipe": row.recipe,
        "n_ctx": row.n_ctx,
        "peak_bytes": row.peak_bytes,
        "basis": row.basis,
        "tasks": [
            {
                "task": need.task,
                "n_prompt": need.n_prompt,
                "n_answer": need.n_answer,
                "within_s": need.within_s,
                "first_within_s": need.first_within_s,
                "first_s": [answer.first.low, answer.first.mid, answer.first.high],
                "whole_s": [answer.whole.low, answer.whole.mid, answer.whole.high],
                "reach": answer.reach(need),
            }
            for need, answer in row.answers
        ],
        "nearest": None
        if near is None
        else {"within_s": near.within_s, "first_within_s": near.first_within_s},
    }
