"""Choose a candidate for a plan; if none will do, say what is short and what would."""

import math
from dataclasses import dataclass, replace
from typing import Any

from boardfit.converters.formats.gguf.recipe import AS_IS
from boardfit.converters.plan.candidate import Candidate
from boardfit.converters.plan.options import PlanOptions, describe_needs
from boardfit.converters.plan.planner import Planner
from boardfit.converters.plan.weights import is_quantized_file
from boardfit.edge.errors import DeadlineError, DoesNotFitError
from boardfit.edge.units import format_bytes, format_seconds

_PROBE_FIRST = "run `edge probe` on the board, then plan for the profile it writes"


@dataclass(frozen=True)
class NearestTime:
    """The least seconds that a board could keep: of the whole answer, and of its first token."""

    within_s: float
    first_within_s: float | None

    @property
    def options(self) -> str:
        """As it is asked for on the command line."""
        first = self.first_within_s
        tail = "" if first is None else f" --first-within {_argument(first)}"
        return f"--within {_argument(self.within_s)}{tail}"

    @property
    def text(self) -> str:
        """For people: `1.80 s, first token 0.50 s`."""
        first = self.first_within_s
        tail = "" if first is None else f", first token {format_seconds(first)}"
        return f"{format_seconds(self.within_s)}{tail}"


def choose_candidate(planner: Planner) -> Candidate:
    """Choose the highest rung that fits and is in time. Raises DoesNotFitError with the exact
    shortfall, DeadlineError when only time is short.
    """
    chosen = find_highest_fitting(planner)
    if chosen is not None:
        return chosen
    rungs = planner.list_rungs()
    if planner.options.needs:
        refuse_needs(planner)
    elif planner.options.has_deadline:
        refuse_deadline(planner, rungs[0][1])
    leanest = min((planner.find_leanest(w, n) for w, n in rungs), key=lambda c: c.peak_bytes)
    shortfall = leanest.peak_bytes - planner.budget_bytes
    raise DoesNotFitError(
        f"{leanest.recipe} with a context of {leanest.n_ctx} needs"
        f" {format_bytes(leanest.peak_bytes)} on {planner.profile.name}, which leaves"
        f" {format_bytes(planner.budget_bytes)} free: {format_bytes(shortfall)}"
        f" ({shortfall} bytes) too much",
        shortfall_bytes=shortfall,
        next_step=suggest_changes(planner, leanest),
    )


def find_highest_fitting(planner: Planner) -> Candidate | None:
    """Find the highest rung that fits and is in time; None when none is. With a deadline, recipes
    that lose more quality but run faster are looked at too, once none on the ladder will do.

    A file that is quantized already runs as it stands where it will do: quantizing it again only
    loses. `speed` and `memory` ask for more, and take a recipe that is faster or smaller.
    """
    options, as_is = planner.options, None
    # An importance matrix asks for quantizing.
    if options.recipe is None and not options.has_imatrix and is_quantized_file(planner.spec):
        as_is = _find_highest_recipe(planner.with_options(replace(options, recipe=AS_IS)))
    if as_is is None:
        return _find_highest_recipe(planner)
    has_room = as_is.n_ctx >= planner.base_context
    wants_more = options.prefer in ("speed", "memory")
    if has_room and not wants_more:
        return as_is
    converted = _find_highest_recipe(planner)
    if converted is None:
        return as_is
    if not has_room and converted.n_ctx > as_is.n_ctx:
        return converted
    is_better = planner.rank(converted.weights) < planner.rank(as_is.weights)
    return converted if wants_more and is_better else as_is


def _find_highest_recipe(planner: Planner) -> Candidate | None:
    if planner.options.needs:  # they fix the context: the most preferred recipe that will do
        fast = _list_in_time(planner, planner.options.n_ctx)
        return min(fast, key=lambda c: planner.rank(c.weights), default=None)
    for weights, n_ctx in reversed(planner.list_rungs()):
        candidate = planner.find_best(weights, n_ctx)
        if planner.fits(candidate) and planner.is_in_time(candidate):
            return candidate
    if not planner.options.has_deadline:
        return None
    fast = _list_in_time(planner, planner.list_rungs()[0][1])
    return min(fast, key=lambda c: c.weights.perplexity_added, default=None)


def _list_fitting(planner: Planner, n_ctx: int | None) -> list[Candidate]:
    """Every recipe that fits with this context."""
    assert n_ctx is not None  # with needs, PlanOptions sets it
    found = (planner.find_best(weights, n_ctx) for weights in planner.weights)
    return [candidate for candidate in found if planner.fits(candidate)]


def _list_in_time(planner: Planner, n_ctx: int | None) -> list[Candidate]:
    return [found for found in _list_fitting(planner, n_ctx) if planner.is_in_time(found)]


# -- a workload's requests and their time ----------------------------------------------------------


