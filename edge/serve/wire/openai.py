"""OpenAI's chat completions, and completions of plain text."""

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
from boardfit.edge.serve.wire.base import (
    Writer,
    chat_logprobs,
    edge_facts,
    finish_word,
    openai_call,
    sse,
    text_logprobs,
    timings,
    usage,
)
from boardfit.edge.types import TokenEvent

MAX_TOP = 20
_DONE = b"data: [DONE]\n\n"


def read_chat(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /v1/chat/completions. Raises RequestRefused."""
    messages, notes = read_messages(body.tables("messages", most=MAX_MESSAGES))
    _refuse_unsupported(body)
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
        form=read_form(body.table("response_format")),
        choice=read_choice(effort, body.scalars("chat_template_kwargs"), "reasoning_effort"),
        include_usage=body.table("stream_options").flag("include_usage", False),
        logprobs=_read_chat_logprobs(body),
        notes=(*notes, *_unheeded(body)),
        **read_tools(body),
    )


def read_completion(body: RequestFields, carried: Carried, defaults: Defaults) -> Ask:
    """A request to /v1/completions: plain text to continue. Raises RequestRefused."""
    text, ids = _read_prompt(body)
    _refuse_unsupported(body)
    if body.get("suffix"):
        raise unsupported("suffix", "not supported")
    n_top = body.whole("logprobs", 0, MAX_TOP, -1)
    return read_ask(
        body,
        carried,
        defaults,
        max_tokens=read_max_tokens(body, "max_tokens", default=16),
        prompt=text,
        prompt_ids=ids,
        echo=body.flag("echo", False),
        logprobs=None if n_top < 0 else n_top,
        include_usage=body.table("stream_options").flag("include_usage", False),
        notes=_unheeded(body),
    )


def _read_prompt(body: RequestFields) -> tuple[str, tuple[int, ...]]:
    """The one prompt of a completion: a text, or the ids of its tokens."""
    prompt: Any = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        if len(prompt) > 1:
            raise unsupported("prompt", "one prompt a request is supported; set the batch size 1")
        prompt = prompt[0]
    if prompt in ("", [], None):
        raise RequestRefused(400, "prompt: it is empty", param="prompt")
    if not isinstance(prompt, list):
        return RequestFields({"prompt": prompt}).text("prompt"), ()
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in prompt):
        raise RequestRefused(400, "prompt: expected a text or the ids of tokens", param="prompt")
    return "", tuple(prompt)


def _read_chat_logprobs(body: RequestFields) -> int | None:
    """How many likely tokens are wanted in each place; None where no probabilities are."""
    n_top = body.whole("top_logprobs", 0, MAX_TOP, 0)
    if body.flag("logprobs", False):
        return n_top
    if n_top:
        raise RequestRefused(400, "top_logprobs: needs logprobs true", param="top_logprobs")
    return None


def _refuse_unsupported(body: RequestFields) -> None:
    """Refuse what changes an answer and cannot be done, instead of leaving it out."""
    if body.whole("n", 1, 128, 1) != 1 or body.whole("best_of", 1, 128, 1) != 1:
        raise unsupported("n", "one answer at a time is supported")
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
        self._n_calls = 0

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        calls = [openai_call(call) for call in ended.answer.calls]
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        if ended.answer.thinking:
            message["reasoning_content"] = ended.answer.thinking
        scores = None if self.ask.logprobs is None else chat_logprobs(ended.scores)
        choice = {"index": 0, "message": message, "logprobs": scores,
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
        for call in event.calls:  # one in a chunk: some clients read no more
            yield self._chunk({"tool_calls": [{"index": self._n_calls, **openai_call(call)}]})
            self._n_calls += 1

    def end(self, ended: Ended) -> Iterable[bytes]:
        facts = {"timings": timings(ended), "edge": edge_facts(ended)}
        if self.ask.logprobs is not None:
            yield self._chunk({"content": ""}, logprobs=chat_logprobs(ended.scores))
        yield self._chunk({}, finish_word(ended), **({} if self.ask.include_usage else facts))
        if self.ask.include_usage:
            head = self._head("chat.completion.chunk")
            yield sse({**head, "choices": [], "usage": usage(ended), **facts})
        yield _DONE

    def _chunk(
        self,
        delta: dict[str, Any],
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
        **facts: Any,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head("chat.completion.chunk"), "choices": [choice], **facts})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class CompletionWriter(Writer):
    """Writes `text_completion`, whole or in pieces."""

    def __init__(self, model: str, ask: Ask) -> None:
        super().__init__(model, ask)
        self.id = f"cmpl-{secrets.token_hex(12)}"

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        echoed = self.ask.prompt if self.ask.echo else ""
        return {**self._body(echoed + text, finish_word(ended), self._logprobs(ended)),
                "usage": usage(ended), "timings": timings(ended),
                "edge": edge_facts(ended)}  # fmt: skip

    def begin(self) -> Iterable[bytes]:
        if self.ask.echo:
            yield sse(self._body(self.ask.prompt, None))

    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        if text := event.thought + event.text:
            yield sse(self._body(text, None))

    def end(self, ended: Ended) -> Iterable[bytes]:
        facts = {"timings": timings(ended), "edge": edge_facts(ended)}
        yield sse({**self._body("", finish_word(ended), self._logprobs(ended)), **facts})
        if self.ask.include_usage:
            yield sse({**self._body("", None), "choices": [], "usage": usage(ended)})
        yield _DONE

    def _logprobs(self, ended: Ended) -> dict[str, Any] | None:
        if self.ask.logprobs is None:
            return None
        return text_logprobs(ended.scores, 0 if self.ask.echo else len(self.ask.prompt))

    def _body(
        self, text: str, finish: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {"id": self.id, "object": "text_completion", "created": self.created,
                "model": self.model, "choices": [choice]}  # fmt: skip
