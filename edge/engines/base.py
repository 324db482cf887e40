"""What every engine has in common: the checks, the text, the stream, the saved prefix. What differs
is how a model is opened, what holds it (a `PrefixCache`) and how that generates."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.abort import StopWatcher
from boardfit.edge.engines.generation import AnswerStream, SequenceEngine
from boardfit.edge.engines.kv_state import count_to_save, mapped_state, write_state
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.prefix_cache import PrefixCache, SavableCache
from boardfit.edge.engines.vocabulary import EngineVocabulary, find_breaks
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import (
    AnswerFilter,
    Constraint,
    EngineInfo,
    GenerationConfig,
    Message,
    TemplateChoice,
    Thinking,
    TokenEvent,
)

if TYPE_CHECKING:
    from boardfit.edge.template.conversation import ChatTemplate

_MOST_CHOICES = 16  # of how a template is rendered, kept ready
_MOST_BREAKS = 1024  # messages whose special tokens are remembered

C = TypeVar("C", bound=PrefixCache)
_Self = TypeVar("_Self", bound="EngineBase[Any]")


class LogitRows:
    """Takes `n` rows of logits, block by block. With `visit` none is kept, because the rows of a
    long text can take more memory than a board has.
    """

    def __init__(
        self,
        n: int,
        n_vocab: int,
        progress: Progress | None,
        visit: Callable[[int, Any], None] | None,
    ) -> None:
        import numpy as np

        self._n, self._done = n, 0
        self._progress, self._visit = progress, visit
        self.rows = None if visit else np.empty((n, n_vocab), np.float32)

    def add(self, block: Any) -> None:
        """Take the next rows: float32 [some, n_vocab]."""
        first, self._done = self._done, self._done + len(block)
        if self._visit is not None:
            self._visit(first, block)
        else:
            self.rows[first : self._done] = block  # type: ignore[index]
        if self._progress is not None:
            self._progress(self._done, self._n)


class EngineBase(SequenceEngine[C]):
    """One model and one context: `boardfit.edge.types.Engine`. Calls may come from any thread, one
    at a time; `close` may come while a stream runs on another: the stream then ends.
    """

    #: The engine's name in the registry.
    name: ClassVar[str]
    #: What a user can do when a prompt fills the context.
    longer_context: ClassVar[str]

    def __init__(
        self,
        model_name: str,
        lease: Lease[C],
        vocabulary: EngineVocabulary,
        n_ctx: int,
        stop_texts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(lease, vocabulary, n_ctx, stop_texts)
        self._model_name = model_name
        self._text_lock = threading.Lock()  # of its own: `count` need not wait for a stream
        self._choice = TemplateChoice()
        self._templates: dict[str, ChatTemplate] = {}  # by choice
        # A conversation is rendered again at every turn; its messages are looked through once.
        self._breaks: dict[tuple[str, bool], list[int]] = {}

    # ---- close --------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the engine's memory. Calling it twice, or during a stream, is fine."""
        with self._text_lock:
            self._lease.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- text ---------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> EngineVocabulary:
        return self._vocabulary

    @property
    def has_template(self) -> bool:
        return bool(self._vocabulary.template)

    @property
    def choice(self) -> TemplateChoice:
        return self._choice

    @property
    def template(self) -> str:
        return self._vocabulary.template or ""

    def count(self, text: str) -> int:
        return len(self.tokenize(text))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        with self._text_lock:
            self._lease.get()
            return self._vocabulary.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        with self._text_lock:
            self._lease.get()
            return self._vocabulary.detokenize(tokens)

    def prompt(self, text: str) -> list[int]:
        return self._vocabulary.with_bos(self.tokenize(text))

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        choice: TemplateChoice | None = None,
    ) -> list[int]:
        """Raises UnsupportedModelError without a chat template, InputError for lost words."""
        from boardfit.edge.template.conversation import tokenize_pieces

        template = self._open_template(choice)
        pieces = template.write(messages, self._find_breaks, generate=generate)
        ids = tokenize_pieces(pieces, lambda piece: self.tokenize(piece, special=True))
        # Most templates write BOS themselves: `with_bos` adds it only where it is not there.
        return self._vocabulary.with_bos(ids)

    def filter_answer(
        self, messages: Sequence[Message], choice: TemplateChoice | None = None
    ) -> AnswerFilter:
        vocabulary = self._vocabulary
        if not vocabulary.template:
            return AnswerFilter()
        return self._open_template(choice).filter_answer(
            messages,
            lambda text: self.tokenize(text, special=True),
            lambda token: bool(vocabulary.piece(token)),
        )

    def set_template(self, thinking: Thinking, variables: Mapping[str, Any]) -> None:
        self._choice = TemplateChoice(thinking, variables)
        self._templates.clear()
        if self.has_template:
            self.check_choice(self._choice)

    def check_choice(self, choice: TemplateChoice) -> None:
        self._open_template(choice).check_settings()

    def _open_template(self, choice: TemplateChoice | None = None) -> ChatTemplate:
        # It brings jinja2: only who chats pays for it.
        from boardfit.edge.template.conversation import ChatTemplate

        self._lease.get()
        vocabulary = self._vocabulary
        if not vocabulary.template:
            raise UnsupportedModelError(
                f"{self._model_name} has no chat template: it is a base model, which continues "
                "text",
                next_step="edge run --raw MODEL PROMPT",
            )
        choice = choice or self._choice
        key = repr((choice.thinking, sorted(choice.variables.items()), choice.tools))
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _MOST_CHOICES:
                self._templates.clear()
            template = self._templates[key] = ChatTemplate(
                vocabulary.template,
                bos=vocabulary.bos_text,
                eos=vocabulary.eos_text,
                thinking=choice.thinking,
                variables=choice.variables,
                tools=choice.tools,
            )
        return template

    def _find_breaks(self, text: str, is_own: bool) -> list[int]:
        key = text, is_own
        if (known := self._breaks.get(key)) is None:
            with self._text_lock:
                self._lease.get()
                frame = self._vocabulary.template or ""
                known = find_breaks(self._vocabulary, text, is_own=is_own, frame=frame)
            if len(self._breaks) >= _MOST_BREAKS:
                self._breaks.clear()
            self._breaks[key] = known
        return known

    # ---- generation ---------------------------------------------------------------------------

    def stream(
        self,
        tokens: Sequence[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[TokenEvent]:
        """As the protocol says. `stop` is called from a second thread too. A stream whose slot was
        taken by another one reads its tokens again when it is asked to go on.
        """
        t_start_ns = time.monotonic_ns()
        prompt = list(tokens)
        self._check_prompt(prompt)
        return self._generate(prompt, config, stop, t_start_ns)

    @property
    @abstractmethod
    def threads_now(self) -> int:
        """As the protocol says."""

    def feed(self, tokens: Sequence[int], stop: Callable[[], bool] | None = None) -> bool:
        """Evaluate `tokens` behind the cache, sampling nothing. False if `stop` ended it."""
        have = self._lease.get().cached
        prompt = [*have, *tokens]
        if not tokens or len(prompt) > self.n_ctx:
            raise InputError(
                f"cannot evaluate {len(tokens)} tokens behind {len(have)}: "
                f"the context holds {self.n_ctx}"
            )
        self._check_ids(tokens)
        with StopWatcher(stop, self._lease.interrupt) as watcher:
            stream = AnswerStream(prompt, GenerationConfig(), watcher)
            with self._joined(stream):
                while stream.start is None:
                    if watcher.stopped() or not self._ask_on(stream):
                        return False
        return True

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; b"" for special tokens."""
        with self._text_lock:
            self._lease.get()
            return self._vocabulary.piece(token)

    def logits(
        self,
        tokens: Sequence[int],
        progress: Progress | None = None,
        visit: Callable[[int, Any], None] | None = None,
    ) -> Any:
        """As `boardfit.edge.types.LogitsEngine` says."""
        ids = list(tokens)
        self._lease.get()
        if not ids or len(ids) > self.n_ctx:
            raise InputError(f"logits of {len(ids)} tokens; the context holds 1 to {self.n_ctx}")
        self._check_ids(ids)
        found = LogitRows(len(ids), self._vocabulary.n_tokens, progress, visit)
        number = self._lease.begin()
        try:
            self._compute_logits(number, ids, found)
        finally:
            self._lease.end(number)
        return found.rows

    @abstractmethod
    def _compute_logits(self, stream_id: int, tokens: list[int], found: LogitRows) -> None:
        """Put the logits of checked tokens into `found`, for the stream that owns a slot."""

    def _check_prompt(self, prompt: list[int]) -> None:
        self._lease.get()
        if not prompt:
            raise InputError("there is nothing to continue: the prompt has no tokens")
        if len(prompt) >= self.n_ctx:
            raise InputError(
                f"the prompt has {len(prompt)} tokens and the context holds {self.n_ctx}, "
                "one of which must stay free for the answer",
                next_step=f"shorten the prompt, or {self.longer_context}",
            )
        self._check_ids(prompt)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        n_vocab = self._vocabulary.n_tokens
        if min(tokens) < 0 or max(tokens) >= n_vocab:
            raise InputError(
                f"token ids from {min(tokens)} to {max(tokens)}; "
                f"the vocabulary has 0 to {n_vocab - 1}"
            )

    def count_shortest(self, constraint: Constraint) -> int:
        """As the protocol says."""
        with self._text_lock:
            self._lease.get()
            return self.grammars.shortest(self.grammars.compile(constraint))

    # ---- state --------------------------------------------------------------------------------

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> int:
        path = Path(path)
        with self._lease.lock:
            cache = self._get_savable()
            keep = count_to_save(n_tokens, len(cache.cached))
            with cache.saving(keep, path.parent) as (n_bytes, fill):
                tokens = cache.cached[:keep]
                write_state(path, self._identify(), tokens, n_bytes, fill, max_bytes=max_bytes)
            return keep

    def restore_prefix(self, path: PathLike[str]) -> int:
        source = path if isinstance(path, OpenedFile) else Path(path)
        number = self._lease.begin()
        try:
            with self._lease.lock:
                cache = self._get_savable()
                with mapped_state(source, self._identify(), self.n_ctx) as (tokens, state):
                    cache.load(state, tokens, Path(str(source)))
                return len(tokens)
        finally:
            self._lease.end(number)

    def _get_savable(self) -> SavableCache:
        """What is held. Raises UnsupportedModelError if its state cannot be saved."""
        cache = self._lease.get()
        if not isinstance(cache, SavableCache):
            raise UnsupportedModelError(
                f"the engine {self.name} cannot take a saved KV state back in",
                next_step="the conversation itself can be replayed; llama_cpp and litert save "
                "states",
            )
        return cache

    @abstractmethod
    def _identify(self) -> dict[str, Any]:
        """What a saved state belongs to."""

    def reusable(self, tokens: Sequence[int]) -> int:
        with self._lease.lock:
            return self._lease.get().reusable(tokens)

    def reset(self) -> None:
        with self._lease.lock:
            self._lease.get()
            for slot in self._lease.slots:
                slot.forget()

    @abstractmethod
    def describe(self) -> EngineInfo:
        """As the protocol says."""
