"""ExecuTorch's runner statistics: `PyTorchObserver {…}` lines (pytorch/executorch,
extension/llm/runner/stats.h). Times are milliseconds of one clock.
"""

import re
from itertools import pairwise
from typing import Any

from boardfit.edge.bench.importers.record import ImportedFile, ImportedSubject, Sizes, count, number
from boardfit.edge.bench.importers.text import json_objects
from boardfit.edge.errors import InputError

TOOL = "executorch"
HINT = "the runner's PyTorchObserver lines"
MENTIONS = ("executorch", "PyTorchObserver")
NOT_MEASURED = ("time between tokens", "model name", "threads", "engine build", "machine")
_LINE = re.compile(r"PyTorchObserver\s+(\{[^\n]*\})")
_ORDER = ("inference_start_ms", "prompt_eval_end_ms", "inference_end_ms")


def can_read(text: str) -> bool:
    return bool(_LINE.search(text)) and '"prompt_eval_end_ms"' in text


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """One end-to-end record per size of prompt and answer, and the loads."""
    groups: dict[Sizes, list[dict[str, float | None]]] = {}
    loads = []
    for match in _LINE.finditer(text):
        stats = next(json_objects(match[1], TOOL), {})
        n_prompt, n_gen = (
            count(stats.get(name), f"{TOOL}: {name}")
            for name in ("prompt_tokens", "generated_tokens")
        )
        groups.setdefault(Sizes(n_prompt, n_gen), []).append(figures(stats, n_prompt, n_gen))
        if load_s := span(stats, "model_load_start_ms", "model_load_end_ms"):
            loads.append({"load_s": load_s})
    subject = ImportedSubject(source, TOOL, name=source.name, not_measured=NOT_MEASURED)
    found = [subject.record("end-to-end", repeats, sizes) for sizes, repeats in groups.items()]
    return [*found, subject.record("load", loads)] if loads else found


def figures(stats: dict[str, Any], n_prompt: int, n_gen: int) -> dict[str, float | None]:
    """Raises InputError where the clock goes backwards."""
    times = [number(stats.get(name), f"{TOOL}: {name}", zero=True) for name in _ORDER]
    if any(after < before for before, after in pairwise(times)):
        raise InputError(f"{TOOL}: its clock goes backwards ({', '.join(_ORDER)})")
    prefill_s = span(stats, "inference_start_ms", "prompt_eval_end_ms")
    decode_s = span(stats, "prompt_eval_end_ms", "inference_end_ms")
    return {
        "prefill_tps": n_prompt / prefill_s if prefill_s and n_prompt else None,
        "decode_tps": n_gen / decode_s if decode_s and n_gen else None,
        "ttft_s": span(stats, "inference_start_ms", "first_token_ms"),
        "end_to_end_s": span(stats, "inference_start_ms", "inference_end_ms"),
    }


def span(stats: dict[str, Any], start: str, end: str) -> float | None:
    """Seconds from one timestamp to another, None where one is missing."""
    if start not in stats or end not in stats:
        return None
    unit = number(stats.get("SCALING_FACTOR_UNITS_PER_SECOND", 1000), f"{TOOL}: scaling factor")
    first, last = (number(stats[name], f"{TOOL}: {name}", zero=True) for name in (start, end))
    if last < first:
        raise InputError(f"{TOOL}: its clock goes backwards from {start} to {end}")
    return (last - first) / unit or None
