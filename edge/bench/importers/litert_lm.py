"""What `litert-lm benchmark` prints (google-ai-edge/LiteRT-LM): means over its runs, one block per
model.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from boardfit.edge.bench.importers.record import (
    ImportedFile,
    ImportedSubject,
    count,
    make_record,
    number,
)
from boardfit.edge.errors import InputError

TOOL = "litert-lm"
NOT_MEASURED = ("repetitions (it prints means)", "time between tokens", "machine", "engine build")
_START = "Benchmarking model:"
_FIELD = re.compile(r"^\s*([A-Z][A-Za-z ]+?)\s*:\s*(.+?)\s*$", re.MULTILINE)


def can_read(text: str) -> bool:
    return _START in text and "Decode speed" in text


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """Prefill, decode, load and first token of every block. Raises InputError on a broken one."""
    found = []
    for block in text.split(_START)[1:]:
        found += read_block(_START + block, source)
    return found


def read_block(block: str, source: ImportedFile) -> list[dict[str, Any]]:
    fields = {match[1]: match[2] for match in _FIELD.finditer(block)}
    name = fields.get("Benchmarking model", "unknown").split(" (")[0]
    subject = ImportedSubject(
        tool=TOOL,
        name=PurePath(name).stem if "/" in name else name,
        build=fields.get("Backend"),
        n_ctx=count(fields["Max number of tokens"], f"{TOOL}: tokens")
        if "Max number of tokens" in fields
        else None,
        not_measured=NOT_MEASURED,
    )
    n_prompt = count(fields.get("Number of tokens in prefill"), f"{TOOL}: tokens in prefill")
    n_gen = count(fields.get("Number of tokens in decode"), f"{TOOL}: tokens in decode")
    prefill = measured(fields, "Prefill speed", "tokens/s")
    decode = measured(fields, "Decode speed", "tokens/s")
    first = measured(fields, "Time to first token", "s")
    return [
        make_record(subject, source, "prefill", [{"prefill_tps": prefill}], n_prompt=n_prompt),
        make_record(subject, source, "decode", [{"decode_tps": decode}], n_gen=n_gen),
        make_record(
            subject, source, "end-to-end", [{"ttft_s": first}], n_prompt=n_prompt, n_gen=n_gen
        ),
        make_record(subject, source, "load", [{"load_s": measured(fields, "Init time", "s")}]),
    ]


def measured(fields: dict[str, str], name: str, unit: str) -> float:
    value, _, got = fields.get(name, "").partition(" ")
    if got.strip() != unit:
        raise InputError(f"{TOOL}: {name} in {unit} expected, got {fields.get(name, '')[:40]!r}")
    return number(value, f"{TOOL}: {name}")
