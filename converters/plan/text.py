"""Show a plan as text or as plain data: the choice, its memory, and the alternatives."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from boardfit.converters.plan.candidate import Candidate, find_better
from boardfit.converters.plan.make import assemble_plan, list_alternatives
from boardfit.converters.plan.planner import Planner
from boardfit.device_profiles.cost.memory import kv_bytes, kv_bytes_read, pad
from boardfit.device_profiles.cost.model import AcceleratorSpeed, estimate_accelerator
from boardfit.device_profiles.cost.speed import load_seconds, weight_bytes_read
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes, format_seconds, printable

_BAR_WIDTH = 24
#: Prompts from here on are an agent's: worth keeping.
_LONG_PROMPT = 1000
# What each kind of memory is, and where it is computed; the formulas' own sources stand there.
_TERMS = load_toml("boardfit.converters.plan", "memory_terms.toml")


def plan_lines(planner: Planner, chosen: Candidate, *, explain: bool) -> list[str]:
    """The chosen plan and its alternatives. `explain` adds every term and where it comes from."""
    plan, rows = assemble_plan(planner, chosen), list_alternatives(planner)
    share = plan.peak_bytes / max(plan.budget_bytes, 1)
    lines = [
        f"{printable(planner.spec.name)} on {planner.profile.name}",
        "",
        f"  {plan.recipe}, {format_bytes(plan.artifact_bytes)} file, context {plan.n_ctx},"
        f" {plan.kv_type} cache, {plan.n_threads} threads",
        f"  peak {format_bytes(plan.peak_bytes)} of {format_bytes(plan.budget_bytes)} free"
        f" ({share:.0%}), {format_bytes(plan.anonymous_bytes)} of it cannot be dropped",
        f"  {speed_text(chosen, planner.profile.basis)}",
        *answer_lines(planner, chosen),
        *accelerator_lines(planner, chosen),
        *board_lines(planner.profile, plan),
        "",
    ]
    lines += memory_lines(plan)
    lines.append("")
    lines += [f"  - {reason}" for reason in plan.reasons]
    if plan.rejected:
        lines.append("  wanted more, but:")
        lines += [f"    {reason}" for reason in plan.rejected]
    if explain:
        lines += ["", *explain_lines(planner, chosen)]
    return lines + (["", *candidate_lines(planner, chosen, rows)] if len(rows) > 1 else [])


def speed_text(chosen: Candidate, profile_basis: str) -> str:
    """Speeds with their bound and basis, or why there are none."""
    speed = chosen.speed
    if speed.decode_tps is None and speed.prefill_tps is None:
        return "no speed predicted: the board's memory bandwidth and kernels are not known"
    measured = chosen.measured
    figures = (
        ("decode", speed.decode_tps, speed.decode_bound, measured and measured.decode_tps),
        ("prefill", speed.prefill_tps, speed.prefill_bound, measured and measured.prefill_tps),
    )
    parts, bases = [], []
    for name, rate, bound, is_measured in figures:
        if rate is not None:
            parts.append(f"{name} {_rate(rate)} tokens/s {bound_text(bound)}")
            bases.append("measured here" if is_measured else profile_basis)
    if len(set(bases)) == 1:
        return f"{', '.join(parts)}, {bases[0]}"
    return ", ".join(f"{part} {basis}" for part, basis in zip(parts, bases, strict=True))


def answer_lines(planner: Planner, chosen: Candidate) -> list[str]:
    """What a user waits for, where the speeds are known."""
    options = planner.options
    ttft = planner.first_token_s(chosen)
    if ttft is None:
        return []
    text = f"  first token {format_seconds(ttft)} after a question of {options.n_prompt} tokens"
    if options.n_users > 1:
        rate = _rate(chosen.user_tps)
        text += f", then {rate} tokens/s for each of {options.n_users} users, at the least"
    lines = [text, *prompt_lines(planner, chosen)]
    if options.is_served:
        pool = options.n_users * chosen.n_ctx
        lines.append(f"  start it with: edge serve BUNDLE --ctx {pool}")
    return lines


def prompt_lines(planner: Planner, chosen: Candidate) -> list[str]:
    """What an agent's prompt costs once, and again; none for a short one."""
    cost = prompt_record(planner, chosen)
    if cost is None:
        return []
    state = format_bytes(cost["state_bytes"])
    warm = f", {format_seconds(s)} with it read from a file" if (s := cost["warm_s"]) else ""
    lines = [f"  kept by `edge serve` or `edge build --warm`, it is a state of {state}{warm}"]
    if cost["needs_n_ctx"]:
        lines.append(
            f"  it does not fit the context of {chosen.n_ctx}: --ctx {cost['needs_n_ctx']}"
        )
    return lines


