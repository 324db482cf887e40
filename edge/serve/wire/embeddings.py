"""Vectors in OpenAI's form, and in Ollama's."""

import base64
import sys
from array import array
from typing import Any

from boardfit.edge.serve.ask import Carried, Defaults, read_budget
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.refused import RequestRefused, unsupported
from boardfit.edge.serve.vectors import VectorAsk, Vectors

MAX_TEXTS = 2048
_DIGITS = 8


def read_openai(body: RequestFields, carried: Carried, defaults: Defaults) -> VectorAsk:
    """A request to /v1/embeddings. Raises RequestRefused."""
    form = body.choice("encoding_format", ("float", "base64"), "float")
    ask = _read(body, carried, defaults, is_base64=form == "base64")
    if not ask.texts:
        raise RequestRefused(400, "input: it is empty", param="input")
    return ask


def read_ollama(body: RequestFields, carried: Carried, defaults: Defaults) -> VectorAsk:
    """A request to /api/embed; no text is one that only loads the model. Raises RequestRefused."""
    body.flag("truncate", False)  # nothing is: a text that is too long is refused
    return _read(body, carried, defaults)


def _read(
    body: RequestFields, carried: Carried, defaults: Defaults, *, is_base64: bool = False
) -> VectorAsk:
    value = body.get("input")
    if isinstance(value, list) and value and isinstance(value[0], (int, list)):
        raise unsupported("input", "texts become vectors here, tokens do not; send texts")
    texts = body.texts("input", most=MAX_TEXTS, longest=1 << 20)
    if isinstance(value, list) and len(texts) < len(value):
        raise RequestRefused(400, "input: one of the texts is empty", param="input")
    n_dims = body.whole("dimensions", 0, 1 << 20, 0)
    budget = read_budget(body, carried, defaults.budget)
    return VectorAsk(texts, budget, n_dims or None, is_base64)


def write_openai(model: str, ask: VectorAsk, made: Vectors) -> dict[str, Any]:
    counts = {"prompt_tokens": made.n_tokens, "total_tokens": made.n_tokens}
    data = [
        {"object": "embedding", "index": i,
         "embedding": _to_base64(row) if ask.is_base64 else _to_list(row)}
        for i, row in enumerate(made.rows)
    ]  # fmt: skip
    return {"object": "list", "data": data, "model": model, "usage": counts,
            "edge": made.to_facts()}  # fmt: skip


def write_ollama(model: str, ask: VectorAsk, made: Vectors) -> dict[str, Any]:
    return {
        "model": model,
        "embeddings": [_to_list(row) for row in made.rows],
        "total_duration": round(made.total_s * 1e9),
        "load_duration": 0,
        "prompt_eval_count": made.n_tokens,
        "edge": made.to_facts(),
    }


def _to_list(row: "array[float]") -> list[float]:
    return [round(value, _DIGITS) for value in row]


def _to_base64(row: "array[float]") -> str:
    """The row's bytes, little end first."""
    if sys.byteorder == "big":
        row = row[:]
        row.byteswap()
    return base64.b64encode(row.tobytes()).decode()
