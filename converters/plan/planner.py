"""Evaluates combinations of recipe, context, cache type, batch and loading for a model on a board.

Choices are rungs of a ladder, from the least (smallest recipe, short context) to the most; every
rung has at least the context and the recipe of the one below. The highest rung that fits is taken,
so that more RAM can never give a shorter context or a worse recipe. Within a rung, the ways to load
and run are tried from the fastest to the leanest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from boardfit.converters.formats.gguf.recipe import Recipe, list_recipes, load_recipe
from boardfit.converters.plan.candidate import Candidate, better_known
from boardfit.converters.plan.deadline import refuse_deadline
from boardfit.converters.plan.learned import Learned, Measured
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.reach import choose_for_needs, reach_of
from boardfit.converters.plan.reasons import nearest_changes
from boardfit.converters.plan.weights import AS_IS, RecipeWeights, WeighingScale, weigh_as_is
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.compute_buffer import compute_bytes, read_features
from boardfit.device_profiles.cost.graph_table import can_hold_graph
from boardfit.device_profiles.cost.memory import (
    KV_BLOCK,
    WeightBytes,
    engine_anonymous_bytes,
    kv_bytes,
    memory_phases,
    output_bytes,
    weight_bytes,
)
from boardfit.device_profiles.cost.speed import SpeedEstimate, default_threads, estimate_speed
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.shape import ModelShape
from boardfit.edge.errors import DoesNotFitError, EngineError, InputError, UsageError
from boardfit.edge.units import format_bytes

__all__ = ["ENGINE", "Candidate", "Planner"]

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
_UBATCHES = (512, 256, 128, 64)


@dataclass(frozen=True)
class _Way:
    """How a rung is loaded and run, from the fastest to the leanest."""

    kv_type: str
    n_ubatch: int
    use_mmap: bool
    repack: bool


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
        self._spec = spec
        self.learned = learned or Learned(())
        self._threads: int | None = options.n_threads
        self._lean_kv_types: list[str] | None = None
        self._measured_of: dict[str, Measured | None] = {}
        self.shape: ModelShape = spec.shape
        self.profile = profile
        self.options = options
        self._weight_bytes_of: dict[tuple[str, bool], WeightBytes] = {}
        self._context_bytes_of: dict[tuple[int, int, int, str], tuple[int, int]] = {}
        self._speed_of: dict[tuple[str, str, int, bool], SpeedEstimate] = {}
        self._speed_at: dict[tuple[str, str, int, bool, int, int], SpeedEstimate] = {}
        self._check_engine()
        self._check_wishes()
        self._scale = scale or WeighingScale(spec, has_imatrix=options.has_imatrix)
        if options.recipe == AS_IS:
            self.weights = [weigh_as_is(spec)]
        else:
            self.weights = [self._scale.weigh(recipe) for recipe in self._wanted_recipes()]
        self.features = read_features(self.weights[0].tensors)
        self.n_merges = len(spec.get("tokenizer.ggml.merges", ()))

    @property
    def budget_bytes(self) -> int:
        return self.profile.free_ram_bytes

    def _check_engine(self) -> None:
        support = self.profile.engine_support(ENGINE)
        if support is not None and not support.runs:
            raise EngineError(
                f"{ENGINE} does not run on {self.profile.name}: {support.note} [{support.source}]"
            )

    def _check_wishes(self) -> None:
        n_ctx, trained = self.options.n_ctx, self.shape.n_ctx_train
        if n_ctx is not None and n_ctx > trained:
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
        n_threads, n_cores = self.options.n_threads, self.profile.n_cores
        if n_threads is not None and n_threads > n_cores:
            raise UsageError(
                f"{n_threads} threads on {self.profile.name}, which has {n_cores} cores"
            )
        kv_type = self.options.kv_type
        if kv_type is not None and any(d % KV_BLOCK[kv_type][0] for d in self._head_dims()):
            raise InputError(
                f"a {kv_type} cache stores blocks of {KV_BLOCK[kv_type][0]} values, this model's"
                f" heads have {min(self._head_dims())}",
                next_step="use --kv-type f16",
            )
        if kv_type is not None and not self._opens_with(kv_type):
            raise InputError(
                f"a {kv_type} cache makes this model's graph larger than the engine's table of"
                " nodes, and the engine aborts",
                next_step="use --kv-type f16",
            )

    def _opens_with(self, kv_type: str) -> bool:
        names = [tensor.name for tensor in self._spec.tensors]
        shape, head_dim = self.shape, max(self._head_dims(), default=0)
        return can_hold_graph(shape.arch, names, shape.n_expert_used, kv_type, head_dim)

    def _head_dims(self) -> list[int]:
        return [d for x in self.shape.layers if x.n_head_kv for d in (x.head_dim_k, x.head_dim_v)]

    def _wanted_recipes(self) -> list[Recipe]:
        if self.options.recipe:
            return [load_recipe(self.options.recipe)]
        everything = self.options.prefer != "balanced"
        return [recipe for recipe in list_recipes() if everything or recipe.id in _BALANCED]

    # -- what is tried ---------------------------------------------------------------------------

    def recipe_order(self) -> list[RecipeWeights]:
        """Recipes from the least to the most preferred. A recipe that is less preferred than
        another and no smaller is left out, so that falling back always saves bytes.
        """
        kept: list[RecipeWeights] = []
        for weights in sorted(self.weights, key=self.preference):
            if not kept or weights.artifact_bytes < kept[-1].artifact_bytes:
                kept.append(weights)
        return kept[::-1]

    def preference(self, weights: RecipeWeights) -> tuple[float, ...]:
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
        """Time of a typical answer, 256 tokens in and 128 out; bytes where speed is unknown.

        Measured figures count here only when there is one for every recipe: one recipe's result
        beside another's estimate would compare the estimate's error.
        """
        candidate = self.evaluate(weights, _CONTEXT_STEPS[0], next(self.ways()))
        all_measured = all(self._measured(other) for other in self.weights)
        speed = candidate.speed if all_measured else candidate.predicted
        if not speed.decode_tps or not speed.prefill_tps:
            return float(weights.artifact_bytes)
        return 256 / speed.prefill_tps + 128 / speed.decode_tps

    def rungs(self) -> list[tuple[RecipeWeights, int]]:
        """(recipe, context) from the least to the most; both grow from each rung to the next."""
        recipes = self.recipe_order()
        if self.options.n_ctx is not None:
            return [(weights, self.options.n_ctx) for weights in recipes]
        trained, prefer = self.shape.n_ctx_train, self.options.prefer
        steps = sorted({min(step, trained) for step in _CONTEXT_STEPS})
        base = min(_BASE_CONTEXT[prefer], trained)
        longest = min(_LONGEST_CONTEXT[prefer], trained)
        least, most = recipes[0], recipes[-1]
        return [
            *((least, step) for step in steps if step < base),
            *((weights, base) for weights in recipes),
            *((most, step) for step in steps if base < step <= longest),
        ]

    def ways(self) -> Iterator[_Way]:
        """Ways to run a rung, in order of preference: an f16 cache before a q8_0 one, a large
        micro-batch before a small one, repacked kernels before the plain ones.
        """
        options = self.options
        kv_types = [options.kv_type] if options.kv_type else ["f16", *self.lean_kv_types()]
        ubatches = [options.n_ubatch] if options.n_ubatch else list(_UBATCHES)
        for kv_type in kv_types:
            for n_ubatch in ubatches:
                # Without a mapping, the plain weights are copied too, but nothing exists twice.
                for use_mmap, repack in ((True, True), (False, True), (True, False)):
                    yield _Way(kv_type, n_ubatch, use_mmap, repack)

    def lean_kv_types(self) -> list[str]:
        """Cache types smaller than f16 that this model's heads and the engine allow."""
        if self._lean_kv_types is None:
            heads = self._head_dims()
            whole = bool(heads) and all(d % KV_BLOCK["q8_0"][0] == 0 for d in heads)
            self._lean_kv_types = ["q8_0"] if whole and self._opens_with("q8_0") else []
        return self._lean_kv_types

    # -- what it costs ---------------------------------------------------------------------------

    def evaluate(self, weights: RecipeWeights, n_ctx: int, way: _Way) -> Candidate:
        """Memory by kind and speed of one combination."""
        shape, measured = self.shape, self._measured(weights)
        n_threads = self.n_threads
        if measured and not self.options.n_threads and measured.n_threads:
            n_threads = min(measured.n_threads, self.profile.n_cores)  # what the result is of
        n_ubatch = min(way.n_ubatch, n_ctx)
        split = self._weight_bytes(weights, way.repack)
        kv_cache, compute = self._context_bytes(n_ctx, n_ubatch, n_threads, way.kv_type)
        phases = memory_phases(
            split,
            use_mmap=way.use_mmap,
            kv_cache=kv_cache,
            compute=compute,
            output=output_bytes(shape, self.options.n_users),
            engine=engine_anonymous_bytes(shape, self.n_merges),
        ).with_margin()
        predicted = self._speed(weights, way.kv_type, n_threads, way.repack)
        return Candidate(
            weights,
            n_ctx,
            way.kv_type,
            n_threads,
            n_ubatch,
            way.use_mmap,
            way.repack,
            phases,
            better_known(predicted, measured),
            predicted,
            measured,
        )

    def _context_bytes(
        self, n_ctx: int, n_ubatch: int, n_threads: int, kv_type: str
    ) -> tuple[int, int]:
        """(KV cache of all users, compute buffers). A batch attends user by user, each to a cache
        of `n_ctx`: the buffers do not grow with the users (src/llama-kv-cache.cpp, n_stream).
        """
        key = (n_ctx, n_ubatch, n_threads, kv_type)
        if key not in self._context_bytes_of:
            self._context_bytes_of[key] = (
                self.options.n_users * kv_bytes(self.shape, n_ctx, kv_type, n_ubatch),
                compute_bytes(self.shape, self.features, n_ctx, n_ubatch, n_threads, kv_type),
            )
        return self._context_bytes_of[key]

    @property
    def n_threads(self) -> int:
        """Threads that answer soonest, of those worth waking; more do not always read faster."""
        if self._threads is None:
            most = default_threads(self.profile)
            weights = self.weights[0]
            times = {}
            for n in range(1, most + 1):
                speed = self._speed(weights, "f16", n, True)
                if speed.decode_tps and speed.prefill_tps:
                    times[n] = 256 / speed.prefill_tps + 128 / speed.decode_tps
            self._threads = min(times, key=lambda n: times[n]) if times else most
        return self._threads

    def _measured(self, weights: RecipeWeights) -> Measured | None:
        name = weights.recipe.id
        if name not in self._measured_of:
            found = self.learned.find(self.profile, name, self.shape.arch, weights.artifact_bytes)
            wanted = self.options.n_threads
            fitting = found is not None and wanted in (None, found.n_threads)
            self._measured_of[name] = found if fitting else None
        return self._measured_of[name]

    def _weight_bytes(self, weights: RecipeWeights, repack: bool) -> WeightBytes:
        key = (weights.recipe.id, repack)
        if key not in self._weight_bytes_of:
            self._weight_bytes_of[key] = weight_bytes(
                weights.tensors,
                weights.artifact_bytes,
                self.profile.isa if repack else frozenset[str](),
                tied=self.shape.tied_embeddings,
            )
        return self._weight_bytes_of[key]

    def _speed(
        self, weights: RecipeWeights, kv_type: str, n_threads: int, repack: bool
    ) -> SpeedEstimate:
        key = (weights.recipe.id, kv_type, n_threads, repack)
        if key not in self._speed_of:
            self._speed_of[key] = estimate_speed(
                weights.tensors,
                self.shape,
                self.profile,
                n_threads=n_threads,
                kv_type=kv_type,
                repack=repack,
            )
        return self._speed_of[key]

    def speed_at(self, candidate: Candidate, n_prompt: int, depth: int) -> SpeedEstimate:
        """The estimate for other lengths than a candidate's own: prefill of `n_prompt` tokens,
        decode at a depth of `depth`.
        """
        weights = candidate.weights
        key = (weights.recipe.id, candidate.kv_type, candidate.n_threads, candidate.repack)
        at = (*key, n_prompt, depth)
        if at not in self._speed_at:
            self._speed_at[at] = estimate_speed(
                weights.tensors, self.shape, self.profile, n_threads=candidate.n_threads,
                kv_type=candidate.kv_type, repack=candidate.repack, n_prompt=n_prompt, depth=depth,
            )  # fmt: skip
        return self._speed_at[at]

    def leanest(self, weights: RecipeWeights, n_ctx: int) -> Candidate:
        """The way with the smallest peak."""
        found = (self.evaluate(weights, n_ctx, way) for way in self.ways())
        return min(found, key=lambda candidate: candidate.peak_bytes)

    def best(self, weights: RecipeWeights, n_ctx: int) -> Candidate:
        """The first way that fits the budget and keeps the deadlines; the first that fits, when
        none keeps them; the leanest one, when none fits.
        """
        first: Candidate | None = None
        for way in self.ways():
            candidate = self.evaluate(weights, n_ctx, way)
            if candidate.peak_bytes <= self.budget_bytes:
                if self.in_time(candidate):
                    return candidate
                first = first or candidate
        return first or self.leanest(weights, n_ctx)

    def in_time(self, candidate: Candidate) -> bool:
        """Whether every user gets the speed demanded; an unknown speed promises nothing."""
        options = self.options
        if options.needs and reach_of(self, candidate) == "no":
            return False
        if options.min_tps is not None:
            rate = candidate.user_tps(options.n_users)
            if rate is None or rate < options.min_tps:
                return False
        if options.max_ttft_s is not None:
            seconds = candidate.ttft_s(options.n_prompt, options.n_users)
            return seconds is not None and seconds <= options.max_ttft_s
        return True

    def fits(self, candidate: Candidate) -> bool:
        return candidate.peak_bytes <= self.budget_bytes

    def with_options(self, options: PlanOptions) -> Planner:
        """The same model and board with other wishes."""
        return Planner(self._spec, self.profile, options, scale=self._scale, learned=self.learned)

    def highest_fitting(self) -> Candidate | None:
        """The highest rung that fits and is in time, None when none is. With a deadline, recipes
        that lose more quality but run faster are looked at too, once none on the ladder will do.
        """
        if self.options.needs:
            return choose_for_needs(self)
        for weights, n_ctx in reversed(self.rungs()):
            candidate = self.best(weights, n_ctx)
            if self.fits(candidate) and self.in_time(candidate):
                return candidate
        if not self.options.has_deadline:
            return None
        n_ctx = self.rungs()[0][1]
        others = [self.best(weights, n_ctx) for weights in self.weights]
        fast = [c for c in others if self.fits(c) and self.in_time(c)]
        return min(fast, key=lambda c: c.weights.perplexity_added, default=None)

    def choose(self) -> Candidate:
        """The highest rung that fits. Raises DoesNotFitError with the exact shortfall."""
        chosen = self.highest_fitting()
        if chosen is not None:
            return chosen
        rungs = self.rungs()
        refuse_deadline(self, rungs[0][1])
        leanest = min((self.leanest(w, n) for w, n in rungs), key=lambda c: c.peak_bytes)
        shortfall = leanest.peak_bytes - self.budget_bytes
        raise DoesNotFitError(
            f"{leanest.recipe} with a context of {leanest.n_ctx} needs"
            f" {format_bytes(leanest.peak_bytes)} on {self.profile.name}, which leaves"
            f" {format_bytes(self.budget_bytes)} free: {format_bytes(shortfall)}"
            f" ({shortfall} bytes) too much",
            shortfall_bytes=shortfall,
            next_step=nearest_changes(self, leanest),
        )
