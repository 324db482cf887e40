"""Code that all importers share: a record from figures alone, and checked numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from boardfit.edge import __version__
from boardfit.edge.bench.metrics import spreads
from boardfit.edge.bench.store import KIND, SCHEMA, sealed
from boardfit.edge.bench.workloads import Kind, Test
from boardfit.edge.errors import InputError

# What no other tool here measures.
NEVER = ("anonymous memory", "memory over time", "temperature", "throttling", "other load")


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


@dataclass(frozen=True)
class ImportedSubject:
    """What another tool measured, as far as it says so."""

    source: ImportedFile
    tool: str
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
    not_measured: tuple[str, ...] = ()

    def record(
        self,
        kind: Kind | str,
        figures: Sequence[Mapping[str, float | None]],
        sizes: Sizes = NO_SIZES,
        *,
        time: str | None = None,
        flags: Sequence[str] = (),
        metrics: Mapping[str, Any] | None = None,
        label: str | None = None,
    ) -> dict[str, Any]:
        """One sealed record. `figures` are the repetitions; `metrics` replaces their spread where a
        tool reports percentiles only. Of the sizes a test keeps those of its kind.
        """
        n_prompt = 0 if kind == "decode" else sizes.n_prompt
        n_gen = 0 if kind == "prefill" else sizes.n_gen
        test = Test(kind, n_prompt, sizes.n_depth, n_gen)  # type: ignore[arg-type]

        def facts(*keys: str) -> dict[str, Any]:
            return {key: getattr(self, key) for key in keys}

        named = f"{self.source.sha256} {self.tool} {self.name}"
        run_id = hashlib.sha256(named.encode("utf-8", "backslashreplace")).hexdigest()
        return sealed(
            {
                "kind": KIND,
                "schema": SCHEMA,
                "run_id": run_id[:32],
                "time": time or self.source.time,
                "kit": {"version": __version__, "commit": None, "changed": None},
                "engine": {
                    "name": self.tool,
                    "details": {"n_params": self.n_params},
                    **facts("version", "build", "quant"),
                },
                "artifact": {"sha256": None, "bundle_id": None, **facts("name", "n_bytes")},
                "machine": facts("cpu"),
                "settings": {"recipe": None, **facts("n_ctx", "n_threads", "n_batch", "kv_type")},
                **dict.fromkeys(("board", "predicted", "quality", "baseline")),
                "repeat": f"(measured by {self.tool}; imported from {self.source.name})",
                "imported": {
                    "tool": self.tool,
                    "file": self.source.name,
                    "file_sha256": self.source.sha256,
                    "not_measured": [*self.not_measured, *NEVER],
                },
                "test": {
                    **asdict(test),
                    "label": label or ("load" if kind == "load" else test.label),
                    "n_repeats": len(figures),
                    "prompt_sha256": None,
                },
                "metrics": dict(metrics) if metrics is not None else spreads(figures),
                "flags": list(flags),
                "traces": [],
                "figures": [dict(repetition) for repetition in figures],
            }
        )

    def answers(
        self,
        figures: Sequence[Mapping[str, float | None]],
        sizes: Sizes,
        *,
        time: str | None = None,
    ) -> list[dict[str, Any]]:
        """Records of answers timed in two parts: the whole, and the speeds of its parts."""
        found = {"end-to-end": list(figures)}
        for kind in ("prefill", "decode"):
            name = f"{kind}_tps"
            found[kind] = [{name: figure[name]} for figure in figures if figure.get(name)]
        at_depth = {"decode": sizes._replace(n_depth=sizes.n_prompt)}
        return [
            self.record(
                kind, kept, at_depth.get(kind, sizes), time=time,
                label=None if any(sizes) else f"{kind}, lengths not printed",
            )
            for kind, kept in found.items()
            if kept
        ]  # fmt: skip


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
