"""Explain a plan in plain words."""

from boardfit.converters.formats.gguf.recipe import AS_IS
from boardfit.converters.plan.candidate import Candidate
from boardfit.converters.plan.planner import Planner
from boardfit.converters.plan.weights import RecipeWeights, describe_requantizing, is_quantized_file
from boardfit.device_profiles.cost.kernels import kernel_class
from boardfit.device_profiles.cost.speed import used_clusters, weight_bytes_read
from boardfit.device_profiles.shape import is_behind
from boardfit.edge.units import format_bytes, printable

# A hint is worth its line from this gain in prefill on, at no more than this loss of perplexity.
_WORTH_A_HINT = 1.4
_LITTLE_LOSS = 0.3


def explain_choice(planner: Planner, chosen: Candidate) -> tuple[list[str], list[str]]:
    """(reasons for the plan, what was rejected and why), one sentence each."""
    reasons = [
        _unknown_reason(planner),
        _recipe_reason(planner, chosen),
        ""
        if chosen.recipe == AS_IS
        else describe_requantizing(planner.spec, chosen.weights.recipe),
        *_over_others(planner, chosen),
        _measured_reason(chosen),
        _users_reason(planner, chosen),
        _context_reason(planner, chosen),
        _kv_reason(planner, chosen),
        _thread_reason(planner, chosen),
        _loading_reason(planner, chosen),
        *_unread_reasons(planner, chosen),
    ]
    if chosen.n_ubatch < 512 and not planner.options.n_ubatch:
        reasons.append(
            f"micro-batch {chosen.n_ubatch}: scratch memory of"
            f" {format_bytes(chosen.memory['compute_buffers'])}; larger ones do not fit"
        )
    reasons.append(_faster_reason(planner, chosen))
    return [reason for reason in reasons if reason], _rejected(planner, chosen)


def _unknown_reason(planner: Planner) -> str:
    """State that the memory is a guess, where it is one."""
    shape = planner.spec.shape
    if shape.memory_known:
        return ""
    return (
        f"the memory of the architecture {printable(shape.arch)} is unknown here: every layer is"
        " counted as full attention, and the engine may take less or more; measure it on the board"
        " with edge bench"
    )


def _unread_reasons(planner: Planner, chosen: Candidate) -> list[str]:
    """Name the parts of the file that no token reads as a whole."""
    shape, tensors = planner.spec.shape, chosen.weights.tensors
    behind = sum(t.n_bytes for t in tensors if is_behind(t.name, shape.n_layer))
    table = sum(t.n_bytes for t in tensors if t.name == shape.lazy_table)
    reasons = []
    if behind:
        reasons.append(
            f"{format_bytes(behind)} of the file are blocks of next-token prediction: not loaded"
        )
    if table:
        reasons.append(
            f"{format_bytes(table)} of the file are per-layer embeddings: the engine reads only the"
            " rows of the tokens that come"
        )
    if shape.n_expert:
        read = format_bytes(weight_bytes_read(tensors, shape))
        reasons.append(
            f"{shape.n_expert_used} of {shape.n_expert} experts at work: a token reads {read} of"
            f" the weights, and all of them must be in memory"
        )
    return reasons


def _recipe_reason(planner: Planner, chosen: Candidate) -> str:
    if chosen.recipe == AS_IS:
        return f"{chosen.weights.recipe.name}: nothing is converted"
    bits = f"{chosen.recipe}: {chosen.weights.bits_per_weight:.2f} bits per weight"
    if planner.options.recipe:
        return f"{bits}, as asked"
    loss = describe_loss(chosen.weights)
    prefer = planner.options.prefer
    if prefer == "quality":
        return f"{bits}, the least loss of quality that fits: {loss}"
    if prefer == "speed":
        return f"{bits}, the shortest answer time here of the recipes with acceptable loss: {loss}"
    if prefer == "memory":
        return f"{bits}, the smallest recipe with acceptable loss that fits: {loss}"
    return f"{bits}, the best of the 4-bit recipes that fit: {loss}"


