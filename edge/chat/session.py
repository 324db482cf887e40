"""A conversation over an engine: history, trimming at the context's edge, save and load.

    session = Session(engine, system="You are brief.")
    for event in session.ask("How warm is the board?"):
        print(event.text, end="", flush=True)
    print(session.last_answer.decode_tps)

Each question renders the whole conversation; the engine finds the longest prefix it still holds in
its KV cache. With a `Deadline` a session also keeps budgets (`boardfit.edge.chat.timed_open`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.engines.prefix_cache import common
from boardfit.edge.errors import (
    DeadlineError,
    EdgeError,
    EngineMissingError,
    InputError,
    UsageError,
)
from boardfit.edge.process.live import STATUS
from boardfit.edge.states.store import (
    MIN_TOKENS,
    Restored,
    StateStore,
    is_worth_storing,
    system_prefix,
)
from boardfit.edge.types import (
    AnswerFilter,
    Constraint,
    Engine,
    FinishReason,
    GenerationConfig,
    Message,
    StreamStart,
    TemplateChoice,
    TokenEvent,
    ToolCall,
    Trace,
    drop_oldest_turn,
)
from boardfit.edge.units import format_seconds

if TYPE_CHECKING:  # a chat without a budget never imports them
    from boardfit.edge.deadline.budget import Budget
    from boardfit.edge.deadline.deadline import Deadline
    from boardfit.edge.deadline.outcome import Outcome
    from boardfit.edge.deadline.pacer import PacedTurn
    from boardfit.edge.template.tools import ToolUse

SCHEMA = 1
KIND = "boardfit-session"
_ADVICE = "give a file that edge chat has written with --session or /save"
MAX_SESSION_BYTES = 64 * 1024**2
_MAX_MESSAGES = 100_000

_MOST_PREFIXES = 16

#: Share of the context kept free for the answer when `max_tokens` does not say how long it may be.
_ANSWER_SHARE = 4
#: After trimming, at most this much of the room is in use: the next turns then fit, and reuse the
#: KV cache, instead of moving the conversation's beginning at every turn.
_TRIM_TO = 0.75


@dataclass(frozen=True)
class Answer:
    """What one question came to. `prefill_tps` counts the tokens computed, not those reused;
    `n_dropped` messages were forgotten to make room; `thinking` came before `text`, which
    holds no `calls` of tools.
    """

    text: str
    finish_reason: FinishReason
    n_prompt: int
    n_reused: int
    n_out: int
    n_dropped: int
    ttft_s: float | None
    prefill_tps: float | None
    decode_tps: float | None
    total_s: float
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()

    @property
    def only_thought(self) -> bool:
        """Whether the model thought, and gave no answer."""
        return bool(self.thinking) and not self.text.strip() and not self.calls


@dataclass
class Turn:
    """A question without a time limit, and its answer so far. The caller keeps the `events`."""

    engine: Engine
    received_ns: int
    messages: Sequence[Message]
    tokens: Sequence[int]
    filter_answer: AnswerFilter
    events: list[TokenEvent] = field(default_factory=list)
    within_s: float | None = None

    def stream(
        self, config: GenerationConfig, stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        stream = self.engine.stream(self.tokens, config, stop)
        return map(self.filter_answer, STATUS.follow(stream, len(self.tokens)))

    @property
    def start(self) -> StreamStart | None:
        """How the prompt was read."""
        return self.engine.last_start

    def finish(self) -> Outcome | None:
        """There is no budget that could be kept."""
        return None


class Session:
    """One conversation. Not for two threads at once."""

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        states: StateStore | None = None,
        raw: bool = False,
        deadline: Deadline | None = None,
        choice: TemplateChoice | None = None,
    ) -> None:
        """With `states`, what an earlier run computed is restored, and what is worth it stored.
        `raw`: messages are plain text to continue. `choice`: how the chat template is rendered; as
        the engine's, if None.
        """
        self.engine = engine
        self.system = system or None
        self.states = states
        self.deadline = deadline
        self.small: Session | None = None  # of a smaller model: answers what this one must refuse
        self.messages: list[Message] = []
        self.last_answer: Answer | None = None
        self.last_trace: Trace | None = None
        self.last_outcome: Outcome | None = None  # how the last answer's budget was kept
        self.notes: list[str] = []  # what was done otherwise than asked
        self.problems: list[str] = []  # stored states that could not be used; a caller empties it
        self._raw = raw
        self._choice = choice
        self._tools: ToolUse | None = None
        self._held_to: Constraint | None = None  # what calls are held to
        self._restored = Restored()  # since the last answer
        self._cached: list[int] = []  # prompt and answer of the last turn
        #: Tokens of system prompts. Sessions on one engine may share it.
        self.prefixes: dict[str, list[int]] = {}
        self.hints: tuple[int, ...] = ()  # more places where later prompts may part from this one
        self._prefix_read_s = 0.0
        self._tried: str | bool | None = False  # the system prompt that storing was tried for
        self._saved: tuple[int, ...] = ()  # what the stored state of this conversation holds

    def offer(self, tools: ToolUse, *, is_held: bool = True) -> None:
        """Offer tools from now on. Without any, calls of the past are still written as the model
        writes them. `is_held`: a mask holds calls to their schemas. Raises UsageError for a schema
        that it cannot enforce.
        """
        self._tools = tools
        choice = self._choice or self.engine.choice
        self._choice = dataclasses.replace(choice, tools=tools)
        self._held_to = None
        try:
            self._held_to = tools.constrain(self._find_control) if is_held else None
        except UsageError as error:
            self._leave_free(error)

    def _leave_free(self, error: EdgeError) -> None:
        """Note that calls cannot be held to their schemas; raise it where one must come."""
        if self._tools is None or self._tools.must_call:
            raise error
        self._held_to = None
        self.notes.append(f"calls are not held to their schemas: {error}")

    def _hold_calls(self, config: GenerationConfig) -> GenerationConfig:
        """`config`, with calls held to the tools on offer."""
        if config.constraint is not None and not (self._tools and self._tools.must_call):
            if self._held_to is not None:
                self.notes.append("the answer is held to a form: no tool can be called")
            return config
        try:
            if self._held_to is not None:
                self.engine.count_shortest(self._held_to)
        except (UsageError, EngineMissingError) as error:
            self._leave_free(error)
        return dataclasses.replace(config, constraint=self._held_to or config.constraint)

    def _find_control(self, marker: str) -> int | None:
        """The id of a marker that is one token without a text."""
        ids = self.engine.tokenize(marker, special=True)
        return ids[0] if len(ids) == 1 and not self.engine.detokenize(ids) else None

    def ask(
        self,
        text: str | Message | Sequence[Message],
        config: GenerationConfig | None = None,
        stop: Callable[[], bool] | None = None,
        *,
        budget: Budget | None = None,
        received_ns: int | None = None,
        begun: Callable[[Sequence[int]], None] | None = None,
    ) -> Iterator[TokenEvent]:
        """Stream the answer to `text`, or to other messages, such as the results of calls. The turn
        enters the history when the stream ends, stopped half-way or not; if it ends in an error, or
        before the first token, the history stays.

        A `budget` counts from `received_ns`: now, or earlier if the request waited in a queue.
        `begun` gets the prompt's tokens once the question is admitted, before the prompt is read.

        Raises InputError if the question alone, with the system prompt, fills the context;
        DeadlineError if no version of it can be answered within a budget that says refuse.
        """
        config = config or GenerationConfig()
        asked_ns = time.monotonic_ns()
        received_ns = asked_ns if received_ns is None else received_ns
        asked = [*self.messages, *as_messages(text)]
        if self._tools is not None:
            config = self._hold_calls(config)
        if config.constraint is not None:
            config, budget = self._bind(config, config.constraint, budget, asked)
        try:
            turn = self._begin(asked, config, budget, received_ns, asked_ns)
        except DeadlineError as refusal:
            if self.small is None:
                raise
            stream = self.small.ask(text, config, stop, budget=budget, received_ns=received_ns)
            if begun is not None:
                begun(())
            yield from self._take_over(self.small, stream, refusal)
            return
        if begun is not None:
            begun(turn.tokens)
        config = dataclasses.replace(config, marks=self._marks(turn))
        try:
            for event in turn.stream(config, stop):
                if not event.is_tick:
                    turn.events.append(event)
                yield event
        except GeneratorExit:  # the caller stopped reading: keep the answer so far
            self._finish(asked, turn)
            raise
        self._finish(asked, turn)

    def _bind(
        self,
        config: GenerationConfig,
        constraint: Constraint,
        budget: Budget | None,
        asked: Sequence[Message],
    ) -> tuple[GenerationConfig, Budget | None]:
        """Let thoughts come before what a constraint is for, and its shortest text fit a budget."""
        thoughts = constraint.thoughts or self.filter_answer(asked).thoughts
        config = dataclasses.replace(
            config, constraint=dataclasses.replace(constraint, thoughts=thoughts)
        )
        if constraint.after:  # what it is for may never come
            return config, budget
        n_least = self.engine.count_shortest(constraint)
        if config.max_tokens >= 0 and n_least > config.max_tokens:
            raise UsageError(
                f"the shortest answer of this form has about {n_least} tokens; "
                f"{config.max_tokens} are allowed"
            )
        if budget is not None:
            budget = dataclasses.replace(budget, n_min=n_least, tell=False)
        return config, budget

    def check_template(self) -> None:
        """Render a trial conversation. Raises for a template that is missing or unfit."""
        self.render([Message("user", "hello")])

    def _begin(
        self,
        asked: list[Message],
        config: GenerationConfig,
        budget: Budget | None,
        received_ns: int,
        asked_ns: int,
    ) -> Turn | PacedTurn:
        """Choose what to compute for `asked`, and restore what an earlier run computed of it."""
        kept, tokens = self.trim(asked, config)
        if budget is None:
            if not self._raw:  # the engine itself reports that a plain text is too long
                self.check_room(tokens)
            self.recall(tokens)
            return Turn(self.engine, received_ns, kept, tokens, self.filter_answer(kept))
        if self.deadline is None:
            raise UsageError("a budget needs a session with a deadline")
        from boardfit.edge.deadline.admission import Question

        self.recall(tokens, self.deadline.predict_prefill_s)
        restored = self.take_restored()
        question = Question(
            kept,
            render=self.render,
            filter_answer=self.filter_answer,
            check_room=self.check_room,
            room=self.engine.n_ctx - self.count_reserve(config),
            n_forgotten=len(asked) - len(kept),
            is_chat=self.engine.has_template and not self._raw,
            n_restored=restored.n_tokens,
            restored_s=restored.seconds,
        )
        return self.deadline.admit(question, budget, received_ns, asked_ns)

    def _finish(self, asked: list[Message], turn: Turn | PacedTurn) -> None:
        """Take an answered turn into the history."""
        start, events = turn.start, turn.events
        trace = Trace.of_stream(turn.received_ns, turn.tokens, events, start)
        answer = summarize(trace, start, n_dropped=len(asked) - len(turn.messages))
        if answer.n_out or answer.finish_reason != "aborted":
            self.messages = [*turn.messages, Message("assistant", answer.text, answer.calls)]
        self.last_trace = dataclasses.replace(trace, deadline_s=turn.within_s)
        self.last_answer = answer
        answer_ids = [event.token_id for event in events if event.token_id is not None]
        self._cached = [*turn.tokens, *answer_ids]
        self.last_outcome = turn.finish()

    def _take_over(
        self, small: Session, stream: Iterator[TokenEvent], refusal: DeadlineError
    ) -> Iterator[TokenEvent]:
        """Let the smaller model answer, and continue with its answer."""
        small.system, small.messages = self.system, list(self.messages)
        try:
            yield from stream
        finally:
            if small.messages != self.messages:  # it did answer
                self.messages = list(small.messages)
                self.last_answer, self.last_trace = small.last_answer, small.last_trace
                if small.last_outcome is not None:
                    self.last_outcome = small.last_outcome.with_smaller_model(str(refusal))

    # ---- trimming -----------------------------------------------------------------------------

    def trim(
        self, messages: list[Message], config: GenerationConfig
    ) -> tuple[list[Message], list[int]]:
        """The newest part of `messages` that leaves room for an answer, and its tokens. Whole turns
        are dropped, oldest first. The system prompt and the last message stay, however long.
        """
        tokens = self.render(messages)
        room = self.engine.n_ctx - self.count_reserve(config)
        if len(tokens) <= room:
            return messages, tokens
        target = int(room * _TRIM_TO)
        while len(tokens) > target and (shorter := drop_oldest_turn(messages)):
            messages = list(shorter)
            tokens = self.render(messages)
        return messages, tokens

    def check_room(self, tokens: Sequence[int]) -> None:
        """Raise InputError if a prompt of `tokens` leaves no room in the context."""
        if len(tokens) >= self.engine.n_ctx:
            raise InputError(
                f"the question takes {len(tokens)} tokens with the system prompt, and the context "
                f"holds {self.engine.n_ctx}",
                next_step="ask in fewer words, or open the model with a larger --ctx",
            )

    def count_reserve(self, config: GenerationConfig) -> int:
        """Tokens of the context that are kept free for the answer."""
        share = max(1, self.engine.n_ctx // _ANSWER_SHARE)
        return share if config.max_tokens < 0 else min(config.max_tokens, share)

    def render(self, messages: list[Message]) -> list[int]:
        """Token ids of `messages` behind the system prompt."""
        if self._raw:
            return self.engine.prompt("\n".join(message.content for message in messages))
        return self._render([*self._head(), *messages])

    def _render(self, messages: list[Message]) -> list[int]:
        return self.engine.render(messages, choice=self._choice)

    def _head(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def filter_answer(self, messages: Sequence[Message]) -> AnswerFilter:
        """Return the filter of thinking for the stream that answers `messages`."""
        if self._raw:
            return AnswerFilter()
        plain = self.engine.filter_answer([*self._head(), *messages], self._choice)
        if self._tools is None:
            return plain
        engine = self.engine
        return self._tools.filter(
            plain,
            lambda text: engine.tokenize(text, special=True),
            lambda token: bool(engine.detokenize([token])),
        )

    # ---- states of earlier runs ---------------------------------------------------------------

    def prepare(self) -> Restored:
        """Restore now what the first question will begin with, if an earlier run stored it."""
        prefix = self.system_prefix()
        restored = self.recall([*prefix, 0]) if prefix else Restored()
        self._prefix_read_s = restored.seconds if restored.state else 0.0
        return restored

    def recall(
        self, tokens: Sequence[int], compute_s: Callable[[int], float] | None = None
    ) -> Restored:
        """Restore what an earlier run stored of a prompt of `tokens` and the KV cache lacks; with
        `compute_s`, which predicts seconds from tokens, only what is quicker to read.
        """
        if self.states is None:
            return Restored()
        restored = self.states.restore(self.engine, tokens, compute_s)
        self._restored = self._restored + restored
        self.problems += restored.problems
        return restored

    def take_restored(self) -> Restored:
        """What was restored since this was last asked."""
        restored, self._restored = self._restored, Restored()
        return restored

    def store_prefix(self) -> bool:
        """Store the state of the system prompt, if it is worth it, while the user is idle."""
        answer, states = self.last_answer, self.states
        if states is None or answer is None or not answer.prefill_tps:
            return False
        prefix = self.system_prefix()
        compute_s = len(prefix) / answer.prefill_tps
        if states.holds(prefix):
            if self._prefix_read_s > compute_s:
                states.drop(prefix, for_good=True)
            return False
        if self._tried == self.system or not is_worth_storing(len(prefix), compute_s, 0.0):
            return False
        if self.engine.reusable([*prefix, 0]) != len(prefix):
            return False
        self._tried = self.system
        path = states.save(self.engine, prefix)
        if path is not None and not is_worth_storing(
            len(prefix), compute_s, states.predict_s(path)
        ):
            states.drop(prefix, for_good=True)
            return False
        return path is not None

    def keep(self) -> None:
        """Store what was learned and computed. Call it while the user does not wait."""
        self.save_times()
        self.store_prefix()

    def save_times(self) -> None:
        """Store what the time models of this session and of its smaller model learned."""
        for session in (self, self.small):
            if session is not None and session.deadline is not None:
                session.deadline.save()

    def system_prefix(self) -> list[int]:
        """Tokens of the system prompt as every conversation begins; none without a template."""
        key = repr((self.system, self._choice))
        if key not in self.prefixes:
            if len(self.prefixes) >= _MOST_PREFIXES:
                self.prefixes.clear()
            try:
                self.prefixes[key] = system_prefix(self._render, self.system)
            except EdgeError:
                self.prefixes[key] = []
        return self.prefixes[key]

    @functools.cached_property
    def keeps_marks(self) -> bool:
        """Whether the engine's memory has no past, and is kept at marks."""
        return not self._raw and bool(self.engine.describe().details.get("keeps_marks"))

    def _marks(self, turn: Turn | PacedTurn) -> tuple[int, ...]:
        """Where a memory without a past is worth keeping: behind the system prompt, and behind the
        question, before what the template puts at the head of an answer.
        """
        if not self.keeps_marks:
            return ()
        asked = [*self._head(), *turn.messages]
        told = self.engine.render(asked, generate=False, choice=self._choice)
        ends = common(self.system_prefix(), turn.tokens), common(told, turn.tokens)
        return tuple(sorted({end for end in (*ends, *self.hints) if end}))

    # ---- reset, save, load --------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.messages = []
        self.last_answer = self.last_trace = None
        self._cached, self._saved = [], ()
        self.engine.reset()

    def save(self, path: Path | str, *, state: bool = False) -> Path | None:
        """Write the conversation as JSON, whole or not at all; with `state` also its KV state into
        `states`. Returns that state's path, None if there is none.
        """
        path = Path(path)
        document = {
            "kind": KIND,
            "schema": SCHEMA,
            "system": self.system,
            "messages": [message.to_dict() for message in self.messages],
        }
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        if path.exists():
            try:
                parse_session(_read(path), str(path))
            except InputError:
                raise InputError(
                    f"{path} exists and is not a saved session; it is left alone",
                    next_step="choose another name",
                ) from None
        try:
            write_atomic(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise InputError(f"cannot save to {path}: {error.strerror or error}") from None
        return self._save_state() if state else None

    def _save_state(self) -> Path | None:
        """Store what the cache holds of this conversation, in place of what was stored of it."""
        held = self.engine.reusable([*self._cached, 0]) if self._cached else 0
        tokens = self._cached[:held]
        if self.states is None or held < MIN_TOKENS:
            return None
        if self.states.holds(tokens):
            return self.states.state_path(tokens)
        path = self.states.save(self.engine, tokens)
        if path is not None:
            if self._saved:  # what both share is in the new one
                self.states.drop(self._saved)
            self._saved = tuple(tokens)
        return path

    def load(self, path: Path | str) -> str:
        """Replace the conversation with a saved one, with its KV state if one is stored that fits.
        Return a sentence about it. Raises InputError, and changes nothing, for no session.
        """
        path = Path(path)
        system, messages = parse_session(_read(path), str(path))
        self.reset()
        self.system, self.messages = system, messages
        if not messages:
            return "there is nothing to read again"
        restored = self.recall(self.render(messages))
        if not restored.n_tokens:
            return "no saved state: the next answer reads the conversation again"
        if len(restored.state) > len(self.system_prefix()):
            self._saved = restored.state
        return f"{restored.n_tokens} tokens restored in {format_seconds(restored.seconds)}"


def summarize(trace: Trace, start: StreamStart | None, *, n_dropped: int = 0) -> Answer:
    """An Answer from raw timestamps; the prefill rate counts from the engine's own `start`."""
    times = [event.t_ns for event in trace.events if event.token_id is not None]
    last = trace.events[-1] if trace.events else None
    computed = trace.n_prompt - trace.n_reused
    prefill_ns = start.t_prefill_end_ns - start.t_start_ns if start else 0
    decode_ns = times[-1] - times[0] if times else 0
    return Answer(
        text="".join(event.text for event in trace.events),
        finish_reason=(last.finish_reason if last else None) or "aborted",
        n_prompt=trace.n_prompt,
        n_reused=trace.n_reused,
        n_out=len(times),
        n_dropped=n_dropped,
        ttft_s=(times[0] - trace.request_start_ns) / 1e9 if times else None,
        prefill_tps=computed * 1e9 / prefill_ns if prefill_ns > 0 else None,
        decode_tps=(len(times) - 1) * 1e9 / decode_ns if decode_ns > 0 else None,
        total_s=(trace.request_end_ns - trace.request_start_ns) / 1e9,
        thinking="".join(event.thought for event in trace.events).strip(),
        calls=tuple(call for event in trace.events for call in event.calls),
    )


def as_messages(asked: str | Message | Sequence[Message]) -> list[Message]:
    """What is asked, as messages: a text is the user's."""
    if isinstance(asked, str):
        return [Message("user", asked)]
    return [asked] if isinstance(asked, Message) else list(asked)


def _read(path: Path) -> bytes:
    from boardfit.edge.files.kind import read_regular

    return read_regular(path, MAX_SESSION_BYTES)


def parse_session(data: bytes, name: str) -> tuple[str | None, list[Message]]:
    """System prompt and messages of a saved session. Raises InputError if it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{name}: not a saved session (no JSON)", next_step=_ADVICE) from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError(f"{name}: not a saved session of boardfit", next_step=_ADVICE)
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{name}: session schema {document.get('schema')!r:.20}, this version reads {SCHEMA}"
        )
    system, items = document.get("system"), document.get("messages")
    if not (system is None or isinstance(system, str)) or not isinstance(items, list):
        raise InputError(f"{name}: expected a system text and a list of messages")
    if len(items) > _MAX_MESSAGES:
        raise InputError(f"{name}: {len(items)} messages; the limit is {_MAX_MESSAGES}")
    messages = []
    for i, item in enumerate(items):
        if not isinstance(item, dict) or set(item) != {"role", "content"}:
            raise InputError(
                f"{name}: message {i}: expected role and content, got {item!r:.80}",
                next_step=_ADVICE,
            )
        role, content = item["role"], item["content"]
        if role not in ("user", "assistant") or not isinstance(content, str):
            raise InputError(
                f"{name}: message {i}: expected a text of user or assistant", next_step=_ADVICE
            )
        messages.append(Message(role, content))
    return system, messages
