"""One evaluated combination of recipe, context, cache type, threads, batch and loading."""

from __future__ import annotations

from dataclasses import dataclass

from boardfit.converters.plan.learned import Measured
from boardfit.converters.plan.weights import RecipeWeights
from boardfit.device_profiles.cost.memory import MemoryPhases
from boardfit.device_profiles.cost.speed import SpeedEstimate


@dataclass(frozen=True)
class Candidate:
    """One evaluated combination. `phases` are its bytes; `speed` is at depth 256.

    `speed` is what was measured on the board where `measured` is set, else the estimate;
    `predicted` is always the estimate.
    """

    weights: RecipeWeights
    n_ctx: int
    kv_type: str
    n_threads: int
    n_ubatch: int
    use_mmap: bool
    repack: bool
    phases: MemoryPhases
    speed: SpeedEstimate
    predicted: SpeedEstimate
    measured: Measured | None = None

    @property
    def recipe(self) -> str:
        return self.weights.recipe.id

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by kind, as in `Plan.memory`: what a phase never has is left out."""
        kinds = dict(self.phases.terms)
        del kinds["weights_kept_mapped"]
        kinds["engine_and_interpreter"] += kinds.pop("program_files")
        loading = ("weights_mapped",) if self.use_mmap else ("weights_copied", "load_staging")
        unused = {"weights_mapped", "weights_copied", "load_staging"} - set(loading)
        return {kind: n_bytes for kind, n_bytes in kinds.items() if kind not in unused}

    @property
    def peak_bytes(self) -> int:
        """Resident at the worst moment: loading and running follow each other."""
        return self.phases.peak_total

    def user_tps(self, n_users: int) -> float | None:
        """Tokens per second that each of `n_users` gets at the least, all of them answering: served
        in turns. Decoding them in one batch reads the weights once, and can only be faster.
        """
        return None if self.speed.decode_tps is None else self.speed.decode_tps / n_users

    def ttft_s(self, n_prompt: int, n_users: int) -> float | None:
        """Seconds to the first token of `n_prompt` tokens, behind all other users' questions."""
        speed = self.speed
        if not speed.prefill_tps or not speed.decode_tps:
            return None
        return n_users * n_prompt / speed.prefill_tps + 1 / speed.decode_tps


def better_known(predicted: SpeedEstimate, measured: Measured | None) -> SpeedEstimate:
    """The estimate with measured figures in its place, each with its own bound."""
    if measured is None:
        return predicted
    decode, prefill = measured.decode_tps, measured.prefill_tps
    return SpeedEstimate(
        decode or predicted.decode_tps,
        prefill or predicted.prefill_tps,
        measured.bound if decode else predicted.decode_bound,
        measured.bound if prefill else predicted.prefill_bound,
    )
