"""The timings that llama.cpp's own programs print or send after an answer: llama-cli, llama-server
(its log and its JSON), llama-mtmd-cli, and forks with the same words.
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
    file_name,
    number,
)
from boardfit.edge.bench.importers.text import json_objects

TOOL = "llama.cpp"
HINT = "llama-cli without --no-perf, llama-server's log, or its JSON answers"
MENTIONS = ("llama_model_loader", "llama_context", "llama-cli", "llama-server")
_TIME = re.compile(
    r"(?P<what>prompt eval|eval|load) time\s*=\s*(?P<ms>[\d.]{1,20}) ms"
    r"(?: /\s*(?P<n>\d{1,9}) (?:tokens|runs))?"
)
# llama-cli from December 2025 prints rates only.
_RATES = re.compile(r"\[ Prompt: ([\d.]{1,12}) t/s \| Generation: ([\d.]{1,12}) t/s \]")
_MODEL = re.compile(
    r"(?:loaded meta data with .{1,80} from|loading model) '?([^\n']{1,300}?\.gguf)"
)


def can_read(text: str) -> bool:
    return (
        ("eval time" in text and _TIME.search(text) is not None)
        or _RATES.search(text) is not None
        or ('"predicted_ms"' in text and '"prompt_n"' in text)
    )


def read(text: str, name: str) -> Iterator[ToolReading]:
    """Answers of the log, then those of JSON. A server logs what it also sends; one is enough."""
    model = _MODEL.search(text)
    subject = ToolSubject(PurePath(file_name(model[1] if model else name)).stem)
    n_prompt = 0
    for match in _TIME.finditer(text):
        what, n_tokens = match["what"], int(match["n"] or 0)
        seconds = number(match["ms"], f"{TOOL}: time", zero=True) * 1e-3
        rate = n_tokens / seconds if seconds and n_tokens else None
        if what == "load":
            yield ToolReading(subject, {"load_s": seconds or None})
        elif what == "prompt eval":
            n_prompt = n_tokens
            yield ToolReading(subject, {"prefill_tps": rate}, Sizes(n_prompt))
        else:
            yield ToolReading(subject, {"decode_tps": rate}, Sizes(n_prompt, n_tokens))
    for rates in _RATES.findall(text):
        prefill, decode = (number(rate, f"{TOOL}: t/s", zero=True) or None for rate in rates)
        yield ToolReading(subject, {"prefill_tps": prefill, "decode_tps": decode})
    for entry in json_objects(text, TOOL) if '"predicted_ms"' in text else ():
        timings = entry.get("timings", entry)
        if isinstance(timings, Mapping) and "predicted_ms" in timings and not _TIME.search(text):
            yield read_timings(timings, subject)


def read_timings(timings: Mapping[str, Any], subject: ToolSubject) -> ToolReading:
    def part(name: str) -> tuple[int, float | None]:
        n_tokens = count(timings.get(f"{name}_n"), f"{TOOL}: {name}_n")
        ms = number(timings.get(f"{name}_ms"), f"{TOOL}: {name}_ms", zero=True)
        return n_tokens, n_tokens / ms * 1e3 if ms and n_tokens else None

    (n_prompt, prefill_tps), (n_gen, decode_tps) = part("prompt"), part("predicted")
    figures = {"prefill_tps": prefill_tps, "decode_tps": decode_tps}
    return ToolReading(subject, figures, Sizes(n_prompt, n_gen))
