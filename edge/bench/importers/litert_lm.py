"""What `litert-lm benchmark` (means of its runs) and `litert_lm_main` (each turn) print."""

import re
from collections.abc import Iterator
from pathlib import PurePath

from boardfit.edge.bench.importers.record import (
    Sizes,
    ToolReading,
    ToolSubject,
    count,
    number,
)
from boardfit.edge.errors import InputError

TOOL = "litert-lm"
HINT = "litert-lm benchmark, or litert_lm_main --benchmark"
MENTIONS = ("litert", "Benchmarking model")
_START, _MAIN = "Benchmarking model:", "BenchmarkInfo"
_FIELD = re.compile(r"^\s*([A-Z][A-Za-z ]+?)\s*:\s*(.+?)\s*$", re.MULTILINE)
# Their row → our figure, and its unit.
_FIGURES = {
    "Prefill speed": ("prefill_tps", "tokens/s"),
    "Decode speed": ("decode_tps", "tokens/s"),
    "Time to first token": ("ttft_s", "s"),
    "Init time": ("load_s", "s"),
}
_TURN = re.compile(
    r"Turn \d{1,6}: Processed (\d{1,9}) tokens[^\n]*\n"
    r"\s*(Prefill|Decode) Speed: ([\d.]{1,20}) tokens/sec"
)
_TIME = re.compile(
    r"(?P<what>Time to first token|Total init time): (?P<time>[\d.]{1,20}) ?(?P<unit>ms|s)\b",
    re.IGNORECASE,
)


def can_read(text: str) -> bool:
    return (_START in text and "Decode speed" in text) or (
        _MAIN in text and _TURN.search(text) is not None
    )


def read(text: str, name: str) -> Iterator[ToolReading]:
    """Prefill, decode, load and first token of every block. Raises InputError on a broken one."""
    for part, block in enumerate(text.split(_START)[1:]):
        yield read_block(_START + block, part)
    for part, block in enumerate(text.split(_MAIN)[1:]):
        yield from read_turns(block, ToolSubject(PurePath(name).stem), part)


def read_turns(block: str, subject: ToolSubject, part: int) -> Iterator[ToolReading]:
    """Readings of litert_lm_main: turns of equal size are repetitions."""
    first = {"Prefill": 0, "Decode": 0}
    for tokens, what, rate in _TURN.findall(block):
        first[what] = first[what] or int(tokens)
        sizes = Sizes(n_prompt=int(tokens)) if what == "Prefill" else Sizes(n_gen=int(tokens))
        value = number(rate, f"{TOOL}: {what} Speed", zero=True)
        yield ToolReading(subject, {f"{what.lower()}_tps": value}, sizes, part=part)
    for found in _TIME.finditer(block):
        scale = 1e-3 if found["unit"] == "ms" else 1.0
        figure = "load_s" if "init" in found["what"] else "ttft_s"
        figures = {figure: number(found["time"], f"{TOOL}: {found['what']}") * scale}
        yield ToolReading(subject, figures, Sizes(*first.values()), part=part)


def read_block(block: str, part: int) -> ToolReading:
    fields = dict(_FIELD.findall(block))
    name = fields.get("Benchmarking model", "unknown").split(" (")[0]
    n_ctx, build = fields.get("Max number of tokens"), fields.get("Backend")
    figures = {}
    for row, (figure, unit) in _FIGURES.items():
        value, _, got = fields.get(row, "").partition(" ")
        if got.strip() != unit:
            raise InputError(f"{TOOL}: {row} in {unit} expected, got {fields.get(row, '')[:40]!r}")
        figures[figure] = number(value, f"{TOOL}: {row}")
    subject = ToolSubject(
        PurePath(name).stem if "/" in name else name,
        build=build,
        n_ctx=None if n_ctx is None else count(n_ctx, f"{TOOL}: tokens"),
        is_mean=True,
    )
    rows = (f"Number of tokens in {what}" for what in ("prefill", "decode"))
    sizes = Sizes(*(count(fields.get(row), f"{TOOL}: {row}") for row in rows))
    return ToolReading(subject, figures, sizes, part=part)