def describe_loss(weights: RecipeWeights) -> str:
    """State the loss of a recipe, or that it is unknown for a model of this size."""
    added = weights.perplexity_known
    if added is None:
        return "its loss is unknown at this size (`edge build` measures it)"
    return f"about {added:.2f} perplexity lost (published for Llama-3-8B)"


def _context_reason(planner: Planner, chosen: Candidate) -> str:
    per_token = chosen.memory["kv_cache"] / max(chosen.n_ctx, 1)
    cost = f"the cache takes {per_token / 1024:.1f} KiB per token"
    trained = planner.spec.shape.n_ctx_train
    if planner.options.n_ctx is not None:
        return f"context {chosen.n_ctx}, as asked: {cost}"
    if chosen.n_ctx == trained:
        return f"context {chosen.n_ctx}, all that the model was trained for: {cost}"
    highest = planner.list_rungs()[-1][1]
    if chosen.n_ctx == highest:
        return f"context {chosen.n_ctx} of the trained {trained} (longer with --ctx): {cost}"
    return f"context {chosen.n_ctx} of the trained {trained}, the longest step that fits: {cost}"


def _kv_reason(planner: Planner, chosen: Candidate) -> str:
    if planner.options.kv_type:
        return f"KV cache {chosen.kv_type}, as asked"
    if chosen.kv_type == "f16":
        return "KV cache f16: exact, and attention is faster than with a quantized one"
    return f"KV cache {chosen.kv_type}: f16 does not fit; attention gets slower with depth"


def _thread_reason(planner: Planner, chosen: Candidate) -> str:
    if planner.options.n_threads:
        return f"{chosen.n_threads} threads, as asked"
    if chosen.measured and chosen.n_threads == chosen.measured.n_threads:
        return f"{chosen.n_threads} threads, as in the run that was measured"
    clusters = used_clusters(planner.profile)
    n_worth = sum(cluster.count for cluster in clusters)
    if chosen.n_threads < n_worth:
        return f"{chosen.n_threads} threads of {n_worth} worth using: more answer no sooner"
    cores = " and ".join(f"{c.count}x {c.core}" for c in clusters)
    if len(clusters) == len(planner.profile.clusters):
        return f"{chosen.n_threads} threads: {cores}"
    return f"{chosen.n_threads} threads on {cores}: the slower cores would hold them up"


def _loading_reason(planner: Planner, chosen: Candidate) -> str:
    repacked = chosen.memory.get("weights_repacked", 0)
    kernels = kernel_class(planner.profile.isa) or "the plain"
    if not repacked:
        if not chosen.repack:
            return "repacking is off: a second copy of the weights does not fit, prefill is slower"
        return (
            f"no weights are repacked: with {kernels} kernels this recipe runs from the mapped file"
        )
    if chosen.use_mmap:
        return (
            f"the engine copies {format_bytes(repacked)} of weights into its {kernels} layout;"
            " while loading, the mapped file is there as well"
        )
    return (
        f"the file is read, not mapped: the {format_bytes(repacked)} that are repacked for"
        f" {kernels} kernels would be in memory twice"
    )


def _over_others(planner: Planner, chosen: Candidate) -> list[str]:
    """Why this recipe and not its neighbours in quality: `q4_0 over q4_k_m: ...`."""
    if planner.options.recipe or chosen.recipe == AS_IS:
        return []
    added = chosen.weights.perplexity_added
    better = [w for w in planner.weights if w.perplexity_added < added]
    worse = [w for w in planner.weights if w.perplexity_added > added]
    neighbours = (
        max(better, key=lambda w: w.perplexity_added, default=None),
        min(worse, key=lambda w: w.perplexity_added, default=None),
    )
    return [
        _over_other(planner, chosen, planner.find_best(weights, chosen.n_ctx))
        for weights in neighbours
        if weights is not None
    ]


