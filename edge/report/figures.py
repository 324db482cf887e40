"""Plain figures of runs, their names and labels. Pure functions of records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.edge.units import format_bytes

Record = dict[str, Any]
# (name, text, the middle 80 % of the repetitions or nothing)
Figure = tuple[str, str, str]
# (header, rows)
Table = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


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

    def first(self, kind: str) -> Record | None:
        return next(iter(self.tests(kind)), None)

    def peak(self, name: str) -> int | None:
        """The largest value of one memory figure over all tests."""
        values = [find_spread(record, name).get("maximum") for record in self.records]
        return max((int(value) for value in values if value is not None), default=None)

    @property
    def best_decode(self) -> Record | None:
        """The decode test at the smallest depth: what a short chat feels like."""
        tests = self.tests("decode")
        return min(tests, key=lambda r: r["test"]["n_depth"]) if tests else None

    @property
    def longest_prefill(self) -> Record | None:
        tests = self.tests("prefill")
        return max(tests, key=lambda r: r["test"]["n_prompt"]) if tests else None

    @property
    def memory_limit(self) -> int | None:
        """Bytes that the machine gave the process: its RAM, or a smaller cgroup limit."""
        machine = self.head["machine"]
        known = [machine.get("ram_bytes"), machine.get("memory_limit_bytes")]
        return min((int(n) for n in known if isinstance(n, (int, float)) and n > 0), default=None)

    @property
    def settings_text(self) -> str:
        """`4 threads, context 512, KV f16, batch 512`, as far as the run recorded them."""
        keys = ("n_threads", "n_ctx", "kv_type", "n_batch")
        forms = ("{} threads", "context {}", "KV {}", "batch {}")
        pairs = zip(forms, map(self.head["settings"].get, keys), strict=True)
        known = [form.format(value) for form, value in pairs if value]
        return ", ".join(known) or "settings not recorded"

    @property
    def engine_text(self) -> str:
        """Name and version, as far as the run recorded them."""
        engine = self.head["engine"]
        return " ".join(str(part) for part in (engine.get("name"), engine.get("version")) if part)

    @property
    def machine_name(self) -> str:
        machine = self.head["machine"]
        known = machine.get("model") or machine.get("cpu") or machine.get("arch")
        return str(known or "an unnamed machine")

    @property
    def imported_note(self) -> str | None:
        """What another tool's results lack, in one sentence; None for our own."""
        origin = self.head.get("imported")
        if origin is None:
            return None
        what = ", ".join(origin.get("not_measured") or ()) or "nothing known"
        return f"Imported from {origin.get('tool')}, which did not measure: {what}."

    @property
    def is_planned_machine(self) -> bool:
        """Whether the plan was made for the machine that measured."""
        device = (self.head.get("predicted") or {}).get("device")
        return device in {"this-machine", self.head["machine"].get("profile")} - {None}

    def find_predictions(self) -> list[tuple[str, str, float, float]]:
        """(figure, unit, predicted, measured), where the plan is for the machine that measured."""
        promised = self.head.get("predicted")
        if not promised or not self.is_planned_machine:
            return []
        decode, prefill = self.best_decode, self.longest_prefill
        pairs = (
            ("decode", "tokens/s", "decode_tps", median(decode, "decode_tps")),
            ("prefill", "tokens/s", "prefill_tps", median(prefill, "prefill_tps")),
            ("anonymous memory", "bytes", "anonymous_bytes", self.peak("peak_anon_bytes")),
        )
        return [
            (name, unit, float(plan), float(got))
            for name, unit, key, got in pairs
            if (plan := promised.get(key)) and got
        ]


def group_runs(records: Sequence[Record]) -> list[Run]:
    """Records by run id, oldest first. Two machines under one run id are two runs."""
    grouped: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        grouped.setdefault((str(record["run_id"]), *machine_key(record)), []).append(record)
    runs = [Run(key[0], tuple(found)) for key, found in grouped.items()]
    return sorted(runs, key=lambda run: str(run.head["time"]))


def find_spread(record: Record | None, name: str) -> Mapping[str, Any]:
    """One figure's statistics, empty when it was not measured."""
    return (record or {}).get("metrics", {}).get(name) or {}


def median(record: Record | None, name: str) -> float | None:
    """One figure's median, None when it was not measured."""
    value = find_spread(record, name).get("median")
    return float(value) if value is not None else None


def spread_text(record: Record, name: str, decimals: int = 1) -> str:
    """`median (p10–p90)`; the bracket is left out below two repetitions."""
    value, interval = median(record, name), interval_text(record, name, decimals)
    if value is None:
        return "–"
    return f"{value:.{decimals}f} ({interval})" if interval else f"{value:.{decimals}f}"


def interval_text(record: Record | None, name: str, decimals: int = 1) -> str:
    """`p10–p90`, or nothing below two repetitions."""
    figure = find_spread(record, name)
    if figure.get("median") is None or (figure.get("n") or 0) < 2:
        return ""
    return f"{figure['p10']:.{decimals}f}–{figure['p90']:.{decimals}f}"


def name_test(record: Record) -> str:
    return str(record["test"].get("label", "?"))


def page_title(runs: Sequence[Run]) -> str:
    newest = runs[-1]
    title = f"{newest.head['artifact']['name']} on {newest.machine_name}"
    others = {(str(run.head["artifact"]["name"]), run.machine_name) for run in runs}
    if len(runs) == 1:
        return title
    return f"{title}, {len(runs)} runs" if len(others) == 1 else f"{title} and {len(runs) - 1} more"


# Fields that identify a machine, regardless of its name.
IDENTITY = ("model", "cpu", "n_cores", "ram_bytes", "arch")


def machine_key(record: Record) -> tuple[str, ...]:
    return tuple(str(record["machine"].get(key)) for key in IDENTITY)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Make a short label per run: its artifact, and what distinguishes it."""
    parts = [
        {
            "artifact": str(run.head["artifact"]["name"]),
            "quant": str(run.head["engine"].get("quant") or "?"),
            "engine": str(run.head["engine"].get("name") or "?"),
            "machine": run.machine_name,
            "memory": format_bytes(run.memory_limit),
            "cores": f"{run.head['machine'].get('n_cores') or '?'} cores",
            "threads": f"{run.head['settings'].get('n_threads') or '?'} threads",
            "context": f"context {run.head['settings'].get('n_ctx') or '?'}",
            "time": str(run.head["time"])[:16].replace("T", " "),
            "run": f"run {run.run_id[:6]}",
        }
        for run in runs
    ]
    labels = [part["artifact"] for part in parts]
    for name in list(parts[0])[1:] if parts else ():
        alike = len(set(labels)) < len(labels)
        if (alike or name == "engine") and len({part[name] for part in parts}) > 1:
            labels = [f"{label}, {part[name]}" for label, part in zip(labels, parts, strict=True)]
    return labels


def name_clashes(runs: Sequence[Run]) -> list[str]:
    """One note per board name that stands for machines that are not alike."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for run in runs:
        if not run.head.get("imported"):  # other tools report too little of a machine
            found.setdefault(run.machine_name, set()).add(machine_key(run.head))
    return [
        f"{len(keys)} different machines are called {name!r}: their results are kept apart"
        for name, keys in found.items()
        if len(keys) > 1
    ]
