"""A bundle's quality card in plain lines. What it holds and how it is measured: docs/quality.md."""

from collections.abc import Mapping
from typing import Any

from boardfit.edge.fields import is_finite
from boardfit.edge.units import printable

NOT_STATED = "not measured: the bundle has no quality card"


def quality_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Format a card: a line per text, the most informative first, then the task, or why there is
    none. Malformed entries of an untrusted card are left out.
    """
    card = manifest.get("quality")
    if not isinstance(card, dict):
        return [NOT_STATED]
    if "not_measured" in card:
        return [f"not measured: {printable(str(card['not_measured']))}"]
    texts = card.get("texts")
    rows = [row for row in texts if isinstance(row, dict)] if isinstance(texts, list) else []
    lines = [line for row in rows if (line := text_line(row))]
    if not lines:
        return [NOT_STATED]
    if card.get("within_bounds") is False:
        lines[0] += f"; beyond the {card.get('kld_mean_bound')} expected of this recipe, accepted"
    about = card.get("reference")
    if isinstance(about, dict) and (quantized := about.get("quantized")):
        lines.append(
            f"measured against a source that is quantized: {printable(str(quantized), 200)}"
        )
    task = card.get("task")
    if isinstance(task, dict) and (exact := _number(task, "exact")) is not None:
        lines.append(
            f"{exact:.1%} of {printable(str(task.get('n_asked')), 20)} requests answered exactly"
            f" ({printable(str(task.get('name')), 60)})"
        )
    return lines


#: How the format of calls is known.
_PROOFS = {
    "template": "proved by the chat template",
    "response_template": "as the checkpoint's response_template has it",
    "family table": "by the table of families: the chat template proves nothing",
    "generic": "unknown to the chat template: the system prompt asks for them",
}


def tool_lines(manifest: Mapping[str, Any]) -> list[str]:
    """How the model writes calls of tools, and how that is known; nothing where none was sought."""
    found = manifest.get("tools")
    if not isinstance(found, dict) or found.get("proof") not in _PROOFS:
        return []
    return [f"{printable(str(found.get('syntax')), 20)} calls, {_PROOFS[found['proof']]}"]


def tokenizer_lines(manifest: Mapping[str, Any]) -> list[str]:
    """List where the engine reads text otherwise than the source's tokenizer."""
    checks = manifest.get("checks")
    found = checks.get("vocabulary") if isinstance(checks, dict) else None
    limits = found.get("limits") if isinstance(found, dict) else None
    return [printable(str(limit), 300) for limit in limits] if isinstance(limits, list) else []


def text_line(row: Mapping[str, Any]) -> str | None:
    """The figures of one text, of a generating or an embedding model; None where one lacks."""
    cosine, least = _number(row, "cosine_mean"), _number(row, "cosine_min")
    if cosine is not None and least is not None:
        same = _number(row, "nearest_agree")
        nearest = f"; same nearest text {same:.1%}" if same is not None else ""
        return (
            f"cosine {cosine:.4g} with the source's vectors, {least:.4g} at the least{nearest}; "
            f"{printable(str(row.get('name')), 60)}, {printable(str(row.get('n_texts')), 20)} texts"
        )
    mean, error, p99 = (_number(row, k) for k in ("kld_mean", "kld_mean_stderr", "kld_p99"))
    same, ppl, source = (_number(row, k) for k in ("top1_agree", "ppl", "ppl_reference"))
    if mean is None or error is None or p99 is None or same is None or ppl is None:
        return None
    against = f" (source {source:.4g})" if source is not None else ""
    return (
        f"divergence {mean:.3g} ± {error:.1g} nats, p99 {p99:.2g}; same top token {same:.1%}; "
        f"perplexity {ppl:.4g}{against}; {printable(str(row.get('name')), 60)}, "
        f"{printable(str(row.get('n_scored')), 20)} tokens"
    )


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if value is not None and is_finite(value) else None


def note_lines(manifest: Mapping[str, Any]) -> list[str]:
    """What the build noted about the model: left out, not applied, quantized before."""
    notes = manifest["model"].get("notes")
    return [printable(str(note), 300) for note in notes] if isinstance(notes, list) else []