def find_nearest_time(planner: Planner) -> NearestTime | None:
    """Find the least seconds with which the board would do, rounded up; None when nothing fits or
    no speed is known. Asked for again, they are kept.
    """
    fitting = _list_fitting(planner, planner.options.n_ctx)
    known = [times for c in fitting if (times := planner.predict_answers(c)) is not None]
    best = min(known, key=lambda times: max(time.share for time in times), default=None)
    if best is None:
        return None
    whole_s = max(max(time.whole.mid, time.need.within_s or 0.0) for time in best)
    first_s = max(max(time.first.mid, time.need.first_within_s or 0.0) for time in best)
    has_first = any(time.need.first_within_s is not None for time in best)
    return NearestTime(_round_up(whole_s), _round_up(first_s) if has_first else None)


def refuse_needs(planner: Planner) -> None:
    """Raise DeadlineError when something fits, and time alone is short."""
    near = find_nearest_time(planner)
    if near is None:
        if not _list_fitting(planner, planner.options.n_ctx):
            return
        raise DeadlineError(
            f"no speed is known for {planner.profile.name}: no time can be promised on it",
            next_step=_PROBE_FIRST,
        )
    raise DeadlineError(
        f"{describe_needs(planner.options.needs)} is impossible on {planner.profile.name}; "
        f"nearest: {near.text}",
        next_step=f"{near.options}, a smaller model, or a faster board (--any-device lists them)",
    )


# -- a speed ---------------------------------------------------------------------------------------


def refuse_deadline(planner: Planner, n_ctx: int) -> None:
    """Raise DeadlineError when a recipe fits with a context of `n_ctx`, and only time is short."""
    fitting, options = _list_fitting(planner, n_ctx), planner.options
    if not fitting:
        return
    known = [c for c in fitting if c.ttft_s(1) is not None]
    wanted = f"{_describe_deadline(options)} cannot be promised on {planner.profile.name}"
    if not known:
        raise DeadlineError(f"{wanted}: no speed is known for this board", next_step=_PROBE_FIRST)
    rate = max(c.user_tps or 0.0 for c in known)
    soonest = min(planner.first_token_s(c) or float("inf") for c in known)
    raise DeadlineError(
        f"{wanted}: at best {rate:.1f} tokens/s, and a first token after {format_seconds(soonest)}",
        next_step="a smaller model, a shorter question (--prompt), fewer users, or a faster"
        " board (--any-device lists them)",
    )


def _describe_deadline(options: PlanOptions) -> str:
    asked = []
    if options.min_tps is not None:
        asked.append(f"{options.min_tps:g} tokens/s")
    if options.max_ttft_s is not None:
        limit = format_seconds(options.max_ttft_s)
        asked.append(f"a first token {limit} after {options.n_prompt} tokens")
    users = f" for {options.n_users} users" if options.n_users > 1 else ""
    return f"{' and '.join(asked)}{users}"


# -- memory ----------------------------------------------------------------------------------------


def suggest_changes(planner: Planner, leanest: Candidate) -> str:
    """Suggest what to change, the smallest change first; at last another model or board."""
    found = []
    for text, changes in _list_changes(planner):
        options = replace(planner.options, **changes)
        candidate = find_highest_fitting(planner.with_options(options))
        if candidate is not None:
            found.append(text.format(n_ctx=candidate.n_ctx, recipe=candidate.recipe))
    if found:
        return "fits: " + "; or ".join(found)
    return (
        f"a model of at most {format_bytes(_largest_artifact(planner, leanest))} as a file, or a"
        " board with more RAM; `edge devices` lists boards"
    )


def _list_changes(planner: Planner) -> list[tuple[str, dict[str, Any]]]:
    """Options that the user has fixed, and that may be left to the plan."""
    options = planner.options
    changes: list[tuple[str, dict[str, Any]]] = []
    if options.kv_type not in (None, "q8_0") and planner.lean_kv_types:
        changes.append(("--kv-type q8_0", {"kv_type": "q8_0"}))
    if options.n_ubatch is not None:
        changes.append(("no --ubatch", {"n_ubatch": None}))
    if options.n_ctx is not None:
        changes.append(("--ctx {n_ctx}", {"n_ctx": None}))
    if options.recipe is not None:
        changes.append(("--recipe {recipe}", {"recipe": None}))
    if options.n_ctx is not None and options.recipe is not None:
        changes.append(("--recipe {recipe} --ctx {n_ctx}", {"recipe": None, "n_ctx": None}))
    return changes


def _largest_artifact(planner: Planner, leanest: Candidate) -> int:
    """Bytes of file that would fit with this cache and scratch: the rest of the budget."""
    weights = sum(
        leanest.memory.get(kind, 0)
        for kind in ("weights_mapped", "weights_copied", "weights_repacked", "load_staging")
    )
    return max(0, planner.budget_bytes - (leanest.peak_bytes - weights))


def _round_up(seconds: float) -> float:
    """To two significant digits, never below."""
    if seconds <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    # Whole milliseconds are the least that is shown.
    step = max(step, 1e-3)
    return round(math.ceil(seconds / step - 1e-9) * step, 6)


def _argument(seconds: float) -> str:
    return f"{seconds:.10g}s" if seconds >= 1 else f"{seconds * 1e3:.10g}ms"
