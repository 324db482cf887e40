"""Units in and out of text, so that MiB and GB never mix: data holds plain bytes and seconds."""

import difflib
import math
import re
from collections.abc import Iterable

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_BYTES = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_SECONDS = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?\s*$", re.IGNORECASE)
_SECOND_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def format_bytes(n_bytes: int | None) -> str:
    """`1536` → `1.5 KiB`; `None` → `–` (not measured)."""
    if n_bytes is None:
        return "–"
    sign, size = ("-" if n_bytes < 0 else ""), float(abs(n_bytes))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            if unit == "B":
                return f"{sign}{size:.0f} B"
            return f"{sign}{size:.2f} {unit}" if size < 10 else f"{sign}{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def parse_bytes(text: str) -> int:
    """`512`, `1.5G`, `2GB` → bytes; `G` and `GiB` are 1024-based. Raises ValueError otherwise."""
    match = _BYTES.match(text)
    if not match:
        raise ValueError(f"not a size: {text!r}; write for example 512MiB, 1.5G or 2GB")
    unit = match[2].lower()
    power = "kmgt".find(unit[:1]) + 1 if unit and unit != "b" else 0
    base = 1000 if unit.endswith("b") and len(unit) == 2 else 1024
    return int(float(match[1]) * base**power)


def format_seconds(seconds: float | None) -> str:
    """`0.0123` → `12.3 ms`; `75` → `1 min 15 s`; `None` → `–` (not measured)."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def parse_seconds(text: str) -> float:
    """`2s`, `500ms`, `1.5`, `2min` → seconds, more than zero. Raises ValueError otherwise."""
    match = _SECONDS.match(text)
    if not match:
        raise ValueError(f"not a time: {text!r}; write for example 2s, 500ms or 1.5min")
    seconds = float(match[1]) * _SECOND_UNITS[(match[2] or "s").lower()]
    if seconds <= 0:
        raise ValueError(f"a time must be more than zero, got {text!r}")
    return seconds


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(got, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def printable(text: str, limit: int = 200) -> str:
    """Text from an untrusted file made safe for a terminal: control characters escaped, cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def find_error_line(output: str) -> str:
    """The last `error:` line of a program's output, or its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1].removeprefix("error:").strip()
