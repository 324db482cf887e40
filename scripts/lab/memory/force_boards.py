"""Choose the runs that prove the plan of each board of at most 8 GiB.

Boards that leave nearly the same memory free get the same plan. One proof then stands for all of
them: the plan is run within what the smallest leaves free, and the next bigger plan, which all of
them refuse, within what the largest does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from boardfit.converters.plan.candidate import Candidate
from boardfit.converters.plan.choose import choose_candidate
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import Planner
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.catalog import shipped_profiles
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import EdgeError
from boardfit.edge.units import GIB, MIB
from lab.memory.truth import Combination, predict
from lab.memory.truth_models import CONFIGS, hollow_spec

LARGEST_RAM_BYTES = 8 * GIB


@dataclass(frozen=True)
class Subject:
    """What boards are tried with from `least_free_mib` on: a model of true size, and what its user
    asks for. Unless `computed_whole`, the context is filled from a saved state, and a whole
    micro-batch is computed behind it: filling it token by token takes hours for a large model.

    A refused plan whose weights are mapped reads the missing part again for every token, and takes
    long to show it; of large models it is run `with_weights_read`, and dies while it loads.
    """

    least_free_mib: int
    model: str
    options: PlanOptions
    computed_whole: bool = False
    with_weights_read: bool = True


SUBJECTS: Sequence[Subject] = (
    Subject(0, "smollm2-360m", PlanOptions(), computed_whole=True, with_weights_read=False),
    Subject(600, "qwen3-0.6b", PlanOptions(), with_weights_read=False),
    Subject(1500, "qwen3-1.7b", PlanOptions(n_ubatch=64), with_weights_read=False),
    Subject(2100, "llama-3.2-3b", PlanOptions(n_ubatch=64), with_weights_read=False),
    Subject(2500, "llama-3.2-3b", PlanOptions(n_ubatch=64)),
    Subject(3300, "qwen3-4b", PlanOptions(n_ctx=4096, n_ubatch=64, prefer="quality")),
    Subject(4700, "llama-3.1-8b", PlanOptions(n_ctx=4096, n_ubatch=64, prefer="quality")),
    Subject(6000, "llama-3.1-8b", PlanOptions(n_ctx=4096, n_ubatch=16, prefer="quality")),
)


@dataclass(frozen=True)
class PlannedRun:
    """What to run for a board: `bytes_there` are predicted for it, `bytes_here` for the kernels of
    the machine that stands in, which may repack fewer matrices.
    """

    combination: Combination
    bytes_there: int
    bytes_here: int

    @property
    def missing_here(self) -> int:
        """Bytes that the run takes on its board and not here."""
        return self.bytes_there - self.bytes_here


@dataclass(frozen=True)
class Claim:
    """What the planner says of one board: this runs, and that does not."""

    board: str
    free_bytes: int
    planned: PlannedRun
    refused: PlannedRun

    @property
    def plans(self) -> tuple[Combination, Combination]:
        return self.planned.combination, self.refused.combination


@dataclass(frozen=True)
class BoardClass:
    """Boards of which the planner says the same, by what they leave free."""

    claims: tuple[Claim, ...]

    @property
    def name(self) -> str:
        return self.claims[0].board

    @property
    def boards(self) -> list[str]:
        return [claim.board for claim in self.claims]

    @property
    def smallest(self) -> Claim:
        return self.claims[0]

    @property
    def largest(self) -> Claim:
        return self.claims[-1]


def small_boards() -> list[DeviceProfile]:
    """Boards of at most 8 GiB on which the engine runs."""
    found = [p for p in shipped_profiles().values() if p.ram_bytes <= LARGEST_RAM_BYTES]
    supports = {p.id: p.engine_support("llama_cpp") for p in found}
    return [p for p in found if (support := supports[p.id]) is None or support.runs]


def subject_of(profile: DeviceProfile) -> Subject:
    """What a board is tried with."""
    return [s for s in SUBJECTS if s.least_free_mib * MIB <= profile.free_ram_bytes][-1]


def board_classes(
    profiles: Iterable[DeviceProfile], here: DeviceProfile, upstream: Path | None
) -> list[BoardClass]:
    """Boards grouped by what is claimed of them, those with the least memory first."""
    groups: dict[tuple[Any, ...], list[Claim]] = {}
    for profile in sorted(profiles, key=lambda p: (p.free_ram_bytes, p.id)):
        claim = claim_of(profile, here, upstream)
        groups.setdefault(claim.plans, []).append(claim)
    return [BoardClass(tuple(claims)) for claims in groups.values()]


def claim_of(profile: DeviceProfile, here: DeviceProfile, upstream: Path | None) -> Claim:
    """The plan for a board and its subject, and the next bigger one that cannot fit: higher on the
    ladder of recipes and contexts or, where the plan is the highest, the next model in size.
    """
    subject = subject_of(profile)
    planner = _planner(subject.model, profile, subject.options, upstream)
    chosen = choose_candidate(planner)
    bigger_model, bigger = _next_bigger(upstream, subject, planner, chosen)
    n_computed = None if subject.computed_whole else chosen.n_ubatch
    return Claim(
        profile.id,
        planner.budget_bytes,
        _run_of(subject.model, chosen, n_computed, here, upstream),
        _run_of(bigger_model, bigger, None, here, upstream),
    )


def _next_bigger(
    upstream: Path | None, subject: Subject, planner: Planner, chosen: Candidate
) -> tuple[str, Candidate]:
    rungs = planner.list_rungs()
    place = [(w.recipe.id, n) for w, n in rungs].index((chosen.recipe, chosen.n_ctx))
    for weights, n_ctx in rungs[place + 1 :]:
        leanest = planner.find_leanest(weights, n_ctx)
        if _cannot_fit(planner, leanest):
            return subject.model, _refused_way(planner, leanest, subject)
    order = sorted(CONFIGS, key=lambda name: _spec(name, upstream).shape.n_params)
    for name in order[order.index(subject.model) + 1 :]:
        other = _planner(name, planner.profile, planner.options, upstream)
        leanest = other.find_leanest(*other.list_rungs()[0])
        if _cannot_fit(other, leanest):
            return name, _refused_way(other, leanest, subject)
    raise EdgeError(f"{planner.profile.id} holds every model that there is a shape of")


def _cannot_fit(planner: Planner, candidate: Candidate) -> bool:
    """Whether it is too large without the margin too. What is refused for the margin alone may run:
    that much the prediction does not know.
    """
    return candidate.peak_bytes - candidate.memory["margin"] > planner.budget_bytes


def _refused_way(planner: Planner, leanest: Candidate, subject: Subject) -> Candidate:
    """The leanest way to run what cannot fit, or the leanest with its weights read."""
    if not subject.with_weights_read:
        return leanest
    ways = [way for way in planner.list_ways() if not way.use_mmap]
    found = (planner.evaluate(leanest.weights, leanest.n_ctx, way) for way in ways)
    return min(found, key=lambda candidate: candidate.peak_bytes)


def _run_of(
    model: str,
    candidate: Candidate,
    n_computed: int | None,
    here: DeviceProfile,
    upstream: Path | None,
) -> PlannedRun:
    c = candidate
    # A board whose cores have no repacked kernels for these types gets none here either.
    repack = c.repack and c.memory["weights_repacked"] > 0
    combination = Combination(
        model,
        c.recipe,
        c.n_ctx,
        c.kv_type,
        c.n_ubatch,
        c.use_mmap,
        repack,
        n_threads=1,
        n_computed=n_computed,
    )
    here_bytes = predict(_spec(model, upstream), combination, here.isa).with_margin().peak_total
    return PlannedRun(combination, c.peak_bytes, here_bytes)


def _planner(
    model: str, profile: DeviceProfile, options: PlanOptions, upstream: Path | None
) -> Planner:
    return Planner(_spec(model, upstream), profile, options, scale=_scale(model, upstream))


@lru_cache(maxsize=32)
def _scale(model: str, upstream: Path | None) -> WeighingScale:
    return WeighingScale(_spec(model, upstream))


@lru_cache(maxsize=32)
def _spec(model: str, upstream: Path | None) -> ModelSpec:
    return hollow_spec(model, upstream)
