"""Evaluates combinations of recipe, context, cache type, batch and loading for a model on a board.

Choices are rungs of a ladder, from the least (smallest recipe, short context) to the most; every
rung has at least the context and the recipe of the one below. The highest rung that fits is taken,
so that more RAM can never give a shorter context or a worse recipe. Within a rung, the ways to load
and run are tried from the fastest to the leanest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from boardfit.converters.formats.gguf.recipe import AS_IS, GgufRecipe, list_recipes, load_recipe
from boardfit.converters.plan.candidate import AnswerTime, Candidate, find_weakest, predict_answer
from boardfit.converters.plan.learned import Learned, MeasuredRun
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.weights import RecipeWeights, WeighingScale, weigh_as_is
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.memory import KV_BLOCK, embedding_rows
from boardfit.device_profiles.cost.model import CostModel, RunSettings
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.engines.llama.ready import SHELF_BYTES
from boardfit.edge.errors import EngineError, InputError, UsageError
from boardfit.edge.serve.unit import FORM_BYTES, FORM_BYTES_PER_TOKEN, SERVER_BYTES

#: The engine that GGUF artifacts are planned for.
ENGINE = "llama_cpp"

# The context a chat needs, wanted before a better recipe is; and the longest one taken unasked:
# beyond it, prefilling takes minutes on a board. `memory` stays at a short chat.
_CONTEXT_STEPS = (512, 1024, 2048, 4096, 8192)
_BASE_CONTEXT = {"balanced": 4096, "quality": 4096, "speed": 4096, "memory": 2048}
_LONGEST_CONTEXT = {"balanced": 8192, "quality": 8192, "speed": 8192, "memory": 2048}

# `balanced` takes 4-bit recipes, and 3 bits when nothing else fits: more bits slow decode down in
# proportion and gain little. `memory` and `speed` take no recipe that costs more than this much
# quality while another one fits (`boardfit.converters.plan.weights.PERPLEXITY_ADDED`).
_BALANCED = ("q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs", "q4_1", "q4_0", "q3_k_m")
_ACCEPTABLE_PERPLEXITY = 0.5
#: Tokens of a text that becomes a vector, where nothing else is asked for: memory grows with them.
EMBEDDED_TEXT = 512
_UBATCHES = (512, 256, 128, 64)


@dataclass(frozen=True)
class Way:
    """How a rung is loaded and run, from the fastest to the leanest."""

    kv_type: str
    n_ubatch: int
    use_mmap: bool
    repack: bool


#: Tokens of the prompt that a candidate's prefill speed is for.
_PROMPT_OF_SPEED = 512


class Planner:
    """Evaluates combinations for one model on one board. Sizes of recipes are computed once."""

    def __init__(
        self,
        spec: ModelSpec,
        profile: DeviceProfile,
        options: PlanOptions,
        *,
        scale: WeighingScale | None = None,
        learned: Learned | None = None,
    ) -> None:
        """`scale` weighs the model for several boards at once; it must be of the same `spec`.
        `learned` are stored results, which replace estimates.
        """
        if spec.reads_at_once:
            n_ctx = options.n_ctx or min(EMBEDDED_TEXT, spec.shape.n_ctx_train)
            options = replace(options, n_ctx=n_ctx, n_ubatch=n_ctx)
        self.spec, self.profile, self.options = spec, profile, options
        self.learned = learned or Learned(())
        self._costs = CostModel(
            spec.shape,
            profile,
            [tensor.name for tensor in spec.tensors],
            n_merges=len(spec.get("tokenizer.ggml.merges", ())),
        )
        self._n_threads: int | None = options.n_threads
        self._runs: dict[str, MeasuredRun | None] = {}
        self._check_engine()
        self._check_context()
        n_threads, n_cores = options.n_threads, profile.n_cores
        if n_threads is not None and n_threads > n_cores:
            raise UsageError(f"{n_threads} threads on {profile.name}, which has {n_cores} cores")
        self._check_kv_type()
        self._scale = scale or WeighingScale(spec, has_imatrix=options.has_imatrix)
        if options.recipe == AS_IS:
            self.weights = [weigh_as_is(spec)]
        else:
            self.weights = [self._scale.weigh(recipe) for recipe in self._wanted_recipes()]

    @property
    def budget_bytes(self) -> int:
        return self.profile.free_ram_bytes

    def _check_engine(self) -> None:
        support = self.profile.engine_support(ENGINE)
        if support is not None and not support.runs:
            raise EngineError(
                f"{ENGINE} does not run on {self.profile.name}: {support.note} [{support.source}]"
            )

    def _check_context(self) -> None:
        n_ctx, trained = self.options.n_ctx, self.spec.shape.n_ctx_train
        if n_ctx is None or n_ctx <= trained:
            return
        if self.options.needs:
            raise InputError(
                f"the workload's longest requests take {n_ctx} tokens with their answers, and"
                f" this model was trained for {trained}",
                next_step="a workload of shorter requests (edge tasks), or another model",
            )
        raise InputError(
            f"a context of {n_ctx} is beyond the {trained} tokens that this model was trained"
            " for; its answers would fall apart",
            next_step=f"use --ctx {trained} or less",
        )

    def _check_kv_type(self) -> None:
        kv_type = self.options.kv_type
        if kv_type is None:
            return
        if not self._costs.can_divide_heads(kv_type):
            raise InputError(
                f"a {kv_type} cache stores blocks of {KV_BLOCK[kv_type][0]} values, this model's"
                f" heads have {min(self.spec.shape.head_dims)}",
                next_step="use --kv-type f16",
            )
        if not self._costs.can_open_with(kv_type):
            raise InputError(
                f"a {kv_type} cache makes this model's graph larger than the engine's table of"
                " nodes, and the engine aborts",
                next_step="use --kv-type f16",
            )

    def _wanted_recipes(self) -> list[GgufRecipe]:
        if self.options.recipe:
            return [load_recipe(self.options.recipe)]
        everything = self.options.prefer != "balanced"
        return [recipe for recipe in list_recipes() if everything or recipe.id in _BALANCED]

    # -- what is tried ---------------------------------------------------------------------------

    def order_recipes(self) -> list[RecipeWeights]:
        """Recipes from the least to the most preferred. A recipe that is less preferred than
        another and no smaller is left out, so that falling back always saves bytes.
        """
        kept: list[RecipeWeights] = []
        for weights in sorted(self.weights, key=self.rank):
            if not kept or weights.artifact_bytes < kept[-1].artifact_bytes:
                kept.append(weights)
        return kept[::-1]

    def rank(self, weights: RecipeWeights) -> tuple[float, ...]:
        """Sort key, the most preferred first. Independent of the RAM."""
        prefer, added = self.options.prefer, weights.perplexity_added
        poor = float(added > _ACCEPTABLE_PERPLEXITY)
        if prefer == "speed":
            return (poor, self._answer_seconds(weights), added)
        if prefer == "memory":
            return (poor, weights.artifact_bytes, added)
        # F16 and BF16 lose as little as each other; few boards multiply BF16 fast.
        return (added, weights.artifact_bytes, self._answer_seconds(weights))

    def _answer_seconds(self, weights: RecipeWeights) -> float:
        """Time of a typical answer; bytes where speed is unknown. Measured figures count here only
        when there is one for every recipe: one recipe's result beside another's estimate would
        compare the estimate's error.
        """
        candidate = self.evaluate(weights, _CONTEXT_STEPS[0], next(self.list_ways()))
        all_measured = all(self._find_run(other) for other in self.weights)
        speed = candidate.speed if all_measured else candidate.cost.speed
        seconds = speed.typical_answer_s
        return float(weights.artifact_bytes) if seconds is None else seconds

    @property
    def base_context(self) -> int:
        """The context that is wanted before a better recipe is."""
        if self.options.n_ctx is not None:
            return self.options.n_ctx
        return min(_BASE_CONTEXT[self.options.prefer], self.spec.shape.n_ctx_train)

    def list_rungs(self) -> list[tuple[RecipeWeights, int]]:
        """(recipe, context) from the least to the most; both grow from each rung to the next."""
        recipes = self.order_recipes()
        if self.options.n_ctx is not None:
            return [(weights, self.options.n_ctx) for weights in recipes]
        trained, prefer = self.spec.shape.n_ctx_train, self.options.prefer
        steps = sorted({min(step, trained) for step in _CONTEXT_STEPS})
        base = self.base_context
        longest = min(_LONGEST_CONTEXT[prefer], trained)
        least, most = recipes[0], recipes[-1]
        return [
            *((least, step) for step in steps if step < base),
            *((weights, base) for weights in recipes),
            *((most, step) for step in steps if base < step <= longest),
        ]

    def list_ways(self) -> Iterator[Way]:
        """Ways to run a rung, in order of preference: an f16 cache before a q8_0 one, a large
        micro-batch before a small one, repacked kernels before the plain ones.
        """
        options = self.options
        kv_types = [options.kv_type] if options.kv_type else ["f16", *self.lean_kv_types]
        ubatches = [options.n_ubatch] if options.n_ubatch else list(_UBATCHES)
        for kv_type in kv_types:
            for n_ubatch in ubatches:
                # Without a mapping, the plain weights are copied too, but nothing exists twice.
                for use_mmap, repack in ((True, True), (False, True), (True, False)):
                    yield Way(kv_type, n_ubatch, use_mmap, repack)

    @functools.cached_property
    def lean_kv_types(self) -> list[str]:
        """Cache types smaller than f16 that this model's heads and the engine allow."""
        has_heads, costs = bool(self.spec.shape.head_dims), self._costs
        can = has_heads and costs.can_divide_heads("q8_0") and costs.can_open_with("q8_0")
        return ["q8_0"] if can else []

    # -- what it costs ---------------------------------------------------------------------------

    def evaluate(self, weights: RecipeWeights, n_ctx: int, way: Way) -> Candidate:
        """Memory by kind and speed of one combination."""
        measured = self._find_run(weights)
        run = RunSettings(
            n_ctx=n_ctx,
            kv_type=way.kv_type,
            n_threads=self._count_threads(measured),
            n_ubatch=min(way.n_ubatch, n_ctx),
            use_mmap=way.use_mmap,
            repack=way.repack,
            n_users=self.options.n_users,
            server_bytes=self._count_server() if self.options.is_served else 0,
            # Tokens that an embedding model takes in one step.
            n_embedded=embedding_rows(
                self.spec.shape.n_vocab, n_ctx, way.n_ubatch, at_once=self.spec.reads_at_once
            )
            if self.spec.is_embedder
            else 0,
        )
        cost = self._costs.cost(weights, run)
        speed = cost.speed if measured is None else measured.replace_estimate(cost.speed)
        return Candidate(**vars(run), weights=weights, cost=cost, speed=speed, measured=measured)

    def _count_server(self) -> int:
        """Bytes of a server beside its model: itself, forms of answers, and most that it keeps of a
        memory that cannot go back.
        """
        shape = self.spec.shape
        kept = any(each.window or each.state_values for each in shape.layers) * SHELF_BYTES
        return SERVER_BYTES + FORM_BYTES + FORM_BYTES_PER_TOKEN * shape.n_vocab + kept

    def _count_threads(self, measured: MeasuredRun | None) -> int:
        """The threads asked for, those that a result was measured with, or the fastest number."""
        if measured and not self.options.n_threads and measured.n_threads:
            return min(measured.n_threads, self.profile.n_cores)
        if self._n_threads is None:
            self._n_threads = self._costs.find_fastest_threads(self.weights[0])
        return self._n_threads

    def _find_run(self, weights: RecipeWeights) -> MeasuredRun | None:
        name, n_threads = weights.recipe.id, self.options.n_threads
        if name not in self._runs:
            found = self.learned.find(
                self.profile, name, self.spec.shape.arch, weights.artifact_bytes
            )
            fits = found is not None and n_threads in (None, found.n_threads)
            self._runs[name] = found if fits else None
        return self._runs[name]

    def find_leanest(self, weights: RecipeWeights, n_ctx: int) -> Candidate:
        """The way with the smallest peak."""
        found = (self.evaluate(weights, n_ctx, way) for way in self.list_ways())
        return min(found, key=lambda candidate: candidate.peak_bytes)

    def find_best(self, weights: RecipeWeights, n_ctx: int) -> Candidate:
        """The first way that fits the budget and keeps the deadlines; the first that fits, when
        none keeps them; the leanest one, when none fits.
        """
        first: Candidate | None = None
        for way in self.list_ways():
            candidate = self.evaluate(weights, n_ctx, way)
            if self.fits(candidate):
                if self.is_in_time(candidate):
                    return candidate
                first = first or candidate
        return first or self.find_leanest(weights, n_ctx)

    def fits(self, candidate: Candidate) -> bool:
        return candidate.peak_bytes <= self.budget_bytes

    # -- what it is in time for ------------------------------------------------------------------

    def is_in_time(self, candidate: Candidate) -> bool:
        """Whether every user gets the speed demanded; an unknown speed promises nothing."""
        options = self.options
        if options.needs:
            times = self.predict_answers(candidate)
            if times is None or find_weakest(times) == "no":
                return False
        if options.min_tps is not None:
            rate = candidate.user_tps
            if rate is None or rate < options.min_tps:
                return False
        if options.max_ttft_s is not None:
            seconds = self.first_token_s(candidate)
            return seconds is not None and seconds <= options.max_ttft_s
        return True

    def first_token_s(self, candidate: Candidate) -> float | None:
        """Seconds to the first token after a question of `options.n_prompt` tokens. In a long one
        each token attends to more.
        """
        n = self.options.n_prompt
        if n <= _PROMPT_OF_SPEED:
            return candidate.ttft_s(n)
        cost = self._costs.cost(candidate.weights, candidate, n_prompt=n, depth=n)
        return candidate.carry_speed(cost.speed).answer_s(n, 1)

    def predict_answers(self, candidate: Candidate) -> list[AnswerTime] | None:
        """Predict the seconds of the answer to each need; None where no speed is known."""
        times = []
        for need in self.options.needs:
            n_prompt = need.n_past + need.n_prompt
            cost = self._costs.cost(
                candidate.weights, candidate, n_prompt=n_prompt, depth=n_prompt + need.n_answer // 2
            )
            time = predict_answer(need, candidate.carry_speed(cost.speed))
            if time is None:
                return None
            times.append(time)
        return times

    def with_options(self, options: PlanOptions) -> Planner:
        """The same model and board with other wishes."""
        return Planner(self.spec, self.profile, options, scale=self._scale, learned=self.learned)
