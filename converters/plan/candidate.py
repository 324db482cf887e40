"""One evaluated run of a recipe: its memory, its speed, and the time of its answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from boardfit.converters.plan.learned import MeasuredRun
from boardfit.converters.plan.options import Need
from boardfit.converters.plan.weights import RecipeWeights
from boardfit.device_profiles.cost.model import Cost, RunSettings
from boardfit.device_profiles.cost.speed import SpeedEstimate
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.deadline.time_model import Span

Reach = Literal["sure", "likely", "no"]


@dataclass(frozen=True, kw_only=True)
class Candidate(RunSettings):
    """One evaluated run of a recipe's weights. `cost` is the estimate; `speed` is what was measured
    on the board where `measured` is set, else the estimate. Both speeds are at depth 256.
    """

    weights: RecipeWeights
    cost: Cost
    speed: SpeedEstimate
    measured: MeasuredRun | None

    @property
    def recipe(self) -> str:
        return self.weights.recipe.id

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by kind, as in `Plan.memory`: what a phase never has is left out."""
        kinds = dict(self.cost.memory.terms)
        del kinds["weights_kept_mapped"]
        kinds["engine_and_interpreter"] += kinds.pop("program_files")
        loading = ("weights_mapped",) if self.use_mmap else ("weights_copied", "load_staging")
        unused = {"weights_mapped", "weights_copied", "load_staging"} - set(loading)
        unused |= {kind for kind in ("table_rows", "server") if not kinds[kind]}
        return {kind: n_bytes for kind, n_bytes in kinds.items() if kind not in unused}

    @property
    def peak_bytes(self) -> int:
        """Resident at the worst moment: loading and running follow each other."""
        return self.cost.memory.peak_total

    @property
    def user_tps(self) -> float | None:
        """Tokens per second that each user gets at the least: all of them, served in turns."""
        return None if self.speed.decode_tps is None else self.speed.decode_tps / self.n_users

    def describe_basis(self, profile: DeviceProfile) -> str:
        """What the speeds on this board rest on."""
        return "measured here" if self.measured else profile.basis

    def ttft_s(self, n_prompt: int) -> float | None:
        """Seconds to the first token of `n_prompt` tokens, behind all other users' questions."""
        return self.speed.answer_s(self.n_users * n_prompt, 1)

    def carry_speed(self, there: SpeedEstimate) -> SpeedEstimate:
        """Each user's speed at the lengths that `there` is an estimate for. `speed` is that of 512
        prompt tokens and a depth of 256. The ratio of the two estimates carries it to other
        lengths.
        """
        speed, base = self.speed, self.cost.speed
        return SpeedEstimate(
            _carry(speed.decode_tps, there.decode_tps, base.decode_tps, self.n_users),
            _carry(speed.prefill_tps, there.prefill_tps, base.prefill_tps, self.n_users),
            speed.decode_bound,
            speed.prefill_bound,
        )


def _carry(
    rate: float | None, there: float | None, base: float | None, n_users: int
) -> float | None:
    if not rate:
        return None
    return (rate * (there / base) if there and base else rate) / n_users


# -- the time of an answer -------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerTime:
    """Seconds to the first token and to the last of an answer to `need`. It is in time when the
    likely seconds are; `reach` also states whether the high bound is.
    """

    need: Need
    first: Span
    whole: Span

    @property
    def limits(self) -> list[tuple[Span, float]]:
        """The seconds beside each limit that there is."""
        pairs = ((self.first, self.need.first_within_s), (self.whole, self.need.within_s))
        return [(span, limit) for span, limit in pairs if limit is not None]

    @property
    def reach(self) -> Reach:
        """Whether both limits are kept at the high bound, at the likely one, or not."""
        if all(span.high <= limit for span, limit in self.limits):
            return "sure"
        return "likely" if all(span.mid <= limit for span, limit in self.limits) else "no"

    @property
    def share(self) -> float:
        """The largest part of a limit that the likely seconds take; 0 without a limit."""
        return max((span.mid / limit for span, limit in self.limits), default=0.0)


def predict_answer(need: Need, speed: SpeedEstimate) -> AnswerTime | None:
    """Predict the seconds of a request at this speed; None where it is unknown."""
    if not speed.prefill_tps or not speed.decode_tps:
        return None
    token = _spread(1 / speed.decode_tps, speed.decode_bound)
    first = _spread(need.n_prompt / speed.prefill_tps, speed.prefill_bound) + token
    rest = need.n_answer - 1
    whole = first + Span(rest * token.low, rest * token.mid, rest * token.high)
    return AnswerTime(need, first, whole)


def find_weakest(times: Iterable[AnswerTime]) -> Reach:
    """Find the weakest verdict among all answers."""
    reached = {time.reach for time in times}
    return "no" if "no" in reached else "likely" if "likely" in reached else "sure"


def _spread(seconds: float, bound: float) -> Span:
    return Span(seconds / (1 + bound), seconds, seconds * (1 + bound))


# -- the Pareto front: candidates that no other one beats in every respect -------------------------


def list_qualities(candidate: Candidate) -> tuple[float, ...]:
    """List what counts, each the smaller the better: perplexity added, seconds per decoded token,
    seconds per prompt token, peak bytes, minus the context. Unknown speeds are the worst.
    """
    speed = candidate.speed
    return (
        candidate.weights.perplexity_added,
        1 / speed.decode_tps if speed.decode_tps else float("inf"),
        1 / speed.prefill_tps if speed.prefill_tps else float("inf"),
        float(candidate.peak_bytes),
        -float(candidate.n_ctx),
    )


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is at least as good in everything, and better in something."""
    a, b = list_qualities(one), list_qualities(other)
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def find_better(row: Candidate, rows: Sequence[Candidate]) -> Candidate | None:
    """Find the first row that beats this one in everything; None for rows of the front."""
    return next((other for other in rows if dominates(other, row)), None)
