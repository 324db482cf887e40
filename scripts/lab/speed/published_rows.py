"""The lines of a file of published speeds: texts stripped, numbers checked, nothing trusted."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

TEXTS = ("device", "soc", "runtime", "model", "quant", "accelerator", "source")
NUMBERS = (
    *("ram_gb", "params_b", "model_size_gb", "threads", "prompt_tokens", "gen_tokens"),
    *("prefill_tps", "decode_tps", "peak_mem_gb"),
)
COLUMNS = (*TEXTS, *NUMBERS)
# Columns in billions (parameters, bytes), in which people write the unit all the same.
_SIZED = ("ram_gb", "params_b", "model_size_gb")
_UNITS = {"gb": 1.0, "b": 1.0, "gib": 1.073741824, "mb": 1e-3, "m": 1e-3, "mib": 1.048576e-3}
_UNIT = re.compile(r"(?<=[\d.])\s*(gb|gib|mb|mib|b|m)$")
_LARGEST = 1e7  # beyond any figure of these columns
_LONGEST_TEXT = 500
_NOT_USED = ("peak_mem_gb",)


@dataclass(frozen=True)
class Row:
    """One line of the file. `numbers` has every column of `NUMBERS`, None where blank; `broken`
    names the first column that holds something impossible.
    """

    line: int
    device: str = ""
    soc: str = ""
    runtime: str = ""
    model: str = ""
    quant: str = ""
    accelerator: str = ""
    source: str = ""
    numbers: dict[str, float | None] = field(default_factory=dict)
    broken: str | None = None

    def number(self, column: str) -> float | None:
        """A figure of the row, None where blank."""
        return self.numbers.get(column)

    @property
    def content(self) -> tuple[object, ...]:
        """Everything but the line number: rows alike in it are one row written twice."""
        texts = tuple(getattr(self, name).lower() for name in TEXTS)
        return texts + tuple(self.numbers.get(name) for name in NUMBERS)

    @property
    def text(self) -> str:
        """All texts in lower case, for rules that look anywhere in the row."""
        return " ".join(getattr(self, name) for name in TEXTS).lower()


def read_rows(path: Path) -> list[Row]:
    """Every line of a CSV file. Raises ValueError if the file cannot be read or lacks a column."""
    try:
        text = path.read_text("utf-8-sig", errors="replace").replace("\0", "")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    reader = csv.reader(text.splitlines(keepends=True))
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            expected = ",".join(COLUMNS)
            raise ValueError(f"{path}: no column {', '.join(missing)}; expected {expected}")
        return [_row(reader.line_num, header, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None


def _row(line: int, header: list[str], cells: list[str]) -> Row:
    values = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    broken = None if len(cells) == len(header) else f"{len(cells)} cells for {len(header)} columns"
    numbers: dict[str, float | None] = {}
    for name in NUMBERS:
        text = values.get(name, "")
        numbers[name] = number = _number(text, sized=name in _SIZED)
        nothing_generated = name == "gen_tokens" and _is_zero(text)
        if text and number is None and name not in _NOT_USED and not nothing_generated:
            broken = broken or f"{name} is {text[:40]!r}"
    texts = {name: values.get(name, "")[:_LONGEST_TEXT] for name in TEXTS}
    return Row(line, **texts, numbers=numbers, broken=broken)


def _number(text: str, *, sized: bool) -> float | None:
    unit = _UNIT.search(text.lower()) if sized else None
    try:
        number = float(text[: unit.start()] if unit else text) * (_UNITS[unit[1]] if unit else 1)
    except ValueError:
        return None
    return number if 0 < number < _LARGEST else None


def _is_zero(text: str) -> bool:
    try:
        return math.isclose(float(text), 0.0, abs_tol=1e-12)
    except ValueError:
        return False
