"""What every wire has: a reader of requests, and a writer of one answer."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from boardfit.edge.serve.ask import Ask
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.refused import RequestRefused
from boardfit.edge.serve.scoring import Likely, Score
from boardfit.edge.types import TokenEvent, ToolCall

SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"


class Writer(ABC):
    """Writes one answer: as a whole, or piece by piece."""

    stream_type: ClassVar[str] = SSE
    #: Fields of every whole answer.
    required: ClassVar[tuple[str, ...]] = ("id", "object", "model", "edge")

    def __init__(self, model: str, ask: Ask) -> None:
        """`model` is the name that the answer carries."""
        self.model, self.ask = model, ask
        self.created = int(time.time())
        self.last: TokenEvent | None = None  # the newest token, the last of which ended the answer

    @abstractmethod
    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        """The answer of a request that does not stream."""

    def begin(self) -> Iterable[bytes]:
        """What comes before the first word."""
        return ()

    @abstractmethod
    def piece(self, event: TokenEvent) -> Iterable[bytes]:
        """One token's text or thought."""

    @abstractmethod
    def end(self, ended: Ended) -> Iterable[bytes]:
        """What comes after the last word."""

    def fail(self, refused: RequestRefused) -> Iterable[bytes]:
        """An error after the first byte."""
        return (sse(openai_error(refused)),)

    def ping(self) -> Iterable[bytes]:
        """What keeps a silent stream alive."""
        return (b": still here\n\n",)


def dump(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def sse(value: Mapping[str, Any], event: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + dump(value) + b"\n\n"


def line(value: Mapping[str, Any]) -> bytes:
    """One line of NDJSON."""
    return dump(value) + b"\n"


def openai_error(refused: RequestRefused) -> dict[str, Any]:
    """An error in OpenAI's form, with what we know of time beside it."""
    error = {"message": refused.message, "type": refused.kind, "param": refused.param,
             "code": refused.code}  # fmt: skip
    return {"error": error, **({"edge": refused.details} if refused.details else {})}


def openai_call(call: ToolCall) -> dict[str, Any]:
    """A call in the form of chat completions."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def chat_logprobs(scores: Iterable[Score]) -> dict[str, Any]:
    """Probabilities in the form of chat completions."""
    return {
        "content": [
            {**_likely(score), "top_logprobs": [_likely(each) for each in score.top]}
            for score in scores
        ],
        "refusal": None,
    }


def _likely(one: Likely) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.piece)}


def text_logprobs(scores: Sequence[Score], offset: int = 0) -> dict[str, Any]:
    """Probabilities in the form of completions; `offset` is where the first token begins."""
    found: dict[str, Any] = {key: [] for key in ("tokens", "token_logprobs", "top_logprobs")}
    offsets = []
    for score in scores:
        found["tokens"].append(score.text)
        found["token_logprobs"].append(score.logprob)
        # Of tokens with one text the likelier stays.
        ranked = sorted((score, *score.top), key=lambda each: each.logprob or 0.0)
        top = {each.text: each.logprob for each in ranked}
        found["top_logprobs"].append(None if score.logprob is None else top)
        offsets.append(offset)
        offset += len(score.piece.decode("utf-8", "ignore"))
    return {**found, "text_offset": offsets}


def finish_word(ended: Ended) -> str:
    """OpenAI's word for how an answer ended: by itself, or cut by a limit of length or time."""
    if ended.answer.calls and ended.answer.finish_reason == "stop":
        return "tool_calls"
    return "stop" if ended.answer.finish_reason == "stop" else "length"


def usage(ended: Ended) -> dict[str, Any]:
    """Counts of tokens, by OpenAI's names."""
    answer = ended.answer
    return {
        "prompt_tokens": answer.n_prompt,
        "completion_tokens": answer.n_out,
        "total_tokens": answer.n_prompt + answer.n_out,
        "prompt_tokens_details": {"cached_tokens": answer.n_reused},
    }


def timings(ended: Ended) -> dict[str, Any]:
    """Speeds by llama-server's names, which clients know."""
    answer = ended.answer
    computed = answer.n_prompt - answer.n_reused
    return {
        "cache_n": answer.n_reused,
        "prompt_n": computed,
        "prompt_ms": 1000 * computed / answer.prefill_tps if answer.prefill_tps else None,
        "prompt_per_second": answer.prefill_tps,
        "predicted_n": answer.n_out,
        "predicted_ms": 1000 * (answer.total_s - (answer.ttft_s or 0.0)),
        "predicted_per_second": answer.decode_tps,
    }


def edge_facts(ended: Ended) -> dict[str, Any]:
    """What we know of an answer beyond the wire: its time, its budget, and what was changed."""
    answer, outcome = ended.answer, ended.outcome
    facts: dict[str, Any] = {
        "finish": answer.finish_reason,
        "total_s": answer.total_s,
        "first_s": answer.ttft_s,
        "queue_s": ended.queue_s,
        "cached_n": answer.n_reused,
    }
    if (lost := ended.lost) is not None:
        cost_s = lost.n / answer.prefill_tps if answer.prefill_tps else None
        facts["prefix_lost"] = {
            "at_token": lost.at_token, "n": lost.n, "text_class": lost.kind, "cost_s": cost_s,
        }  # fmt: skip
    notes = list(ended.notes)
    if answer.n_dropped:
        notes.append(f"{answer.n_dropped} old messages left the context")
    if outcome is not None:
        notes += outcome.notes
        facts |= {
            "met": outcome.met,
            "within_s": outcome.within_s,
            "first_within_s": outcome.first_within_s,
            "adjustments": [str(adjustment) for adjustment in outcome.adjustments],
            "shortened": outcome.shortened,
            "whole_sentence": outcome.whole_sentence,
            "predicted_prefill_s": list(outcome.predicted_prefill_s),
        }
    return facts | ({"notes": notes} if notes else {})
