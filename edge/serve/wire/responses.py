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
    read_form,
    read_max_tokens,
    read_messages,
    read_tools,
)
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.refused import RequestRefused, unsupported
from boardfit.edge.serve.wire.base import Writer, edge_facts, finish_word, openai_error, sse
from boardfit.edge.types import TokenEvent, ToolCall


def read_responses(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /v1/responses. Raises RequestRefused."""
    for key in ("previous_response_id", "conversation"):
        if body.get(key):
            raise unsupported(key, "nothing is stored here; send the whole conversation")
    form = body.table("text").table("format")
    items = [RequestFields({"role": "user", "content": body.get("input")})] if isinstance(
        body.get("input"), str
    ) else body.tables("input", most=MAX_MESSAGES)  # fmt: skip
    instructions = body.text("instructions")
    head = [RequestFields({"role": "system", "content": instructions})] if instructions else []
    found = [message for item in items if (message := _as_message(item)) is not None]
    messages, notes = read_messages([*head, *found])
    limit = defaults.config.max_tokens
    return read_ask(
        body,
        carried,
        defaults,
        max_tokens=read_max_tokens(body, "max_output_tokens", default=limit),
        messages=messages,
        form=read_form(form, schema=form),
        choice=read_choice(body.table("reasoning").get("effort"), {}, "reasoning.effort"),
        notes=notes,
        **read_tools(body),
    )


def _as_message(item: RequestFields) -> RequestFields | None:
    """An item of the input in the form of chat completions; None for what a model does not read."""
    kind = item.text("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "function": function}
        return RequestFields({"role": "assistant", "tool_calls": [call]}, item.name(""))
    if kind == "function_call_output":
        return RequestFields({
            "role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id"),
        }, item.name(""))  # fmt: skip
    if kind == "reasoning":
        return None
    if kind != "message":
        raise unsupported(item.name("type"), "only messages, calls and their outputs are read")
    return item


class ResponsesWriter(Writer):
    """Writes a `response` and its events, numbered from 0."""

    def __init__(self, model: str, ask: Ask) -> None:
        super().__init__(model, ask)
        self.id = f"resp_{secrets.token_hex(16)}"
        self._number = 0
        self._text: list[str] = []  # of the message that is open
        self._message_id = ""
        self._output: list[dict[str, Any]] = []

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        status = _status(ended)
        for call in ended.answer.calls:
            self._output.append(_call_item(call))
        if text or not self._output:
            self._message_id = f"msg_{secrets.token_hex(16)}"
            self._output.insert(0, self._message(text, status))
        return self._finished(ended)

    def _finished(self, ended: Ended) -> dict[str, Any]:
        answer, status = ended.answer, _status(ended)
        counts = {
            "input_tokens": answer.n_prompt,
            "input_tokens_details": {"cached_tokens": answer.n_reused},
            "output_tokens": answer.n_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.n_prompt + answer.n_out,
        }
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **self._response(status),
            "incomplete_details": reason,
            "output": self._output,
            "usage": counts,
            "edge": edge_facts(ended),
        }

    def begin(self) -> Iterable[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        if event.text:
            yield from self._open_message()
            self._text.append(event.text)
            yield self._part("response.output_text.delta", delta=event.text, logprobs=[])
        for call in event.calls:
            yield from self._close_message("completed")
            yield from self._write_call(call)

    def _open_message(self) -> Iterable[bytes]:
        if not self._message_id:
            self._message_id = f"msg_{secrets.token_hex(16)}"
            item = {**self._message("", "in_progress"), "content": []}
            yield self._item("response.output_item.added", item=item)
            yield self._part("response.content_part.added", part=_part(""))

    def _close_message(self, status: str) -> Iterable[bytes]:
        if not self._message_id:
            return
        text = "".join(self._text)
        yield self._part("response.output_text.done", text=text, logprobs=[])
        yield self._part("response.content_part.done", part=_part(text))
        item = self._message(text, status)
        yield self._item("response.output_item.done", item=item)
        self._output.append(item)
        self._message_id, self._text = "", []

    def _write_call(self, call: ToolCall) -> Iterable[bytes]:
        item = _call_item(call)
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._item("response.output_item.added", item=begun)
        kind, name = "response.function_call_arguments", {"item_id": item["id"]}
        yield self._item(f"{kind}.delta", delta=call.arguments, **name)
        yield self._item(f"{kind}.done", arguments=call.arguments, name=call.name, **name)
        yield self._item("response.output_item.done", item=item)
        self._output.append(item)

    def end(self, ended: Ended) -> Iterable[bytes]:
        if not self._output:
            yield from self._open_message()
        yield from self._close_message(_status(ended))
        response = self._finished(ended)
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

    def _item(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, output_index=len(self._output), **fields)

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._item(kind, item_id=self._message_id, content_index=0, **fields)

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {"type": "message", "id": self._message_id, "role": "assistant", "status": status,
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
            "parallel_tool_calls": self.ask.parallel,
            "temperature": self.ask.config.temperature,
            "top_p": self.ask.config.top_p,
            "tool_choice": self._tool_choice(),
            "tools": [
                {"type": "function", "strict": False, **tool.to_dict()["function"]}
                for tool in self.ask.tools
            ],
            "usage": None,
        }

    def _tool_choice(self) -> Any:
        choice = self.ask.tool_choice
        is_word = choice in ("auto", "none", "required")
        return choice if is_word else {"type": "function", "name": choice}


def _status(ended: Ended) -> str:
    return "incomplete" if finish_word(ended) == "length" else "completed"


def _call_item(call: ToolCall) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{secrets.token_hex(16)}", "call_id": call.id,
            "name": call.name, "arguments": call.arguments, "status": "completed"}  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
