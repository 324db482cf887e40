"""OpenAI's chat completions, and completions of plain text."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from boardfit.edge.serve.ask import (
    MAX_MESSAGES,
    Ask,
    Carried,
    Defaults,
    read_ask,
    read_choice,
    read_max_tokens,
    read_messages,
)
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.refused import RequestRefused, bad_field, unsupported
from boardfit.edge.serve.wire.base import (
    Writer,
    edge_facts,
    finish_word,
    sse,
    timings,
    usage,
)
from boardfit.edge.types import TokenEvent

_DONE = b"data: [DONE]\n\n"


def read_chat(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /v1/chat/completions. Raises RequestRefused."""
    messages, notes = read_messages(body.tables("messages", most=MAX_MESSAGES))
    _refuse_unsupported(body)
    if body.items("tools", most=128) and body.get("tool_choice") != "none":
        raise unsupported("tools", "calls of tools are not supported; tool_choice none is")
    form = body.table("response_format").text("type", "text")
    if form != "text":
        raise unsupported("response_format.type", f"only text is supported, not {form!r:.40}")
    max_tokens = read_max_tokens(
        body, "max_tokens", "max_completion_tokens", default=defaults.config.max_tokens
    )
    effort = body.get("reasoning_effort")
    return read_ask(
        body,
        carried,
        defaults,
        max_tokens=max_tokens,
        messages=messages,
        choice=read_choice(effort, body.scalars("chat_template_kwargs"), "reasoning_effort"),
        include_usage=body.table("stream_options").flag("include_usage", False),
        notes=(*notes, *_unheeded(body)),
    )


def read_completion(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /v1/completions: plain text to continue. Raises RequestRefused."""
    prompt: Any = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise unsupported("prompt", "one text is supported, no token ids and no batch")
    if not isinstance(prompt, str):
        raise bad_field("prompt", "a text", prompt)
    if not prompt:
        raise RequestRefused(400, "prompt: it is empty", param="prompt")
    _refuse_unsupported(body)
    for key in ("echo", "suffix"):
        if body.get(key):
            raise unsupported(key, "not supported")
    return read_ask(
        body,
        carried,
        defaults,
        max_tokens=read_max_tokens(body, "max_tokens", default=16),
        prompt=RequestFields({"prompt": prompt}).text("prompt"),
        include_usage=body.table("stream_options").flag("include_usage", False),
        notes=_unheeded(body),
    )


def _refuse_unsupported(body: RequestFields) -> None:
    """Refuse what changes an answer and cannot be done, instead of leaving it out."""
    if body.whole("n", 1, 128, 1) != 1 or body.whole("best_of", 1, 128, 1) != 1:
        raise unsupported("n", "one answer at a time is supported")
    if body.get("logprobs") not in (None, False) or body.get("top_logprobs"):
        raise unsupported("logprobs", "probabilities are not supported")
    if body.table("logit_bias"):
        raise unsupported("logit_bias", "not supported")


def _unheeded(body: RequestFields) -> tuple[str, ...]:
    keys = ("presence_penalty", "frequency_penalty")
    return tuple(f"{key} is not applied" for key in keys if body.number(key, -2, 2, 0.0))


class ChatWriter(Writer):
    """Writes `chat.completion` and its chunks."""

    def __init__(self, model: str, ask: Ask) -> None:
        super().__init__(model, ask)
        self.id = f"chatcmpl-{secrets.token_hex(12)}"

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        if ended.answer.thinking:
            message["reasoning_content"] = ended.answer.thinking
        choice = {"index": 0, "message": message, "logprobs": None,
                  "finish_reason": finish_word(ended)}  # fmt: skip
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(ended),
            "timings": timings(ended),
            "edge": edge_facts(ended),
        }

    def begin(self) -> Iterable[bytes]:
        return (self._chunk({"role": "assistant", "content": ""}),)

    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        if event.thought:
            yield self._chunk({"reasoning_content": event.thought})
        if event.text:
            yield self._chunk({"content": event.text})

    def end(self, ended: Ended) -> Iterable[bytes]:
        facts = {"timings": timings(ended), "edge": edge_facts(ended)}
        yield self._chunk({}, finish_word(ended), **({} if self.ask.include_usage else facts))
        if self.ask.include_usage:
            head = self._head("chat.completion.chunk")
            yield sse({**head, "choices": [], "usage": usage(ended), **facts})
        yield _DONE

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **facts: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**self._head("chat.completion.chunk"), "choices": [choice], **facts})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class CompletionWriter(Writer):
    """Writes `text_completion`, whole or in pieces."""

    def __init__(self, model: str, ask: Ask) -> None:
        super().__init__(model, ask)
        self.id = f"cmpl-{secrets.token_hex(12)}"

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        return {**self._body(text, finish_word(ended)), "usage": usage(ended),
                "timings": timings(ended), "edge": edge_facts(ended)}  # fmt: skip

    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        if text := event.thought + event.text:
            yield sse(self._body(text, None))

    def end(self, ended: Ended) -> Iterable[bytes]:
        facts = {"timings": timings(ended), "edge": edge_facts(ended)}
        yield sse({**self._body("", finish_word(ended)), **facts})
        if self.ask.include_usage:
            yield sse({**self._body("", None), "choices": [], "usage": usage(ended)})
        yield _DONE

    def _body(self, text: str, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {"id": self.id, "object": "text_completion", "created": self.created,
                "model": self.model, "choices": [choice]}  # fmt: skip
