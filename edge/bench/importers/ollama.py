"""Ollama's timings: answers of its API (docs.ollama.com/api/usage) as JSON or one object per line,
what `ollama run --verbose` prints below an answer, and obench.sh's rates.

Ollama divides `eval_count` tokens by `eval_duration`; ours counts the gaps, one less. The imported
rate is Ollama's own.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from boardfit.edge.bench.importers.record import (
    Sizes,
    ToolReading,
    ToolSubject,
    count,
    number,
    text_or_none,
)
from boardfit.edge.bench.importers.text import json_objects
from boardfit.edge.errors import InputError

TOOL = "ollama"
HINT = "ollama run --verbose with 2>&1, or the API's JSON"
MENTIONS = ("ollama",)
# `total duration:       1m21.412345678s`, as Go writes durations.
_VERBOSE = re.compile(
    r"^\s*(total duration|load duration|prompt eval count|prompt eval duration|eval count"
    r"|eval duration):\s+(\S{1,40})",
    re.MULTILINE,
)
_GO_PART = re.compile(r"(\d{1,9}(?:\.\d{1,12})?)(h|ms|m|s|µs|μs|us|ns)")
_GO_UNIT = {"h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "µs": 1e3, "μs": 1e3, "us": 1e3, "ns": 1}
_COMMAND = re.compile(r"ollama run (?:-\S+ )*([\w./:-]{1,200})")
# obench.sh (ollama-benchmark): rates only, one block per model.
_BENCH = re.compile(r"Running benchmark \d{1,6} times using model: *`?([^\s`]{1,200})")
_BENCH_RATE = re.compile(r"^(?:eval rate: +|\| *\d{1,6} *\| *)([\d.]{1,12}) tokens/s", re.MULTILINE)


def can_read(text: str) -> bool:
    return (
        ('"eval_duration"' in text and '"eval_count"' in text)
        or (_BENCH.search(text) is not None and _BENCH_RATE.search(text) is not None)
        or {"eval count", "eval duration"} <= {match[1] for match in _VERBOSE.finditer(text)}
    )


def read(text: str, name: str) -> Iterator[ToolReading]:
    """Finished answers; the chunks of a streamed one carry no timings and are passed over."""
    if _BENCH.search(text):
        yield from read_bench(text)
        return
    for answer in (*json_objects(text, TOOL), *verbose_answers(text)):
        if "eval_duration" in answer:
            yield read_answer(answer, PurePath(name).stem)


def read_bench(text: str) -> Iterator[ToolReading]:
    """Rates of obench.sh: what it asks has one length, which it does not print."""
    for block in re.split(r"(?=Running benchmark )", text):
        if model := _BENCH.match(block):
            # Requests in parallel share the memory: their rates are no board's.
            for rate in _BENCH_RATE.findall(block.partition("Parallel Execution")[0]):
                figures = {"decode_tps": number(rate, f"{TOOL}: eval rate")}
                yield ToolReading(ToolSubject(model[1]), figures)


def verbose_answers(text: str) -> Iterator[dict[str, Any]]:
    """What `--verbose` printed, with the API's names and nanoseconds."""
    command = _COMMAND.search(text)
    current: dict[str, Any] = {}
    for match in _VERBOSE.finditer(text):
        key, value = match[1].replace(" ", "_"), match[2]
        if key in current:
            current = {}
        current[key] = nanoseconds(value) if key.endswith("duration") else value
        if key == "eval_duration" and "eval_count" in current:
            yield {**current, "model": command[1] if command else None}
            current = {}


def nanoseconds(text: str) -> float:
    """`1m2.5s` → 62,500,000,000. Raises InputError."""
    parts = _GO_PART.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        raise InputError(f"{TOOL}: {text[:40]!r} is not a duration")
    return sum(float(number) * _GO_UNIT[unit] for number, unit in parts)


def read_answer(answer: Mapping[str, Any], name: str) -> ToolReading:
    def seconds(key: str) -> float | None:
        return number(answer[key], f"{TOOL}: {key}") * 1e-9 if answer.get(key) else None

    n_prompt = count(answer.get("prompt_eval_count", 0), f"{TOOL}: prompt_eval_count")
    n_new = n_prompt - count(answer.get("prompt_eval_cached_count", 0), f"{TOOL}: cached count")
    n_out = count(answer.get("eval_count"), f"{TOOL}: eval_count")
    prefill_s, decode_s = seconds("prompt_eval_duration"), seconds("eval_duration")
    total_s, load_s = seconds("total_duration"), seconds("load_duration")
    figures = {
        "prefill_tps": n_new / prefill_s if prefill_s and n_new > 0 else None,
        "decode_tps": n_out / decode_s if decode_s and n_out else None,
        "load_s": load_s,
        "end_to_end_s": total_s - (load_s or 0.0) if total_s and total_s > (load_s or 0) else None,
    }
    subject = ToolSubject(text_or_none(answer.get("model")) or name)
    time = text_or_none(answer.get("created_at"))
    return ToolReading(subject, figures, Sizes(n_prompt, n_out), time)
