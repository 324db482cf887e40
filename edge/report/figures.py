"""What a report says, as data: verdict, five figures, rows. Pure functions of records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.units import format_bytes, format_seconds

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The records of one run id, in the order in which they were stored."""

    run_id: str
    records: tuple[Record, ...]

    @property
    def head(self) -> Record:
        return self.records[0]

    def tests(self, kind: str) -> list[Record]:
        return [r for r in self.records if r["test"].get("kind") == kind]


def group_runs(records: Sequence[Record]) -> list[Run]:
    """Records by run id, oldest first."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(str(record["run_id"]), []).append(record)
    runs = [Run(run_id, tuple(found)) for run_id, found in grouped.items()]
    return sorted(runs, key=lambda run: str(run.head["time"]))


def median(record: Record | None, name: str) -> float | None:
    """One figure's median, None when it was not measured."""
    figure = (record or {}).get("metrics", {}).get(name)
    value = figure.get("median") if isinstance(figure, dict) else None
    return float(value) if value is not None else None


def spread_text(record: Record, name: str, decimals: int = 1) -> str:
    """`median (p10–p90)`; the bracket is left out below two repetitions."""
    figure = record["metrics"].get(name)
    if not isinstance(figure, dict) or figure.get("median") is None:
        return "–"
    text = f"{figure['median']:.{decimals}f}"
    if (figure.get("n") or 0) < 2:
        return text
    return f"{text} ({figure['p10']:.{decimals}f}–{figure['p90']:.{decimals}f})"


def peak(run: Run, name: str) -> int | None:
    """The largest value of one memory figure over all tests of a run."""
    values = [
        figure["maximum"]
        for record in run.records
        if isinstance(figure := record["metrics"].get(name), dict)
        and figure.get("maximum") is not None
    ]
    return int(max(values)) if values else None


def best_decode(run: Run) -> Record | None:
    """The decode test at the smallest depth: what a short chat feels like."""
    tests = run.tests("decode")
    return min(tests, key=lambda r: r["test"]["n_depth"]) if tests else None


def longest_prefill(run: Run) -> Record | None:
    tests = run.tests("prefill")
    return max(tests, key=lambda r: r["test"]["n_prompt"]) if tests else None


def verdict(run: Run) -> str:
    """One sentence: how long a 200-token question takes to answer, and what limits."""
    decode = median(best_decode(run), "decode_tps")
    prefill = median(longest_prefill(run), "prefill_tps")
    name, where = run.head["artifact"]["name"], machine_name(run)
    quant = run.head["engine"].get("quant") or "unknown quantization"
    if not decode or not prefill:
        return f"{name} ({quant}) on {where}: not enough was measured for a verdict."
    prefill_s, decode_s = 200 / prefill, 100 / decode
    limit = "prefill" if prefill_s > decode_s else "decode"
    return (
        f"{name} ({quant}) answers a 200-token question with 100 tokens in "
        f"{format_seconds(prefill_s + decode_s)} on {where}; {limit} takes the larger part."
    )


def machine_name(run: Run) -> str:
    machine = run.head["machine"]
    return str(machine.get("model") or machine.get("cpu") or machine.get("arch") or "this machine")


def key_figures(run: Run) -> list[tuple[str, str]]:
    """The five figures that matter, each with its text."""
    decode, prefill = best_decode(run), longest_prefill(run)
    talk = next(iter(run.tests("end-to-end")), None)
    loads = run.tests("load")
    return [
        ("decode", f"{spread_text(decode, 'decode_tps')} tokens/s" if decode else "–"),
        ("prefill", f"{spread_text(prefill, 'prefill_tps')} tokens/s" if prefill else "–"),
        ("time to first token (end to end)", format_seconds(median(talk, "ttft_s"))),
        ("peak anonymous memory", format_bytes(peak(run, "peak_anon_bytes"))),
        ("load", format_seconds(median(loads[0], "load_s")) if loads else "–"),
    ]


def predicted_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """(figure, predicted, measured, measured ÷ predicted), where the plan said something and was
    made for the machine that measured; empty otherwise.
    """
    promised = run.head.get("predicted")
    if not promised or promised.get("device") != "this-machine":
        return []
    pairs = [
        ("decode, tokens/s", promised.get("decode_tps"), median(best_decode(run), "decode_tps")),
        (
            "prefill, tokens/s",
            promised.get("prefill_tps"),
            median(longest_prefill(run), "prefill_tps"),
        ),
        ("anonymous memory, bytes", promised.get("anonymous_bytes"), peak(run, "peak_anon_bytes")),
    ]
    return [
        (name, f"{plan:,.0f}", f"{got:,.0f}", f"{got / plan:.2f}")
        for name, plan, got in pairs
        if plan and got
    ]
