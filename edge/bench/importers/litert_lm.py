"""What `litert-lm benchmark` (means of its runs) and `litert_lm_main` (each turn) print."""

import re
from pathlib import PurePath
from typing import Any

from boardfit.edge.bench.importers.record import ImportedFile, ImportedSubject, Sizes, count, number
from boardfit.edge.errors import InputError

TOOL = "litert-lm"
HINT = "litert-lm benchmark, or litert_lm_main --benchmark"
MENTIONS = ("litert", "Benchmarking model")
NOT_MEASURED = ("repetitions (it prints means)", "time between tokens", "machine", "engine build")
_START = "Benchmarking model:"
_FIELD = re.compile(r"^\s*([A-Z][A-Za-z ]+?)\s*:\s*(.+?)\s*$", re.MULTILINE)


_MAIN = "BenchmarkInfo"
_TURN = re.compile(
    r"Turn \d{1,6}: Processed (\d{1,9}) tokens[^\n]*\n"
    r"\s*(Prefill|Decode) Speed: ([\d.]{1,20}) tokens/sec"
)
_FIRST = re.compile(r"Time to first token: ([\d.]{1,20}) ?(ms|s)\b")
_INIT = re.compile(r"Total init time: ([\d.]{1,20}) ?(ms|s)\b", re.IGNORECASE)


def can_read(text: str) -> bool:
    return (_START in text and "Decode speed" in text) or (
        _MAIN in text and _TURN.search(text) is not None
    )


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """Prefill, decode, load and first token of every block. Raises InputError on a broken one."""
    found = []
    for block in text.split(_START)[1:]:
        found += read_block(_START + block, source)
    for block in text.split(_MAIN)[1:]:
        found += read_turns(block, source)
    return found


def read_turns(block: str, source: ImportedFile) -> list[dict[str, Any]]:
    """Records of litert_lm_main: turns of equal size are repetitions."""
    subject = ImportedSubject(
        source, TOOL, name=PurePath(source.name).stem, not_measured=NOT_MEASURED[1:]
    )
    turns: dict[tuple[str, int], list[dict[str, float]]] = {}
    for n_tokens, what, rate in _TURN.findall(block):
        kind = what.lower()
        figures = {f"{kind}_tps": number(rate, f"{TOOL}: {what} Speed", zero=True)}
        turns.setdefault((kind, int(n_tokens)), []).append(figures)
    found = [subject.record(kind, repeats, Sizes(n, n)) for (kind, n), repeats in turns.items()]
    for pattern, kind, name in ((_FIRST, "end-to-end", "ttft_s"), (_INIT, "load", "load_s")):
        if (match := pattern.search(block)) is not None:
            scale = 1e-3 if match[2] == "ms" else 1.0
            seconds = number(match[1], f"{TOOL}: {match[0][:40]}") * scale
            first = {phase: n for phase, n in reversed(turns)} if name == "ttft_s" else {}
            sizes = Sizes(first.get("prefill", 0), first.get("decode", 0))
            found.append(subject.record(kind, [{name: seconds}], sizes))
    return found


def read_block(block: str, source: ImportedFile) -> list[dict[str, Any]]:
    fields = {match[1]: match[2] for match in _FIELD.finditer(block)}
    name = fields.get("Benchmarking model", "unknown").split(" (")[0]
    n_ctx = fields.get("Max number of tokens")
    subject = ImportedSubject(
        source,
        TOOL,
        name=PurePath(name).stem if "/" in name else name,
        build=fields.get("Backend"),
        n_ctx=None if n_ctx is None else count(n_ctx, f"{TOOL}: tokens"),
        not_measured=NOT_MEASURED,
    )
    n_prompt = count(fields.get("Number of tokens in prefill"), f"{TOOL}: tokens in prefill")
    n_gen = count(fields.get("Number of tokens in decode"), f"{TOOL}: tokens in decode")
    figures = {
        "prefill": {"prefill_tps": measured(fields, "Prefill speed", "tokens/s")},
        "decode": {"decode_tps": measured(fields, "Decode speed", "tokens/s")},
        "end-to-end": {"ttft_s": measured(fields, "Time to first token", "s")},
    }
    load = subject.record("load", [{"load_s": measured(fields, "Init time", "s")}])
    return [
        *(subject.record(kind, [found], Sizes(n_prompt, n_gen)) for kind, found in figures.items()),
        load,
    ]


def measured(fields: dict[str, str], name: str, unit: str) -> float:
    value, _, got = fields.get(name, "").partition(" ")
    if got.strip() != unit:
        raise InputError(f"{TOOL}: {name} in {unit} expected, got {fields.get(name, '')[:40]!r}")
    return number(value, f"{TOOL}: {name}")