def prompt_record(planner: Planner, chosen: Candidate) -> dict[str, Any] | None:
    """Seconds and bytes of a long prompt, cold and warm; None for one that any turn could have."""
    n = planner.options.n_prompt
    if n < _LONG_PROMPT:
        return None
    n_bytes = kv_bytes(planner.spec.shape, n, chosen.kv_type)
    read = planner.profile.storage.read
    fits = n < chosen.n_ctx
    return {
        "n_tokens": n,
        "cold_s": planner.first_token_s(chosen),
        "warm_s": n_bytes / read if read else None,
        "state_bytes": n_bytes,
        "needs_n_ctx": None if fits else pad(n + 1, 1024),
    }


def accelerator_lines(planner: Planner, chosen: Candidate) -> list[str]:
    """One line on the board's GPU or NPU, none without one."""
    found = _estimate_accelerator(planner, chosen)
    if found is None or found.speed.decode_tps is None:
        return []
    speed = found.speed
    prefill = "no published row says how fast it prefills"
    if speed.prefill_tps is not None:
        rate = f"{speed.prefill_tps:.0f} tokens/s {bound_text(speed.prefill_bound)}"
        prefill = f"prefill {rate}"
    return [
        f"  not planned here, on its {found.what}: decode {speed.decode_tps:.1f} tokens/s"
        f" {bound_text(speed.decode_bound)}; {prefill}"
    ]


def _estimate_accelerator(planner: Planner, chosen: Candidate) -> AcceleratorSpeed | None:
    if planner.profile.accelerator is None:
        return None
    return estimate_accelerator(chosen.weights, planner.spec.shape, planner.profile, chosen)


def board_lines(profile: DeviceProfile, plan: Plan) -> list[str]:
    """What the board's storage and cooling do to the figures, where that is known."""
    lines = []
    seconds = load_seconds(plan.artifact_bytes, profile)
    if seconds is not None and profile.storage.read is not None:
        medium, rate = profile.storage.medium or "storage", profile.storage.read / 1e6
        lines.append(
            f"  loads in {format_seconds(seconds)} or more when nothing is cached:"
            f" {printable(medium)} reads {rate:.0f} MB/s"
        )
    if profile.sustained_share is not None and profile.sustained_share < 1:
        lines.append(
            f"  speeds are those kept under heat, {profile.sustained_share:.0%} of a cool start's"
        )
    return lines


def memory_lines(plan: Plan) -> list[str]:
    """One bar per kind of memory, each relative to the budget."""
    lines = []
    for kind, n_bytes in plan.memory.items():
        if not n_bytes:
            continue
        filled = min(_BAR_WIDTH, max(1, round(_BAR_WIDTH * n_bytes / max(plan.budget_bytes, 1))))
        bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
        lines.append(f"  {_term(kind)[0]:<30} {format_bytes(n_bytes):>10}  {bar}")
    return lines


def _term(kind: str) -> tuple[str, str]:
    """A kind of memory in words, and its formula."""
    term = _TERMS.get(kind, {})
    return term.get("name", kind), term.get("formula", "")