def _over_other(planner: Planner, chosen: Candidate, other: Candidate) -> str:
    if not planner.fits(other):
        over = format_bytes(other.peak_bytes - planner.budget_bytes)
        return f"{chosen.recipe} over {other.recipe}: that one is {over} too much"
    ours_lost, theirs_lost = chosen.weights.perplexity_known, other.weights.perplexity_known
    differences = []
    if ours_lost is not None and theirs_lost is not None:
        loss = theirs_lost - ours_lost
        differences.append(f"{abs(loss):.2f} {'less' if loss > 0 else 'more'} perplexity lost")
    else:
        more_bits = chosen.weights.bits_per_weight - other.weights.bits_per_weight
        differences.append(
            f"{abs(more_bits):.2f} {'more' if more_bits > 0 else 'fewer'} bits per weight"
        )
    for name, ours, theirs in (
        ("prefills", chosen.speed.prefill_tps, other.speed.prefill_tps),
        ("decodes", chosen.speed.decode_tps, other.speed.decode_tps),
    ):
        if ours and theirs and abs(ours / theirs - 1) >= 0.02:
            differences.append(f"{name} {ours / theirs:.2f}x as fast")
    more = chosen.peak_bytes - other.peak_bytes
    if abs(more) >= 0.01 * other.peak_bytes:
        differences.append(
            f"{format_bytes(abs(more))} {'more' if more > 0 else 'less'} at the peak"
        )
    return f"{chosen.recipe} over {other.recipe}: {', '.join(differences)}"


def _measured_reason(chosen: Candidate) -> str:
    """Measured beside predicted, where a result of this board and recipe is stored."""
    if chosen.measured is None:
        return ""
    pairs = []
    for name, got, estimate in (
        ("decode", chosen.measured.decode_tps, chosen.cost.speed.decode_tps),
        ("prefill", chosen.measured.prefill_tps, chosen.cost.speed.prefill_tps),
    ):
        if got and estimate:
            pairs.append(f"{name} {got:.1f} (predicted {estimate:.1f}, {got / estimate - 1:+.0%})")
    return f"measured here on {chosen.measured.time[:10]}: {', '.join(pairs)}" if pairs else ""


def _users_reason(planner: Planner, chosen: Candidate) -> str:
    n = planner.options.n_users
    if n == 1:
        return ""
    cache = format_bytes(chosen.memory["kv_cache"])
    return (
        f"{n} users: {n} caches of {chosen.n_ctx} tokens, {cache} in all; they are served in turns,"
        " so that speeds are the least that each gets"
    )


def _faster_reason(planner: Planner, chosen: Candidate) -> str:
    """A recipe that prefills much faster for little quality, where the quality is known."""
    if not chosen.weights.is_near_measured or is_quantized_file(planner.spec):
        return ""
    best, best_gain = None, _WORTH_A_HINT
    for weights in planner.weights:
        loss = weights.perplexity_added - chosen.weights.perplexity_added
        other = planner.find_best(weights, chosen.n_ctx)
        if not 0 <= loss <= _LITTLE_LOSS or not planner.fits(other):
            continue
        gain = (other.speed.prefill_tps or 0.0) / (chosen.speed.prefill_tps or float("inf"))
        if gain > best_gain:
            best, best_gain = weights, gain
    if best is None:
        return ""
    loss = best.perplexity_added - chosen.weights.perplexity_added
    return (
        f"faster prompts: {best.recipe.id} prefills {best_gain:.1f}x as fast for {loss:.2f} more"
        f" perplexity (--recipe {best.recipe.id})"
    )


def _rejected(planner: Planner, chosen: Candidate) -> list[str]:
    """One line for each more preferred recipe or longer context that does not fit."""
    out: list[str] = []
    if chosen.recipe == AS_IS:
        return out
    rungs = planner.list_rungs()
    place = next(
        (i for i, (w, n) in enumerate(rungs) if w is chosen.weights and n == chosen.n_ctx), 0
    )
    for weights, n_ctx in rungs[place + 1 :]:
        over = planner.find_leanest(weights, n_ctx).peak_bytes - planner.budget_bytes
        out.append(f"{weights.recipe.id} with context {n_ctx}: {format_bytes(over)} too much")
    return out
