"""Answers of Ollama's API with their timings (docs.ollama.com/api/usage): one JSON object, a list,
or one object per line, as a streamed answer is.

Ollama divides `eval_count` tokens by `eval_duration`; ours counts the gaps, one less. The imported
rate is Ollama's own.
"""

from __future__ import annotations

from typing import Any

from boardfit.edge.bench.importers.record import (
    ImportedFile,
    ImportedSubject,
    count,
    make_record,
    number,
    parse_json,
    text_or_none,
)
from boardfit.edge.errors import InputError

TOOL = "ollama"
NOT_MEASURED = ("time to first token", "time between tokens", "threads", "engine build", "machine")


def can_read(text: str) -> bool:
    return text.lstrip()[:1] in ("[", "{") and '"eval_duration"' in text and '"eval_count"' in text


def answers(text: str) -> list[dict[str, Any]]:
    """Finished answers; the chunks of a streamed one carry no timings and are passed over."""
    stripped = text.lstrip()
    if stripped.startswith("["):
        found = parse_json(text, TOOL)
    else:
        try:
            found = [parse_json(text, TOOL)]
        except InputError:
            found = [parse_json(line, TOOL) for line in text.splitlines() if line.strip()]
    done = [a for a in found if isinstance(a, dict) and "eval_duration" in a]
    if not done:
        raise InputError(f"{TOOL}: no finished answer with timings")
    return done


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """One record per model and size of question and answer; equal ones are repetitions."""
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for answer in answers(text):
        key = (
            text_or_none(answer.get("model")) or "unknown",
            count(answer.get("prompt_eval_count", 0), f"{TOOL}: prompt_eval_count"),
            count(answer.get("eval_count"), f"{TOOL}: eval_count"),
        )
        groups.setdefault(key, []).append(answer)
    return [
        make_record(
            ImportedSubject(tool=TOOL, name=model, not_measured=NOT_MEASURED),
            source,
            "end-to-end",
            [figures(answer) for answer in found],
            n_prompt=n_prompt,
            n_gen=n_gen,
            time=text_or_none(found[-1].get("created_at")),
        )
        for (model, n_prompt, n_gen), found in groups.items()
    ]


def figures(answer: dict[str, Any]) -> dict[str, float | None]:
    def seconds(key: str) -> float | None:
        if not answer.get(key):
            return None
        return number(answer[key], f"{TOOL}: {key}") * 1e-9

    n_prompt = count(answer.get("prompt_eval_count", 0), f"{TOOL}: prompt_eval_count")
    n_new = n_prompt - count(answer.get("prompt_eval_cached_count", 0), f"{TOOL}: cached count")
    n_out = count(answer.get("eval_count"), f"{TOOL}: eval_count")
    prefill_s, decode_s = seconds("prompt_eval_duration"), seconds("eval_duration")
    total_s, load_s = seconds("total_duration"), seconds("load_duration")
    return {
        "prefill_tps": n_new / prefill_s if prefill_s and n_new > 0 else None,
        "decode_tps": n_out / decode_s if decode_s and n_out else None,
        "load_s": load_s,
        "end_to_end_s": total_s - (load_s or 0.0) if total_s and total_s > (load_s or 0) else None,
    }