def candidate_lines(planner: Planner, chosen: Candidate, rows: Sequence[Candidate]) -> list[str]:
    """Table of the recipes that no other one beats in everything; below it, the beaten ones."""
    beaten = {id(row): find_better(row, rows) for row in rows}
    lines = ["  recipe    bits/w    ppl+     file      context  KV     peak       decode  prefill"]
    for row in rows:
        is_chosen = row.recipe == chosen.recipe and row.n_ctx == chosen.n_ctx
        if beaten[id(row)] is not None and not is_chosen:
            continue
        added = row.weights.perplexity_known
        loss = f"{added:.2f}" if added is not None else "unknown"
        over = row.peak_bytes - planner.budget_bytes
        notes = [f"{format_bytes(over)} too much"] if over > 0 else []
        notes += ["measured"] if row.measured else []
        notes += ["too slow"] if over <= 0 and not planner.is_in_time(row) else []
        lines.append(
            f"{'▸' if is_chosen else ' '} {row.recipe:<9} {row.weights.bits_per_weight:>6.2f}"
            f" {loss:>7} {format_bytes(row.weights.artifact_bytes):>10}"
            f" {row.n_ctx:>9}  {row.kv_type:<5} {format_bytes(row.peak_bytes):>9}"
            f" {_rate(row.speed.decode_tps):>9} {_rate(row.speed.prefill_tps):>8}"
            f"  {', '.join(notes)}".rstrip()
        )
    speed = chosen.speed
    lines.append(
        f"  tokens/s, decode {bound_text(speed.decode_bound)} and prefill"
        f" {bound_text(speed.prefill_bound)}, {chosen.describe_basis(planner.profile)}"
    )
    if any(row.weights.perplexity_known is None for row in rows):
        lines.append(
            "  ppl+ unknown at this size: the nearest measured model has 8.0 billion weights, this"
            f" one {chosen.weights.n_params / 1e9:.2g}; small models lose several times as much"
        )
    left_out = [f"{row.recipe} (by {better.recipe})" for row in rows if (better := beaten[id(row)])]
    if left_out:
        lines.append(f"  beaten in everything: {', '.join(left_out)}")
    return lines


def explain_lines(planner: Planner, chosen: Candidate) -> list[str]:
    """Every term of the memory and of the speed, and the constants with the source of each."""
    profile, shape = planner.profile, planner.spec.shape
    memory = profile.memory
    lines = ["  memory, term by term:"]
    for kind, n_bytes in chosen.memory.items():
        lines.append(f"    {n_bytes:>14,} {kind}: {_term(kind)[1]}")
    phases = chosen.cost.memory
    lines.append(f"    {phases.loading_total:>14,} at most while loading, with the margin")
    lines.append(f"    {phases.running_total:>14,} with the context full, with the margin")
    lines.append("  speed:")
    weights = weight_bytes_read(chosen.weights.tensors, shape)
    cache = kv_bytes_read(shape, 256, chosen.kv_type)
    lines.append(f"    {weights:>14,} bytes of weights read for each token")
    lines.append(f"    {cache:>14,} bytes of cache read for each token at a depth of 256")
    if chosen.cost.speed.decode_tps:
        rate = (weights + cache) * chosen.cost.speed.decode_tps / 1e9
        lines.append(f"    predicted decode moves {rate:.1f} GB/s on {chosen.n_threads} threads")
    if memory.bandwidth_sustained is not None:
        source = profile.sources.get("memory.sustained_gb_per_s", profile.basis)
        rate = memory.bandwidth_sustained / 1e9
        lines.append(f"    bandwidth {rate:.1f} GB/s sustained [{source}]")
    for i, cluster in enumerate(profile.clusters):
        clock = f" at {cluster.clock_hz / 1e9:.1f} GHz" if cluster.clock_hz else ""
        source = profile.sources.get(f"cpu.{i}.clock_mhz", profile.basis)
        flags = ", ".join(sorted(cluster.isa)) or "no known SIMD flags"
        lines.append(f"    {cluster.count}x {cluster.core}{clock}, {flags} [{source}]")
    reserved = profile.sources.get("memory.reserved_mib", "what is free right now")
    lines.append(
        f"  RAM {format_bytes(profile.ram_bytes)}, of which the system keeps"
        f" {format_bytes(memory.reserved_bytes)} [{reserved}]"
    )
    lines.append("  formulas: device_profiles/cost/*.py, each with its source")
    return lines


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def bound_text(bound: float) -> str:
    """`±35%`, or `×/÷2.5` where the truth may be further off than half or double."""
    return f"±{bound:.0%}" if bound < 1 else f"×/÷{1 + bound:.1f}"


