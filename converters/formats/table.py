"""The formats as data: a row each, whose class is imported when it is used."""

from __future__ import annotations

from boardfit.converters.formats.base import FormatRow
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import UsageError
from boardfit.edge.units import did_you_mean

GGUF, AUTO = "gguf", "auto"

FORMATS: dict[str, FormatRow] = {
    name: FormatRow(name, **{**row, "profile_engines": tuple(row["profile_engines"])})
    for name, row in load_toml("boardfit.converters.formats", "formats.toml").items()
}


def format_of_engine(engine: str) -> FormatRow:
    """The format that an engine runs."""
    return next(row for row in FORMATS.values() if row.engine == engine)


def parse_formats(text: str) -> tuple[str, ...]:
    """`gguf,onnx` → ids, without doubles. `auto` stands alone.

    Raises UsageError, with the nearest known id, for an unknown one.
    """
    wanted = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    known = (*FORMATS, AUTO)
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"unknown format {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}"
            )
    if not wanted or (AUTO in wanted and len(wanted) > 1):
        raise UsageError(f"--format {text!r}: name formats, or auto alone")
    return wanted
