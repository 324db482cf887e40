"""Ollama's chat and generate. Durations in whole nanoseconds, lines of JSON, streams unasked."""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from boardfit.edge.serve.ask import (
    MAX_MESSAGES,
    Ask,
    Carried,
    Defaults,
    make_form,
    read_budget,
    read_choice,
    read_config,
    read_messages,
    read_rank,
    read_tools,
)
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.refused import RequestRefused, bad_field, unsupported
from boardfit.edge.serve.wire.base import NDJSON, Writer, edge_facts, finish_word, line
from boardfit.edge.types import TokenEvent, ToolCall


def read_chat(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /api/chat that has messages. Raises RequestRefused."""
    messages, notes = read_messages(body.tables("messages", most=MAX_MESSAGES))
    ask = _read_rest(body, carried, defaults)
    return replace(ask, messages=messages, notes=(*notes, *ask.notes), **read_tools(body))


def read_generate(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /api/generate that has a prompt: one question, or plain text if it is `raw`."""
    for key in ("suffix", "images", "template"):
        if body.get(key):
            raise unsupported(key, "not supported")
    ask, prompt = _read_rest(body, carried, defaults), body.text("prompt")
    if body.flag("raw", False):
        return replace(ask, prompt=prompt, choice=None)
    system = body.text("system")
    head = [RequestFields({"role": "system", "content": system})] if system else []
    messages, notes = read_messages([*head, RequestFields({"role": "user", "content": prompt})])
    return replace(ask, messages=messages, notes=(*notes, *ask.notes))


def _read_rest(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    form = body.get("format")
    if form not in (None, "", "json") and not isinstance(form, dict):
        raise bad_field("format", '"json" or a schema', form)
    schema = {"type": "object"} if form == "json" else form
    options = body.table("options")
    limit = options.whole("num_predict", -2, 1 << 24, defaults.config.max_tokens)
    fixed = options.whole("num_ctx", 0, 1 << 24, 0) != 0
    # Limits of time may stand among the options: many clients pass only those through.
    limits = RequestFields({
        key: options.get(key) if body.get(key) is None else body.get(key)
        for key in ("within", "first_within", "on_miss", "class")
    })  # fmt: skip
    config = read_config(options, defaults.config, max_tokens=limit if limit > 0 else -1)
    return Ask(
        replace(config, constraint=make_form(schema, "format") if schema else None),
        body.flag("stream", True),
        budget=read_budget(limits, carried, defaults.budget),
        rank=read_rank(limits, carried),
        choice=read_choice(body.get("think"), {}, "think"),
        notes=("num_ctx is not applied: edge serve --ctx sets the context",) if fixed else (),
    )


class OllamaWriter(Writer):
    """Writes the lines of /api/chat, and of /api/generate."""

    stream_type: ClassVar[str] = NDJSON
    required = ("model", "created_at", "done", "done_reason")
    is_chat = True

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        answer = ended.answer
        return {**self._line(text, answer.thinking, answer.calls), **self._end(ended)}

    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        if event.text or event.thought or event.calls:
            yield line({**self._line(event.text, event.thought, event.calls), "done": False})

    def end(self, ended: Ended) -> Iterable[bytes]:
        yield line({**self._line("", ""), **self._end(ended)})

    def fail(self, refused: RequestRefused) -> Iterable[bytes]:
        yield line({"error": refused.message})

    def ping(self) -> Iterable[bytes]:
        return ()  # every line is read as a piece of the answer

    def _line(self, text: str, thought: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
        head = {"model": self.model, "created_at": now}
        thinking = {"thinking": thought} if thought else {}
        if self.is_chat:
            found = [{"function": {"name": c.name, "arguments": c.values}} for c in calls]
            called = {"tool_calls": found} if found else {}
            return {**head, "message": {"role": "assistant", "content": text, **thinking, **called}}
        return {**head, "response": text, **thinking}

    def _end(self, ended: Ended) -> dict[str, Any]:
        answer = ended.answer
        computed = answer.n_prompt - answer.n_reused
        prefill_s = computed / answer.prefill_tps if answer.prefill_tps else 0.0
        decode_s = answer.total_s - (answer.ttft_s or 0.0)
        return {
            "done": True,
            "done_reason": "length" if finish_word(ended) == "length" else "stop",
            "total_duration": round(answer.total_s * 1e9),
            "load_duration": 0,
            "prompt_eval_count": answer.n_prompt,
            "prompt_eval_duration": round(prefill_s * 1e9),
            "eval_count": answer.n_out,
            "eval_duration": round(decode_s * 1e9),
            "edge": edge_facts(ended),
        }


class GenerateWriter(OllamaWriter):
    is_chat = False
