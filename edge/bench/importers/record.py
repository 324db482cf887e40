"""Code that all importers share: a record from figures alone, and checked numbers."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from boardfit.edge import __version__
from boardfit.edge.bench.metrics import spreads
from boardfit.edge.bench.store import KIND, SCHEMA, sealed
from boardfit.edge.bench.workloads import Test
from boardfit.edge.errors import InputError

# What no other tool here measures. What else one lacks is seen from its readings.
NEVER = ("time between tokens", "anonymous memory", "memory over time", "temperature", "throttling",
         "other load")  # fmt: skip
KINDS = {"prefill_tps": "prefill", "decode_tps": "decode", "load_s": "load"}
FACTS = {"n_threads": "threads", "cpu": "machine", "build": "engine build"}
MAX_READINGS = 100_000


@dataclass(frozen=True)
class ImportedFile:
    """The file that is imported: its name, its SHA-256, and when it was written (UTC)."""

    name: str
    sha256: str
    time: str

    @classmethod
    def from_path(cls, path: Path, data: bytes) -> ImportedFile:
        written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        time = written.isoformat(timespec="seconds")
        return cls(path.name, hashlib.sha256(data).hexdigest(), time)


class Sizes(NamedTuple):
    """Tokens of a test."""

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0


NO_SIZES = Sizes()


class ToolSubject(NamedTuple):
    """What a tool measured, as far as it says so. `is_mean`: it gives no single repetitions."""

    name: str
    quant: str | None = None
    version: str | None = None
    build: str | None = None
    n_bytes: int | None = None
    n_params: int | None = None
    cpu: str | None = None
    n_threads: int | None = None
    n_batch: int | None = None
    n_ctx: int | None = None
    kv_type: str | None = None
    is_mean: bool = False


@dataclass(frozen=True)
class ToolReading:
    """Figures of one answer or test; those that are None were not measured. Readings of equal
    sizes are repetitions, but for those of another `part`. A tool that keeps no repetitions has
    their spreads instead (`metrics`), of one `kind` of test.
    """

    subject: ToolSubject
    figures: Mapping[str, float | None]
    sizes: Sizes = NO_SIZES
    time: str | None = None
    part: int = 0
    metrics: Mapping[str, Any] | None = None
    flags: tuple[str, ...] = ()
    label: str | None = None
    kind: str = ""

    def by_kind(self) -> Iterator[tuple[str, Sizes, dict[str, float]]]:
        """Each kind of test that the figures are of, with the sizes that it keeps."""
        if self.metrics:
            yield self.kind, self.sizes, {}
        n_prompt, n_gen, n_depth = self.sizes
        sizes = {
            "prefill": Sizes(n_prompt, 0, n_depth),
            "decode": Sizes(0, n_gen, n_depth + n_prompt),
            "load": NO_SIZES,
        }
        found: dict[str, dict[str, float]] = {}
        for name, value in self.figures.items():
            if value is not None:
                found.setdefault(KINDS.get(name, "end-to-end"), {})[name] = value
        for kind, figures in found.items():
            yield kind, sizes.get(kind, self.sizes), figures


# A reading, and what it holds of one kind of test.
Kept = tuple[ToolReading, dict[str, float]]


def make_records(
    tool: str, source: ImportedFile, readings: Iterable[ToolReading]
) -> tuple[dict[str, Any], ...]:
    """One record for each kind and size of what was measured. Raises InputError without any."""
    listed = list(itertools.islice(readings, MAX_READINGS + 1))
    names = {name for reading in listed for name, v in reading.figures.items() if v is not None}
    lacks = {s: list_absent(s, names) for s in {reading.subject for reading in listed}}
    groups: dict[
        tuple[ToolSubject, int, str, Sizes], list[tuple[ToolReading, dict[str, float]]]
    ] = {}
    for reading in listed:
        for kind, sizes, figures in reading.by_kind():
            key = reading.subject, reading.part, kind, sizes
            groups.setdefault(key, []).append((reading, figures))
    if not groups or len(listed) > MAX_READINGS:
        raise InputError(f"{tool}: no rows with figures, or more than {MAX_READINGS}")
    return tuple(
        make_record(tool, source, lacks[subject], found, kind, sizes)
        for (subject, _, kind, sizes), found in groups.items()
    )


def list_absent(subject: ToolSubject, names: set[str]) -> list[str]:
    """What was not measured, or is not known, in words."""
    figures = {**KINDS, "ttft_s": "time to first token"}
    absent = [what for name, what in figures.items() if name not in names]
    absent += [what for name, what in FACTS.items() if getattr(subject, name) is None]
    return [*(["single repetitions (it writes means)"] if subject.is_mean else []), *absent, *NEVER]


def make_record(
    tool: str,
    source: ImportedFile,
    lacks: Sequence[str],
    found: Sequence[Kept],
    kind: str,
    sizes: Sizes,
) -> dict[str, Any]:
    """One sealed record of equal readings."""
    last, figures = found[-1][0], [kept for _, kept in found]
    subject = last.subject
    test = Test(kind, sizes.n_prompt, sizes.n_depth, sizes.n_gen)  # type: ignore[arg-type]
    label = test.label if any(sizes) else f"{kind}, lengths not printed"

    def facts(*keys: str) -> dict[str, Any]:
        return {key: getattr(subject, key) for key in keys}

    named = f"{source.sha256} {tool} {subject.name}"
    run_id = hashlib.sha256(named.encode("utf-8", "backslashreplace")).hexdigest()
    return sealed(
        {
            "kind": KIND,
            "schema": SCHEMA,
            "run_id": run_id[:32],
            "time": last.time or source.time,
            "kit": {"version": __version__, "commit": None, "changed": None},
            "engine": {
                "name": tool,
                "details": {"n_params": subject.n_params},
                **facts("version", "build", "quant"),
            },
            "artifact": {"sha256": None, "bundle_id": None, **facts("name", "n_bytes")},
            "machine": facts("cpu"),
            "settings": {"recipe": None, **facts("n_ctx", "n_threads", "n_batch", "kv_type")},
            **dict.fromkeys(("board", "predicted", "quality", "baseline")),
            "repeat": f"(measured by {tool}; imported from {source.name})",
            "imported": {
                "tool": tool,
                "file": source.name,
                "file_sha256": source.sha256,
                "not_measured": list(lacks),
            },
            "test": {
                **asdict(test),
                "label": last.label or ("load" if kind == "load" else label),
                "n_repeats": 0 if last.metrics else len(figures),
                "prompt_sha256": None,
            },
            "metrics": dict(last.metrics or spreads(figures)),
            "flags": list(last.flags),
            "traces": [],
            "figures": [] if last.metrics else figures,
        }
    )


def number(value: Any, what: str, *, zero: bool = False) -> float:
    """A finite figure above 0 (or from 0), given as a number or as text. Raises InputError."""
    try:
        found = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or found < 0 or (found == 0 and not zero):
        raise InputError(f"{what} is {str(value)[:40]!r}, which is not a figure")
    return found


def count(value: Any, what: str) -> int:
    """A whole number from 0 up. Raises InputError."""
    found = number(value, what, zero=True)
    if found != int(found) or found > 2**53:
        raise InputError(f"{what} is {str(value)[:40]!r}, which is not a count")
    return int(found)


def text_or_none(value: Any) -> str | None:
    return str(value)[:200] if isinstance(value, str) and value else None


def whole_or_none(value: Any) -> int | None:
    """A whole number above 0, where there is one: a missing setting is no error. CSV has text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    return value if type(value) is int and 0 < value < 2**63 else None


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[/\\]", path)[-1]
