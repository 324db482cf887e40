"""OpenAI's Responses, without a memory of earlier ones."""

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
    read_tools,
)
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.refused import RequestRefused, unsupported
from boardfit.edge.serve.wire.base import Writer, edge_facts, finish_word, openai_error, sse
from boardfit.edge.types import TokenEvent


def read_responses(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /v1/responses. Raises RequestRefused."""
    for key in ("previous_response_id", "conversation"):
        if body.get(key):
            raise unsupported(key, "nothing is stored here; send the whole conversation")
    form = body.table("text").table("format").text("type", "text")
    if form != "text":
        raise unsupported("text.format.type", f"only text is supported, not {form!r:.40}")
    items = [RequestFields({"role": "user", "content": body.get("input")})] if isinstance(
        body.get("input"), str
    ) else body.tables("input", most=MAX_MESSAGES)  # fmt: skip
    for item in items:
        if item.text("type", "message") != "message":
            raise unsupported(item.name("type"), "only messages are supported")
    instructions = body.text("instructions")
    head = [RequestFields({"role": "system", "content": instructions})] if instructions else []
    messages, notes = read_messages([*head, *items])
    notes = (*notes, *read_tools(body))
    limit = defaults.config.max_tokens
    return read_ask(
        body,
        carried,
        defaults,
        max_tokens=read_max_tokens(body, "max_output_tokens", default=limit),
        messages=messages,
        choice=read_choice(body.table("reasoning").get("effort"), {}, "reasoning.effort"),
        notes=notes,
    )


class ResponsesWriter(Writer):
    """Writes a `response` and its events, numbered from 0."""

    def __init__(self, model: str, ask: Ask) -> None:
        super().__init__(model, ask)
        self.id = f"resp_{secrets.token_hex(16)}"
        self.item_id = f"msg_{secrets.token_hex(16)}"
        self._number = 0
        self._text: list[str] = []

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        answer = ended.answer
        is_cut = finish_word(ended) == "length"
        counts = {
            "input_tokens": answer.n_prompt,
            "input_tokens_details": {"cached_tokens": answer.n_reused},
            "output_tokens": answer.n_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.n_prompt + answer.n_out,
        }
        return {
            **self._response("incomplete" if is_cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self._message(text, "incomplete" if is_cut else "completed")],
            "usage": counts,
            "edge": edge_facts(ended),
        }

    def begin(self) -> Iterable[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        item = {**self._message("", "in_progress"), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._part("response.content_part.added", part=_part(""))

    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        if event.text:
            self._text.append(event.text)
            yield self._part("response.output_text.delta", delta=event.text, logprobs=[])

    def end(self, ended: Ended) -> Iterable[bytes]:
        text = "".join(self._text)
        response = self.whole(text, ended)
        yield self._part("response.output_text.done", text=text, logprobs=[])
        yield self._part("response.content_part.done", part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, refused: RequestRefused) -> Iterable[bytes]:
        error = openai_error(refused)["error"]
        failed = {**self._response("failed"), "error": {
            "code": refused.code or "server_error", "message": error["message"]}}  # fmt: skip
        yield self._event("response.failed", response=failed)

    def ping(self) -> Iterable[bytes]:
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return sse(event, kind)

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self.item_id, output_index=0, content_index=0, **fields)

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {"type": "message", "id": self.item_id, "role": "assistant", "status": status,
                "content": [_part(text)]}  # fmt: skip

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "output": [],
            "parallel_tool_calls": False,
            "temperature": self.ask.config.temperature,
            "top_p": self.ask.config.top_p,
            "tool_choice": "none",
            "tools": [],
            "usage": None,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
