"""A plan as text for people: what was chosen, where the memory goes, what else was looked at."""

from __future__ import annotations

from collections.abc import Sequence

from converters.plan import Candidate, Planner
from device_profiles.cost.speed import DECODE_BOUND, PREFILL_BOUND
from edge.types import Plan
from edge.units import format_bytes, printable

_BAR_WIDTH = 24
_KINDS = {
    "weights_mapped": "weights, mapped from the file",
    "weights_copied": "weights, read into memory",
    "weights_repacked": "weights, repacked for the CPU",
    "load_staging": "buffer while loading",
    "kv_cache": "KV cache",
    "compute_buffers": "scratch of the largest batch",
    "output_buffer": "logits and sampler",
    "engine_and_interpreter": "engine and Python",
}


def plan_lines(planner: Planner, plan: Plan, *, name: str, explain: bool) -> list[str]:
    """The chosen plan. `explain` adds the constants that the speeds come from."""
    share = plan.peak_bytes / max(plan.budget_bytes, 1)
    lines = [
        f"{printable(name)} on {planner.profile.name}",
        "",
        f"  {plan.recipe}, {format_bytes(plan.artifact_bytes)} file, context {plan.n_ctx},"
        f" {plan.kv_type} cache, {plan.n_threads} threads",
        f"  peak {format_bytes(plan.peak_bytes)} of {format_bytes(plan.budget_bytes)} free"
        f" ({share:.0%}), {format_bytes(plan.anonymous_bytes)} of it cannot be dropped",
        f"  {speed_text(plan)}",
        "",
    ]
    lines += memory_lines(plan)
    lines.append("")
    lines += [f"  - {reason}" for reason in plan.reasons]
    if plan.rejected:
        lines.append("  wanted more, but:")
        lines += [f"    {reason}" for reason in plan.rejected]
    if explain:
        lines += ["", *explain_lines(planner, plan)]
    return lines


def speed_text(plan: Plan) -> str:
    """Predicted speeds with their bound and basis, or why there are none."""
    if plan.decode_tps is None and plan.prefill_tps is None:
        return "no speed predicted: the board's memory bandwidth and kernels are not known"
    parts = []
    if plan.decode_tps is not None:
        parts.append(f"decode {_rate(plan.decode_tps)} tokens/s ±{DECODE_BOUND:.0%}")
    if plan.prefill_tps is not None:
        parts.append(f"prefill {_rate(plan.prefill_tps)} ±{PREFILL_BOUND:.0%}")
    return f"{', '.join(parts)}, {plan.basis}"


def memory_lines(plan: Plan) -> list[str]:
    """One bar per kind of memory, each relative to the budget."""
    lines = []
    for kind, n_bytes in plan.memory.items():
        if not n_bytes:
            continue
        filled = min(_BAR_WIDTH, max(1, round(_BAR_WIDTH * n_bytes / max(plan.budget_bytes, 1))))
        bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
        lines.append(f"  {_KINDS.get(kind, kind):<30} {format_bytes(n_bytes):>10}  {bar}")
    return lines


def candidate_lines(planner: Planner, chosen: Plan, rows: Sequence[Candidate]) -> list[str]:
    """Table of every recipe looked at, the chosen one marked."""
    lines = [
        "  recipe    bits/w   ppl+     file      context  KV     peak       decode  prefill",
    ]
    for row in rows:
        mark = "▸" if row.recipe == chosen.recipe and row.n_ctx == chosen.n_ctx else " "
        added = row.weights.perplexity_added
        over = row.peak_bytes - planner.budget_bytes
        note = "" if over <= 0 else f"  {format_bytes(over)} too much"
        lines.append(
            f"{mark} {row.recipe:<9} {row.weights.bits_per_weight:>6.2f}"
            f" {added:>6.2f} {format_bytes(row.weights.artifact_bytes):>10}"
            f" {row.n_ctx:>9}  {row.kv_type:<5} {format_bytes(row.peak_bytes):>9}"
            f" {_rate(row.speed.decode_tps):>9} {_rate(row.speed.prefill_tps):>8}{note}"
        )
    return lines


def explain_lines(planner: Planner, plan: Plan) -> list[str]:
    """The constants behind the figures, with the source of each where the profile names one."""
    profile = planner.profile
    bandwidth = profile.memory.bandwidth_sustained
    lines = ["  where the figures come from:"]
    if bandwidth is not None:
        source = profile.sources.get("memory.sustained_gb_per_s", profile.basis)
        lines.append(f"    bandwidth {bandwidth / 1e9:.1f} GB/s sustained [{source}]")
    for i, cluster in enumerate(profile.clusters):
        clock = f" at {cluster.clock_hz / 1e9:.1f} GHz" if cluster.clock_hz else ""
        source = profile.sources.get(f"cpu.{i}.clock_mhz", profile.basis)
        flags = ", ".join(sorted(cluster.isa)) or "no known SIMD flags"
        lines.append(f"    {cluster.count}x {cluster.core}{clock}, {flags} [{source}]")
    reserved = profile.sources.get("memory.reserved_mib", "what is free right now")
    lines.append(
        f"    RAM {format_bytes(profile.ram_bytes)}, of which the system keeps"
        f" {format_bytes(profile.memory.reserved_bytes)} [{reserved}]"
    )
    lines.append("    formulas: device_profiles/cost/*.py, each with its source")
    return lines


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
