"""Rows of a report about a language model: speed, time to first token, memory."""

from boardfit.edge.report.figures import (
    Figure,
    Record,
    Run,
    interval_text,
    median,
    name_test,
    spread_text,
)
from boardfit.edge.units import format_bytes, format_seconds


def language_verdict(run: Run) -> str:
    """One sentence: how long a 200-token question takes to answer, and what limits."""
    decode = median(run.best_decode, "decode_tps")
    prefill = median(run.longest_prefill, "prefill_tps")
    name, where = run.head["artifact"]["name"], run.machine_name
    quant = run.head["engine"].get("quant") or "unknown quantization"
    if not decode or not prefill:
        return f"{name} ({quant}) on {where}: not enough was measured for a verdict."
    prefill_s, decode_s = 200 / prefill, 100 / decode
    limit = "prefill" if prefill_s > decode_s else "decode"
    return (
        f"{name} ({quant}) answers a 200-token question with 100 tokens in "
        f"{format_seconds(prefill_s + decode_s)} on {where}; {limit} takes the larger part"
        f"{memory_clause(run)}."
    )


# Below half of what there is, memory decides nothing; above 90 % it decides everything.
ROOMY, TIGHT = 0.5, 0.9


def memory_clause(run: Run) -> str:
    """What memory means for this run, or nothing where it was not measured."""
    used, limit = run.peak("peak_anon_bytes"), run.memory_limit
    if used is None or limit is None:
        return ""
    share = used / limit
    kind = "no limit" if share < ROOMY else "tight" if share < TIGHT else "at its limit"
    return f", memory is {kind} ({format_bytes(used)} of {format_bytes(limit)})"


def language_figures(run: Run) -> list[Figure]:
    """The five figures that matter, the rates with their spread."""
    decode, prefill = run.best_decode, run.longest_prefill
    ttft_s = median(run.first("end-to-end"), "ttft_s")

    def rate(record: Record | None, name: str) -> tuple[str, str]:
        value, interval = median(record, name), interval_text(record, name)
        return ("–", "") if value is None else (f"{value:.1f} tokens/s", interval)

    return [
        ("decode", *rate(decode, "decode_tps")),
        ("prefill", *rate(prefill, "prefill_tps")),
        ("time to first token (end to end)", format_seconds(ttft_s), ""),
        ("peak anonymous memory", format_bytes(run.peak("peak_anon_bytes")), ""),
        ("load", format_seconds(median(run.first("load"), "load_s")), ""),
        *mbu_figure(decode),
    ]


def mbu_figure(decode: Record | None) -> list[Figure]:
    """Memory bandwidth utilization of decode, where the results hold it."""
    moved = (decode or {}).get("moved")
    if not isinstance(moved, dict):
        return []
    values = [moved.get(name) for name in ("mbu", "bytes_per_step", "bandwidth")]
    known = [float(v) for v in values if isinstance(v, (int, float)) and 0 < v < float("inf")]
    if len(known) < len(values):
        return []
    mbu, n_bytes, bandwidth = known
    basis = f"{format_bytes(int(n_bytes))} a token, of {bandwidth / 1e9:.1f} GB/s measured"
    return [("memory bandwidth used (MBU)", f"{mbu:.0%}", basis)]


SPEED_HEADER = ("test", "tokens/s, median (p10–p90)", "TTFT", "slowest token", "repeats")


def speed_rows(run: Run) -> list[tuple[str, ...]]:
    return [
        (
            name_test(record),
            spread_text(record, "prefill_tps" if kind == "prefill" else "decode_tps"),
            format_seconds(median(record, "ttft_s")),
            format_seconds(median(record, "itl_max_s")),
            str(record["test"].get("n_repeats", "–")),
        )
        for record in run.records
        if (kind := record["test"]["kind"]) != "load"
    ]
