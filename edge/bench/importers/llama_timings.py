"""The timings that llama.cpp's own programs print or send after an answer: llama-cli, llama-server
(its log and its JSON), llama-mtmd-cli, and forks with the same words.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any, NamedTuple

from boardfit.edge.bench.importers.record import ImportedFile, ImportedSubject, Sizes, count, number
from boardfit.edge.bench.importers.text import json_objects
from boardfit.edge.errors import InputError

TOOL = "llama.cpp"
HINT = "llama-cli without --no-perf, llama-server's log, or its JSON answers"
MENTIONS = ("llama_model_loader", "llama_context", "llama-cli", "llama-server")
NOT_MEASURED = ("time between tokens", "threads", "engine build", "machine")
_TIME = re.compile(
    r"(?P<what>prompt eval|eval|load) time\s*=\s*(?P<ms>[\d.]{1,20}) ms"
    r"(?: /\s*(?P<n>\d{1,9}) (?:tokens|runs))?"
)
# llama-cli from December 2025 prints rates only.
_RATES = re.compile(r"\[ Prompt: ([\d.]{1,12}) t/s \| Generation: ([\d.]{1,12}) t/s \]")
_MODEL = re.compile(
    r"(?:loaded meta data with .{1,80} from|loading model) '?([^\n']{1,300}?\.gguf)"
)


class TimedAnswer(NamedTuple):
    """Token counts and figures of one answer; None for what is not printed."""

    n_prompt: int = 0
    n_gen: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    load_s: float | None = None


def can_read(text: str) -> bool:
    return (
        ("eval time" in text and _TIME.search(text) is not None)
        or _RATES.search(text) is not None
        or ('"predicted_ms"' in text and '"prompt_n"' in text)
    )


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """Records for each size of question and answer; equal ones are repetitions."""
    groups: dict[Sizes, list[dict[str, float | None]]] = {}
    for n_prompt, n_gen, *rates in answers(text):
        figures = dict(zip(("prefill_tps", "decode_tps", "load_s"), rates, strict=True))
        if any(rates[:2]):
            groups.setdefault(Sizes(n_prompt, n_gen), []).append(figures)
    if not groups:
        raise InputError(f"{TOOL}: no answer with timings")
    model = _MODEL.search(text)
    path = model[1] if model else source.name
    name = PureWindowsPath(path).stem if "\\" in path else PurePath(path).stem
    subject = ImportedSubject(source, TOOL, name=name, not_measured=NOT_MEASURED)
    found = []
    for sizes, same in groups.items():
        found += subject.answers(same, sizes)
    return found


def answers(text: str) -> Iterator[TimedAnswer]:
    """Answers of the log, then those of JSON. A server logs what it also sends; one is enough."""
    current: TimedAnswer | None = None
    load_s = None
    for match in _TIME.finditer(text):
        seconds = number(match["ms"], f"{TOOL}: time", zero=True) * 1e-3
        n_tokens = int(match["n"] or 0)
        rate = n_tokens / seconds if seconds and n_tokens else None
        if match["what"] == "load":
            load_s = seconds or None
            continue
        if match["what"] == "prompt eval":
            if current:
                yield current
            # The load counts for the answer after it only.
            current, load_s = TimedAnswer(n_tokens, 0, rate, None, load_s), None
        else:
            yield (current or TimedAnswer())._replace(n_gen=n_tokens, decode_tps=rate)
            current = None
    if current:
        yield current
    for prefill, decode in _RATES.findall(text):
        rates = (number(rate, f"{TOOL}: t/s", zero=True) or None for rate in (prefill, decode))
        yield TimedAnswer(0, 0, *rates)
    if not _TIME.search(text) and '"predicted_ms"' in text:
        for entry in json_objects(text, TOOL):
            timings = entry.get("timings", entry)
            if isinstance(timings, Mapping) and "predicted_ms" in timings:
                yield from_timings(timings)


def from_timings(timings: Mapping[str, Any]) -> TimedAnswer:
    def part(name: str) -> tuple[int, float | None]:
        n_tokens = count(timings.get(f"{name}_n"), f"{TOOL}: {name}_n")
        ms = number(timings.get(f"{name}_ms"), f"{TOOL}: {name}_ms", zero=True)
        return n_tokens, n_tokens / ms * 1e3 if ms and n_tokens else None

    (n_prompt, prefill_tps), (n_gen, decode_tps) = part("prompt"), part("predicted")
    return TimedAnswer(n_prompt, n_gen, prefill_tps, decode_tps)
