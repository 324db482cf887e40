"""Anthropic's Messages: blocks instead of messages, and a stream of numbered blocks."""

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from boardfit.edge.serve.ask import (
    MAX_MESSAGES,
    MAX_STOP_CHARS,
    MAX_STOPS,
    Ask,
    Carried,
    Defaults,
    read_ask,
    read_choice,
    read_content,
    read_form,
    read_max_tokens,
    read_messages,
    read_tools,
)
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.refused import RequestRefused, bad_field, unsupported
from boardfit.edge.serve.wire.base import Writer, dump, edge_facts, finish_word, sse
from boardfit.edge.types import TokenEvent, ToolCall

#: Claude Code writes a new one at each turn, at the head of its system prompt. It is no text for a
#: model, and nothing behind it would ever be reused.
_BILLING = re.compile(r"x-anthropic-billing-header:(?:\s*\w+=[^;\n]{0,200};)*\s*")
_KINDS = {413: "request_too_large", 422: "invalid_request_error", 500: "api_error",
          503: "overloaded_error"}  # fmt: skip


def read_request(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /v1/messages. Raises RequestRefused."""
    items = [part for item in body.tables("messages", most=MAX_MESSAGES) for part in _read(item)]
    messages, notes = read_messages([*_read_system(body), *items])
    thinking = body.table("thinking")
    kind = thinking.choice("type", ("enabled", "adaptive", "disabled"), "")
    if thinking.whole("budget_tokens", 0, 1 << 24, 0):
        notes += ("thinking.budget_tokens is not applied: max_tokens and the time limit are",)
    form = body.table("output_config").table("format")
    ask = read_ask(
        body,
        carried,
        defaults,
        max_tokens=read_max_tokens(body, "max_tokens", default=defaults.config.max_tokens),
        messages=messages,
        form=read_form(form, schema=form),
        choice=read_choice(kind != "disabled" if kind else None, {}, "thinking.type"),
        notes=notes,
        **read_tools(_read_tools(body)),
    )
    stops = body.texts("stop_sequences", most=MAX_STOPS, longest=MAX_STOP_CHARS)
    return replace(ask, config=replace(ask.config, stop=stops)) if stops else ask


def _read_system(body: RequestFields) -> list[RequestFields]:
    text = _BILLING.sub("", read_content(body, "system"), count=1)
    return [RequestFields({"role": "system", "content": text})] if text else []


def _read(item: RequestFields) -> Iterator[RequestFields]:
    """One message as OpenAI's wires have it: results of tools first, then words and calls."""
    role = item.text("role")
    if not isinstance(item.get("content"), list):
        yield RequestFields({"role": role, "content": item.text("content")})
        return
    texts, calls = list[str](), list[dict[str, Any]]()
    for block in item.tables("content", most=MAX_MESSAGES):
        kind = block.text("type")
        if kind == "text":
            texts.append(block.text("text"))
        elif kind == "tool_use":
            call = {"name": block.text("name"), "arguments": _to_text(block, "input")}
            calls.append({"id": block.text("id"), "type": "function", "function": call})
        elif kind == "tool_result":
            result = {"tool_call_id": block.text("tool_use_id"), "content": read_content(block)}
            yield RequestFields({"role": "tool", **result}, item.name(""))
        elif kind not in ("thinking", "redacted_thinking"):  # thoughts of before are no text
            raise unsupported(block.name("type"), "only text and tools can be read")
    if texts or calls:
        words = {"role": role, "content": "\n".join(texts)}
        yield RequestFields({**words, "tool_calls": calls} if calls else words, item.name(""))


def _to_text(block: RequestFields, key: str) -> str:
    value = block.get(key)
    if not isinstance(value, dict):
        raise bad_field(block.name(key), "an object", value)
    return dump(value).decode()


def _read_tools(body: RequestFields) -> RequestFields:
    """The tools and the choice of one, as OpenAI's wires have them."""
    tools = [
        {"type": "function", "function": {
            "name": tool.text("name"), "description": tool.text("description"),
            "parameters": tool.get("input_schema")}}
        for tool in body.tables("tools", most=128)
        if tool.get("type") in (None, "custom")  # others are run by Anthropic's own servers
    ]  # fmt: skip
    choice = body.table("tool_choice")
    kind = choice.choice("type", ("auto", "any", "tool", "none"), "auto")
    named = {"type": "function", "function": {"name": choice.text("name")}}
    words: dict[str, Any] = {"any": "required", "tool": named}
    is_one = choice.flag("disable_parallel_tool_use", False)
    return RequestFields({
        "tools": tools, "tool_choice": words.get(kind, kind), "parallel_tool_calls": not is_one,
    })  # fmt: skip


def write_error(refused: RequestRefused) -> dict[str, Any]:
    """An error in Anthropic's form, with what we know of time beside it."""
    kind = _KINDS.get(refused.status, refused.kind)
    error = {"type": "error", "error": {"type": kind, "message": refused.message}}
    return {**error, **({"edge": refused.details} if refused.details else {})}


class MessagesWriter(Writer):
    """Writes a `message`, or its events. A block of thoughts or of text begins where its first
    word comes.
    """

    required = ("id", "type", "role", "content", "model", "stop_reason", "usage", "edge")

    def __init__(self, model: str, ask: Ask) -> None:
        super().__init__(model, ask)
        self.id = f"msg_{secrets.token_hex(12)}"
        self._kind, self._n_blocks = "", 0

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        blocks = [_block("thinking", ended.answer.thinking), _block("text", text)]
        return {
            **self._message(
                [
                    *(block for block in blocks if block[block["type"]]),
                    *(_call_block(call, call.values) for call in ended.answer.calls),
                ],
                ended,
            ),
            "edge": edge_facts(ended),
        }

    def begin(self) -> Iterable[bytes]:
        return (_event("message_start", message=self._message([], None)),)

    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        for kind, words in (("thinking", event.thought), ("text", event.text)):
            if words:
                yield from self._open(kind)
                yield self._part("delta", delta={"type": f"{kind}_delta", kind: words})
        for call in event.calls:
            yield from self._close()
            self._kind = "tool_use"
            yield self._part("start", content_block=_call_block(call, {}))
            part = {"type": "input_json_delta", "partial_json": call.arguments}
            yield self._part("delta", delta=part)
            yield from self._close()

    def end(self, ended: Ended) -> Iterable[bytes]:
        yield from self._close()
        delta = {key: self._message([], ended)[key] for key in ("stop_reason", "stop_sequence")}
        yield _event("message_delta", delta=delta, usage=_usage(ended), edge=edge_facts(ended))
        yield _event("message_stop")

    def fail(self, refused: RequestRefused) -> Iterable[bytes]:
        return (sse(write_error(refused), "error"),)

    def ping(self) -> Iterable[bytes]:
        return (_event("ping"),)  # a comment resets no clock of Claude Code

    def _open(self, kind: str) -> Iterable[bytes]:
        if kind != self._kind:
            yield from self._close()
            self._kind = kind
            yield self._part("start", content_block=_block(kind, ""))

    def _close(self) -> Iterable[bytes]:
        if self._kind:
            yield self._part("stop")
            self._kind, self._n_blocks = "", self._n_blocks + 1

    def _part(self, kind: str, **fields: Any) -> bytes:
        return _event(f"content_block_{kind}", index=self._n_blocks, **fields)

    def _message(self, content: list[dict[str, Any]], ended: Ended | None) -> dict[str, Any]:
        reason, text = (None, None) if ended is None else self._find_end(ended)
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model,
                "content": content, "stop_reason": reason, "stop_sequence": text,
                "usage": _usage(ended)}  # fmt: skip

    def _find_end(self, ended: Ended) -> tuple[str, str | None]:
        """Why it ended, and the stop text that ended it, where there was but one to look for."""
        if finish_word(ended) == "length":
            return "max_tokens", None
        if ended.answer.calls:
            return "tool_use", None
        stops, last = self.ask.config.stop, self.last
        if last is None or last.token_id is None or not stops:  # the model's own end is no token
            return "end_turn", None
        return "stop_sequence", stops[0] if len(stops) == 1 else None


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def _block(kind: str, words: str) -> dict[str, Any]:
    rest = {"signature": ""} if kind == "thinking" else {}
    return {"type": kind, kind: words, **rest}


def _call_block(call: ToolCall, values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": values}


def _usage(ended: Ended | None) -> dict[str, int]:
    """Counts of tokens; those of the prompt are known at the end of a stream."""
    n_prompt, n_reused, n_out = 0, 0, 0
    if ended is not None:
        n_prompt, n_reused, n_out = ended.answer.n_prompt, ended.answer.n_reused, ended.answer.n_out
    return {"input_tokens": n_prompt - n_reused, "cache_read_input_tokens": n_reused,
            "cache_creation_input_tokens": 0, "output_tokens": n_out}  # fmt: skip
