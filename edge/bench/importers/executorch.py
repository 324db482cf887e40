"""ExecuTorch's runner statistics: `PyTorchObserver {…}` lines (pytorch/executorch,
extension/llm/runner/stats.h). Times are milliseconds of one clock.
"""

import re
from collections.abc import Iterator
from typing import Any

from boardfit.edge.bench.importers.record import Sizes, ToolReading, ToolSubject, count, number
from boardfit.edge.bench.importers.text import json_objects
from boardfit.edge.errors import InputError

TOOL = "executorch"
HINT = "the runner's PyTorchObserver lines"
MENTIONS = ("executorch", "PyTorchObserver")
_LINE = re.compile(r"PyTorchObserver\s+(\{[^\n]*\})")


def can_read(text: str) -> bool:
    return bool(_LINE.search(text)) and '"prompt_eval_end_ms"' in text


def read(text: str, name: str) -> Iterator[ToolReading]:
    """One answer a line. Raises InputError where the clock goes backwards."""
    for match in _LINE.finditer(text):
        stats = next(json_objects(match[1], TOOL), {})
        n_prompt = count(stats.get("prompt_tokens"), f"{TOOL}: prompt_tokens")
        n_gen = count(stats.get("generated_tokens"), f"{TOOL}: generated_tokens")
        prefill_s = find_span(stats, "inference_start_ms", "prompt_eval_end_ms")
        decode_s = find_span(stats, "prompt_eval_end_ms", "inference_end_ms")
        figures = {
            "prefill_tps": n_prompt / prefill_s if prefill_s and n_prompt else None,
            "decode_tps": n_gen / decode_s if decode_s and n_gen else None,
            "ttft_s": find_span(stats, "inference_start_ms", "first_token_ms"),
            "end_to_end_s": find_span(stats, "inference_start_ms", "inference_end_ms"),
            "load_s": find_span(stats, "model_load_start_ms", "model_load_end_ms"),
        }
        yield ToolReading(ToolSubject(name), figures, Sizes(n_prompt, n_gen))


def find_span(stats: dict[str, Any], start: str, end: str) -> float | None:
    """Seconds from one timestamp to another, None where one is missing."""
    if start not in stats or end not in stats:
        return None
    unit = number(stats.get("SCALING_FACTOR_UNITS_PER_SECOND", 1000), f"{TOOL}: scaling factor")
    first, last = (number(stats[name], f"{TOOL}: {name}", zero=True) for name in (start, end))
    if last < first:
        raise InputError(f"{TOOL}: its clock goes backwards from {start} to {end}")
    return (last - first) / unit or None
