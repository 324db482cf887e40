"""llama-server's own calls about tokens, settings and slots, and vLLM's names for the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boardfit.edge.engines.base import EngineBase
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.refused import RequestRefused, bad_field
from boardfit.edge.types import GenerationConfig

if TYPE_CHECKING:
    from boardfit.edge.engines.target import OpenModel

_MAX_TOKENS = 1 << 20


@dataclass(frozen=True)
class TokenizeAsk:
    """A text to cut into tokens: whether special tokens are added and read, and pieces shown."""

    text: str
    is_added: bool
    is_special: bool
    has_pieces: bool = False


def read_tokenize(body: RequestFields) -> TokenizeAsk:
    """A request to /tokenize, in llama-server's form (`content`) or vLLM's (`prompt`)."""
    if body.get("content") is None and body.get("prompt") is None:
        raise RequestRefused(400, "content: it is missing, and so is prompt", param="content")
    is_vllm = body.get("content") is None
    return TokenizeAsk(
        body.text("content") or body.text("prompt"),
        body.flag("add_special", body.flag("add_special_tokens", is_vllm)),
        body.flag("parse_special", True),
        body.flag("with_pieces", False),
    )


def tokenize(ask: TokenizeAsk, opened: OpenModel) -> dict[str, Any]:
    engine = open_vocabulary(opened)
    tokens = engine.tokenize(ask.text, special=ask.is_special)
    if ask.is_added:
        tokens = engine.vocabulary.with_bos(tokens)
    shown: list[Any] = list(tokens)
    if ask.has_pieces:
        shown = [{"id": token, "piece": _show(engine.piece(token))} for token in tokens]
    return {"tokens": shown, "count": len(tokens), "max_model_len": engine.n_ctx}


def _show(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are no whole characters."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def read_detokenize(body: RequestFields) -> tuple[int, ...]:
    """A request to /detokenize: the ids of its tokens."""
    tokens = body.items("tokens", most=_MAX_TOKENS)
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
        raise bad_field("tokens", "an array of whole numbers from 0", tokens)
    return tuple(tokens)


def detokenize(tokens: tuple[int, ...], opened: OpenModel) -> dict[str, Any]:
    text = open_vocabulary(opened).detokenize(tokens)
    return {"content": text, "prompt": text}


def open_vocabulary(opened: OpenModel) -> EngineBase[Any]:
    """The engine, for its vocabulary. Raises RequestRefused for an embedding model."""
    if not isinstance(opened.engine, EngineBase):
        raise RequestRefused(400, "this is an embedding model; POST /v1/embeddings makes vectors")
    return opened.engine


def describe_tokenizer(opened: OpenModel) -> dict[str, Any]:
    """What lm-eval asks before it leaves the cutting into tokens to a server."""
    vocabulary = open_vocabulary(opened).vocabulary
    return {
        "bos_token": vocabulary.bos_text or None,
        "eos_token": vocabulary.eos_text or None,
        "pad_token": None,
        "chat_template": vocabulary.template or "",
    }


def describe_slots(opened: OpenModel, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The answers that can be computed at once. No prompt, no answer."""
    n_running = counts["running"]
    n_slots = int(opened.engine.describe().details.get("n_slots", 1))
    return [
        {"id": i, "n_ctx": opened.engine.n_ctx, "speculative": False,
         "is_processing": i < n_running}
        for i in range(max(n_slots, n_running))
    ]  # fmt: skip


def describe_props(
    opened: OpenModel, config: GenerationConfig, slots: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a client of llama-server sizes its prompts and its buttons by."""
    params = {
        "n_predict": config.max_tokens, "temperature": config.temperature, "top_k": config.top_k,
        "top_p": config.top_p, "min_p": config.min_p, "repeat_penalty": config.repeat_penalty,
        "seed": config.seed,
    }  # fmt: skip
    info, engine = opened.engine.describe(), opened.engine
    told = describe_tokenizer(opened) if isinstance(engine, EngineBase) else {}
    return {
        "default_generation_settings": {"n_ctx": engine.n_ctx, "params": params},
        "total_slots": len(slots),
        "model_alias": opened.name,
        "model_path": opened.model.name,
        "model_ftype": info.quant,
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": told.get("chat_template", ""),
        "bos_token": told.get("bos_token") or "",
        "eos_token": told.get("eos_token") or "",
        "build_info": f"boardfit, {info.name} {info.version}",
        "is_sleeping": False,
    }
