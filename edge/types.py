"""The values that cross rooms: frozen dataclasses that validate themselves, imported by all.

Times are monotonic nanoseconds (`t_ns`), sizes are bytes, `None` means not measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.fields import (
    MAX_BYTES,
    MAX_INT,
    AnyObject,
    Flag,
    ListOf,
    OneOf,
    OrNull,
    Real,
    Schema,
    TableOf,
    Text,
    Whole,
    Word,
    check_fields,
)

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "context", "aborted", "deadline"]
Thinking = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for. `arguments` is the JSON text of an object."""

    name: str
    arguments: str
    id: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The arguments as Python values."""
        values: dict[str, Any] = json.loads(self.arguments)
        return values


@dataclass(frozen=True)
class Message:
    """A turn. An assistant's may hold `calls`; a tool's is the result of call `call_id`."""

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            known = ", ".join(get_args(Role))
            raise InputError(f"unknown role {self.role!r}; known: {known}")

    def to_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content}


def drop_oldest_turn(messages: Sequence[Message] | None) -> tuple[Message, ...] | None:
    """`messages` without what comes before the second user message; None if there is none."""
    for i, message in enumerate(messages or ()):
        if i and message.role == "user":
            return tuple((messages or ())[i:])
    return None


@dataclass(frozen=True)
class TemplateChoice:
    """How a chat template is rendered: whether the model thinks first, and variables of its own."""

    thinking: Thinking = "auto"
    variables: Mapping[str, Any] = field(default_factory=dict)
    tools: ToolShaper | None = None


class ToolShaper(Protocol):
    """Gives a template the tools of a conversation, and its calls and results, as it takes them.
    Its `repr` names everything that a prompt depends on.
    """

    def list_tools(self, cut: Callable[[str], str]) -> Mapping[str, Any]:
        """Template variables that list the tools; `cut` goes over every text of them."""

    def shape(
        self, messages: Sequence[Message], cut: Callable[[str, bool], str]
    ) -> list[dict[str, Any]]:
        """The messages as the template takes them; `cut` gets a text, and whether the model wrote
        it.
        """


@dataclass(frozen=True)
class Constraint:
    """What an answer must be: JSON by a schema (`text` is its JSON), a text that a regular
    expression matches, one of some texts (a JSON list), or what a Lark grammar of ours writes.

    Everything up to `after` is free, and so are thoughts, from the first to the second of
    `thoughts`, when the answer begins with them. Engines raise UsageError for a text that they
    cannot enforce.
    """

    kind: Literal["json_schema", "regex", "choice", "lark"]
    text: str
    after: str = ""
    thoughts: tuple[str, str] | None = None


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens are chosen and when to stop. `temperature` 0 is greedy; -1 for `max_tokens` means
    up to the end of the context. `ignore_eos` serves benchmarks.

    `pressure`, asked before each token, is how urgently the answer should end: towards 1 tokens
    that end a sentence or the turn are favoured more and more, from 1 on nothing else is taken.
    Engines that cannot do this (`describe().details["can_close"]`) ignore it.

    `marks` are lengths of beginnings that later prompts are likely to share: a memory that cannot
    be cut back is kept there, where it can be. With `ticks` a stream yields an event without a
    token after each step that chose none for it, so that others can be asked on meanwhile. Under a
    `constraint`, `tokens_left` is asked for how many tokens there is time: the answer is closed
    while they suffice.
    """

    max_tokens: int = -1
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    pressure: Callable[[], float] | None = field(default=None, compare=False)
    marks: tuple[int, ...] = field(default=(), compare=False)
    ticks: bool = field(default=False, compare=False)
    constraint: Constraint | None = None
    tokens_left: Callable[[], float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.max_tokens == 0 or self.max_tokens < -1:
            raise UsageError(
                f"max_tokens must be -1 (no limit) or more than 0, got {self.max_tokens}"
            )
        for name, low, high in (
            ("temperature", 0.0, 10.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 0.1, 10.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"{name} must be between {low:g} and {high:g}, got {value}")


@dataclass(frozen=True)
class TokenEvent:
    """One generated token; `text` may be empty while a character is incomplete. The last event
    of a stream carries `finish_reason`, and no `token_id` when the stream ended without another
    token. `thought` is what a model thinks before its answer, `calls` are calls of tools that are
    whole with this token; an engine leaves both in `text` (Engine.filter_answer).
    """

    token_id: int | None
    text: str
    t_ns: int
    finish_reason: FinishReason | None = None
    thought: str = ""

    @property
    def is_tick(self) -> bool:
        """Whether it only says that a step was made (GenerationConfig.ticks)."""
        return self.token_id is None and self.finish_reason is None

    calls: tuple[ToolCall, ...] = ()


class AnswerFilter:
    """What an answer's stream goes through, event by event. This one changes nothing; a filter of
    thinking moves the thoughts to `thought`.
    """

    def __call__(self, event: TokenEvent) -> TokenEvent:
        return event

    #: What opens and ends the thoughts that the answer may begin with; None: it has none.
    thoughts: tuple[str, str] | None = None

    def find_closing(self) -> tuple[str, Sequence[int]] | None:
        """The text, and its token ids, that ends the thoughts that are open now; None outside."""
        return None


@dataclass(frozen=True)
class StreamStart:
    """The tokens of a prompt, those reused from the KV cache, and when it was handed over and
    processed.
    """

    n_prompt: int
    n_reused: int
    t_start_ns: int
    t_prefill_end_ns: int


@dataclass(frozen=True)
class MemorySample:
    """One look at a process's memory, in bytes; None where the kernel does not report them."""

    t_ns: int
    rss_bytes: int | None = None
    anon_bytes: int | None = None
    file_bytes: int | None = None
    pss_bytes: int | None = None
    swap_bytes: int | None = None


@dataclass(frozen=True)
class HeatSample:
    """Temperature in °C, clock of the fastest core in Hz, throttle bits (vcgencmd's), watts."""

    t_ns: int
    temp_c: float | None = None
    clock_hz: float | None = None
    throttled: int | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Trace:
    """What happened in one request, as raw timestamps. Every figure derives from it."""

    request_start_ns: int
    n_prompt: int
    n_reused: int
    prefill_end_ns: int | None
    events: Sequence[TokenEvent]
    request_end_ns: int
    memory: tuple[MemorySample, ...] = ()
    heat: tuple[HeatSample, ...] = ()
    deadline_s: float | None = None

    @classmethod
    def of_stream(
        cls,
        request_start_ns: int,
        prompt: Sequence[int],
        events: Sequence[TokenEvent],
        start: StreamStart | None,
    ) -> Trace:
        """The trace of a stream that has just ended; `start` is `Engine.last_start`."""
        return cls(
            request_start_ns=request_start_ns,
            n_prompt=len(prompt),
            n_reused=start.n_reused if start else 0,
            prefill_end_ns=start.t_prefill_end_ns if start else None,
            events=tuple(events),
            request_end_ns=time.monotonic_ns(),
        )


@dataclass(frozen=True)
class Plan:
    """What was decided for one model on one board, and what it is predicted to cost.

    `memory` maps a kind to bytes; the kinds are not all there at once: `loading_bytes` are needed
    at most until the model is ready, `running_bytes` with the context full; at most
    `peak_anonymous_bytes` are in no file. Times are None where no constant for the board exists.
    `thinking` and `template_variables` are for the chat template where a user does not choose.
    """

    engine: str
    recipe: str
    device: str
    n_ctx: int
    kv_type: str
    n_threads: int
    n_batch: int
    n_ubatch: int
    use_mmap: bool
    repack: bool
    artifact_bytes: int
    memory: Mapping[str, int]
    budget_bytes: int
    decode_tps: float | None = None
    prefill_tps: float | None = None
    error_bound: float | None = None
    basis: str = "from specifications"
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    loading_bytes: int | None = None
    running_bytes: int | None = None
    peak_anonymous_bytes: int | None = None
    thinking: Thinking = "auto"
    template_variables: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def peak_bytes(self) -> int:
        """Everything that is resident at once at the worst moment, mapped weights included."""
        if self.loading_bytes is None or self.running_bytes is None:
            return sum(self.memory.values())
        return max(self.loading_bytes, self.running_bytes)

    @property
    def anonymous_bytes(self) -> int:
        """What the kernel cannot drop: everything but what is mapped from files."""
        if self.peak_anonymous_bytes is None:
            return self.peak_bytes - self.memory.get("weights_mapped", 0)
        return self.peak_anonymous_bytes

    def to_dict(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        data["memory"] = dict(self.memory)
        data["reasons"], data["rejected"] = list(self.reasons), list(self.rejected)
        # Left out where they are the default: an older boardfit knows no such keys.
        if self.thinking == "auto":
            del data["thinking"]
        if not self.template_variables:
            del data["template_variables"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`. Raises InputError for an unknown or missing key, or a bad value."""
        check_fields(data, PLAN_FIELDS, "plan", required=_PLAN_REQUIRED)
        sequences = {key: tuple(data[key]) for key in ("reasons", "rejected") if key in data}
        return cls(**{**data, **sequences})


_SPEED = OrNull(Real(0, 1e9))
#: What each entry of a plan may hold. Numbers of it reach shells, units and allocations.
PLAN_FIELDS: Schema = {
    **dict.fromkeys(("engine", "recipe", "device", "kv_type"), Word()),
    **dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), Whole(0, MAX_INT)),
    "n_threads": Whole(0, 4096),
    **dict.fromkeys(("use_mmap", "repack"), Flag()),
    **dict.fromkeys(("artifact_bytes", "budget_bytes"), Whole(0, MAX_BYTES)),
    "memory": TableOf(Whole(0, MAX_BYTES), most=100),
    **dict.fromkeys(("decode_tps", "prefill_tps"), _SPEED),
    "error_bound": OrNull(Real(0, 1e9)),
    "basis": Word(),
    **dict.fromkeys(("reasons", "rejected"), ListOf(Text(), most=1000)),
    **dict.fromkeys(
        ("loading_bytes", "running_bytes", "peak_anonymous_bytes"), OrNull(Whole(0, MAX_BYTES))
    ),
    "thinking": OneOf(get_args(Thinking)),
    "template_variables": AnyObject(),
}
_PLAN_REQUIRED = frozenset(
    each.name
    for each in dataclasses.fields(Plan)
    if each.default is each.default_factory is dataclasses.MISSING
)


@dataclass(frozen=True)
class EngineInfo:
    """What ran: engine name and version, kernel features, and the settings in force."""

    name: str
    version: str
    build: str
    n_ctx: int
    n_threads: int
    n_batch: int
    kv_type: str
    quant: str
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """The only road to a token: chat, run, benchmark and health gate all take `stream`."""

    @property
    def n_ctx(self) -> int:
        """Tokens that the allocated context holds."""

    def count(self, text: str) -> int:
        """Tokens of plain text, special tokens in it not parsed."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of text; `special` parses special tokens written out in it. No BOS added."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template; `render` needs it."""

    @property
    def choice(self) -> TemplateChoice:
        """How the chat template is rendered where no other choice is given."""

    @property
    def template(self) -> str:
        """The chat template; "" for none."""

    def prompt(self, text: str) -> list[int]:
        """Token ids of a plain text to be continued, with the beginning-of-text token if asked
        for.
        """

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        choice: TemplateChoice | None = None,
    ) -> list[int]:
        """Token ids of a conversation through the model's chat template. Special tokens that are
        written out in a message stay text. `set_template` sets the default `choice`.
        """

    def set_template(self, thinking: Thinking, variables: Mapping[str, Any]) -> None:
        """Choose how the chat template is rendered. Raises UsageError for variables it does not
        read.
        """

    def check_choice(self, choice: TemplateChoice) -> None:
        """Raise UsageError for a choice that the chat template does not know."""

    def filter_answer(
        self, messages: Sequence[Message], choice: TemplateChoice | None = None
    ) -> AnswerFilter:
        """The filter for the stream that answers `messages`."""

    def count_shortest(self, constraint: Constraint) -> int:
        """About how many tokens the shortest answer under a constraint has. Raises UsageError for
        what cannot be enforced, EngineMissingError without the package that does it.
        """

    def stream(
        self,
        tokens: Sequence[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[TokenEvent]:
        """Generate after `tokens`. The KV cache of the longest common prefix with the previous call
        is reused, or with an earlier one if the engine has shelves. Streams may be asked on in
        turns: where there are slots for them, a step serves all that wait. `stop` is honoured
        within 50 ms, during prefill too. Raises InputError if `tokens` is empty or fills the
        context.
        """

    @property
    def last_start(self) -> StreamStart | None:
        """How the latest stream began; None before its first token is out."""

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> int:
        """Write the KV state of the first `n_tokens` in the cache (None: of all); returns their
        number. Raises UnsupportedModelError if this engine or model cannot, InputError if they
        are not there, DoesNotFitError for more than `max_bytes` or a full disk.
        """

    def restore_prefix(self, path: PathLike[str]) -> int:
        """Load a state that `save_prefix` wrote, or a bundle's; returns the number of tokens now in
        the cache.

        Raises IntegrityError if it belongs to another model, engine build or context.
        """

    @property
    def threads_now(self) -> int:
        """Threads that compute the next step; fewer while other processes hold the cores."""

    @property
    def n_shared(self) -> int:
        """Steps so far that served several streams."""

    def slowdown(self, n: int) -> float:
        """How many times longer a step for `n` streams takes than one for a single stream."""

    def sharing_pays(self, n: int) -> bool:
        """Whether `n` streams are done sooner together than one after another, as measured."""

    def reusable(self, tokens: Sequence[int]) -> int:
        """How many leading `tokens` a stream of them would find in the KV cache."""

    def reset(self) -> None:
        """Forget the KV cache, so that the next stream starts cold."""

    def describe(self) -> EngineInfo:
        """Versions, kernel features and settings in force."""

    def close(self) -> None:
        """Free the engine's memory. Calling it twice is fine."""


@runtime_checkable
class LogitsEngine(Protocol):
    """What a quality card needs beside `Engine`: whole distributions, not samples of them."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; b"" for special tokens."""

    def logits(
        self,
        tokens: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        visit: Callable[[int, Any], None] | None = None,
    ) -> Any:
        """Return next-token logits after every prefix of `tokens`: float32 [len(tokens), n_vocab],
        without padding, by the kernels that `stream` uses. The cache is empty before and
        afterwards. With `visit` nothing is returned: it gets each block of rows and the number of
        its first row, valid during the call; what it raises ends the computation. Raises InputError
        if `tokens` is empty or longer than the context.
        """