def speed_cells(chosen: Candidate, n_prompt: int) -> str:
    """Decode in tokens/s and time to the first token, each with its bound; dashes where unknown."""
    ttft = chosen.ttft_s(n_prompt)
    decode, first = "–", "–"
    if chosen.user_tps is not None:
        decode = f"{_rate(chosen.user_tps)} {bound_text(chosen.speed.decode_bound)}"
    if ttft is not None:
        first = f"{format_seconds(ttft)} {bound_text(chosen.speed.prefill_bound)}"
    return f"{decode:>11}  {first:>16}"


# -- plain data, for `--json` ----------------------------------------------------------------------


def plan_record(planner: Planner, chosen: Candidate) -> dict[str, Any]:
    """The plan and its candidates as one JSON-able object."""
    made, options = assemble_plan(planner, chosen), planner.options
    rows = list_alternatives(planner)
    return {
        "model": planner.spec.name,
        "device": planner.profile.id,
        "plan": {**made.to_dict(), "peak_bytes": made.peak_bytes},
        "n_users": options.n_users,
        "served_ctx": options.n_users * chosen.n_ctx if options.is_served else None,
        "user_tps": chosen.user_tps,
        "n_prompt": options.n_prompt,
        "ttft_s": planner.first_token_s(chosen),
        "prompt": prompt_record(planner, chosen),
        "load_s": load_seconds(made.artifact_bytes, planner.profile),
        "sustained_share": planner.profile.sustained_share,
        "accelerator": accelerator_record(planner, chosen),
        "decode_bound": chosen.speed.decode_bound,
        "prefill_bound": chosen.speed.prefill_bound,
        "predicted": {
            "basis": planner.profile.basis,
            "decode_tps": chosen.cost.speed.decode_tps,
            "prefill_tps": chosen.cost.speed.prefill_tps,
        },
        "measured": None if chosen.measured is None else asdict(chosen.measured),
        "candidates": [_candidate_record(planner, row, rows) for row in rows],
    }


def _candidate_record(planner: Planner, row: Candidate, rows: list[Candidate]) -> dict[str, Any]:
    run = ("n_ctx", "kv_type", "n_threads", "n_ubatch", "use_mmap", "repack", "peak_bytes")
    return {
        "recipe": row.recipe,
        "perplexity_added": row.weights.perplexity_known,
        "artifact_bytes": row.weights.artifact_bytes,
        **{name: getattr(row, name) for name in run},
        "fits": planner.fits(row),
        "in_time": planner.is_in_time(row),
        "on_pareto_front": find_better(row, rows) is None,
        "decode_tps": row.speed.decode_tps,
        "prefill_tps": row.speed.prefill_tps,
        "measured": row.measured is not None,
    }


def accelerator_record(planner: Planner, chosen: Candidate) -> dict[str, Any] | None:
    """The speed on the board's GPU or NPU as a JSON-able object."""
    found = _estimate_accelerator(planner, chosen)
    if found is None:
        return None
    speed = found.speed
    return {
        "engine_class": found.engine.name,
        "decode_tps": speed.decode_tps,
        "decode_bound": speed.decode_bound,
        "prefill_tps": speed.prefill_tps,
        "prefill_bound": None if speed.prefill_tps is None else speed.prefill_bound,
    }
