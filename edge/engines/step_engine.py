"""What `edge.types.Engine` promises, over a decoder that evaluates tokens and leaves all else to
us: streaming, stopping, sampling, the prefix cache, saved prefixes, logits.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from edge.engines.abort import StopWatcher
from edge.engines.hf_tokenizer import HfTokenizer
from edge.engines.kv_state import count_to_save, mapped_state, write_state
from edge.engines.numpy_sampler import NumpyCloser, NumpySampler
from edge.engines.settings import EngineSettings
from edge.engines.text_stream import TextStream
from edge.errors import (
    EngineError,
    InputError,
    IntegrityError,
    UnsupportedModelError,
    UsageError,
)
from edge.types import (
    EngineInfo,
    FinishReason,
    GenerationConfig,
    Message,
    StreamStart,
    TokenEvent,
)

#: What may run without looking up, so that a stop is honoured within 50 ms: a whole step, or a node
#: of one where steps can be cancelled.
_STEP_BUDGET_S = 0.040


class Runner(Protocol):
    """What runs a decoder's steps. `can_cancel`: a step in progress can be ended from outside."""

    @property
    def can_cancel(self) -> bool: ...
    def cancel(self) -> None:
        """End the step in progress and those after it, where `can_cancel`; from any thread."""

    def allow(self) -> None:
        """Take `cancel` back."""

    def close(self) -> None:
        """Free everything."""


class Decoder(Protocol):
    """Tokens in, logits out. `cached` are the tokens that the KV cache holds, in order; `logits` is
    float32 [n_logits] after the last one, a view that the next step overwrites. See
    `signature_decoder.SignatureDecoder` for the methods.
    """

    cached: list[int]

    @property
    def graph(self) -> Runner: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_logits(self) -> int: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def logits(self) -> Any: ...
    def prefill(self, tokens: Sequence[int], *, budget_s: float | None) -> bool: ...
    def decode(self, token: int) -> bool: ...
    def keep_prefix(self, prompt: Sequence[int]) -> int: ...
    def reusable(self, prompt: Sequence[int]) -> int: ...
    def truncate(self, keep: int) -> None: ...


@runtime_checkable
class SavableDecoder(Decoder, Protocol):
    """A decoder whose memory can be read and written; `kv` are its KV tensors by name."""

    @property
    def kv(self) -> dict[str, Any]: ...
    def kv_slices(self, n_tokens: int) -> list[Any]: ...
    def kv_replaced(self) -> None: ...


@dataclass(frozen=True)
class Identity:
    """What an open model is: engine, versions, file. `fingerprint` identifies its bytes."""

    name: str
    version: str
    build: str
    model_name: str
    fingerprint: str
    quant: str
    stop_texts: tuple[str, ...] = ()


class StepEngine:
    """One model and one KV cache. Calls may come from any thread, one at a time; `close` may come
    while a stream runs on another thread: the stream then ends.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: HfTokenizer,
        identity: Identity,
        settings: EngineSettings,
        n_threads: int,
    ) -> None:
        """Raises UsageError for a context beyond the exported one, UnsupportedModelError if the
        tokenizer knows ids that the model does not.
        """
        self._graph = decoder.graph
        self._decoder: Decoder | None = decoder
        self._tokenizer, self._identity, self._settings = tokenizer, identity, settings
        self._n_threads = n_threads
        self._lock = threading.Lock()  # held while the graph runs
        self._n_ctx = choose_n_ctx(decoder.n_ctx, settings.n_ctx, identity.model_name)
        if tokenizer.n_tokens > decoder.n_logits:
            raise UnsupportedModelError(
                f"{identity.model_name}: the tokenizer has {tokenizer.n_tokens} tokens, the model "
                f"{decoder.n_logits}: they do not belong together"
            )
        # A vocabulary padded for speed has logits that stand for nothing.
        self._n_vocab = tokenizer.n_tokens
        self._closer = NumpyCloser(tokenizer)
        self._stream_id = 0
        self._last_start: StreamStart | None = None

    # ---- close --------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the engine's memory. Calling it twice, or during a stream, is fine."""
        self._graph.cancel()
        with self._lock:
            if self._decoder is not None:
                self._decoder = None
                self._graph.close()
                give_back_memory()

    def __enter__(self) -> StepEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_last_start"):
            self.close()

    def _savable(self) -> SavableDecoder:
        decoder = self._open_decoder()
        if not isinstance(decoder, SavableDecoder):
            raise UnsupportedModelError(f"the engine {self._identity.name} cannot save a KV state")
        return decoder

    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            raise EngineError("the engine is closed")
        return self._decoder

    # ---- text ---------------------------------------------------------------------------------

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds: what was asked for, at most what was exported."""
        return self._n_ctx

    @property
    def has_template(self) -> bool:
        return bool(self._tokenizer.template)

    def count(self, text: str) -> int:
        return len(self.tokenize(text))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        self._open_decoder()
        return self._tokenizer.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        self._open_decoder()
        return self._tokenizer.detokenize(tokens)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a plain text to be continued, beginning-of-text token included where the
        vocabulary asks for it.
        """
        return self._tokenizer.with_bos(self.tokenize(text))

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> list[int]:
        """Raises UnsupportedModelError if the model has no chat template."""
        from edge.template import render  # brings jinja2: only who chats pays for it

        self._open_decoder()
        tokenizer = self._tokenizer
        if not tokenizer.template:
            raise UnsupportedModelError(
                f"{self._identity.model_name} has no chat template: it is a base model, which "
                "continues text",
                next_step="edge run --raw MODEL PROMPT",
            )
        text = render(
            tokenizer.template,
            [message.to_dict() for message in messages],
            bos_token=tokenizer.bos_text,
            eos_token=tokenizer.eos_text,
            add_generation_prompt=generate,
        )
        return tokenizer.with_bos(self.tokenize(text, special=True))

    # ---- generation ---------------------------------------------------------------------------

    def stream(
        self,
        tokens: Sequence[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[TokenEvent]:
        """As the protocol says. `stop` is called from a second thread too. A stream that is not
        finished when another one starts raises EngineError when it is asked to go on.
        """
        t_start_ns = time.monotonic_ns()
        prompt = list(tokens)
        self._check_prompt(prompt)
        return self._generate(prompt, config, stop, t_start_ns)

    @property
    def last_start(self) -> StreamStart | None:
        return self._last_start

    @property
    def threads_now(self) -> int:
        return self._n_threads

    def _generate(
        self,
        prompt: list[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        t_start_ns: int,
    ) -> Iterator[TokenEvent]:
        stream_id = self._begin()
        tokenizer, n_vocab, n_out = self._tokenizer, self._n_vocab, 0
        stops = config.stop if config.ignore_eos else (*config.stop, *self._identity.stop_texts)
        text, sampler = TextStream(stops), NumpySampler(config, prompt)
        with StopWatcher(stop, self._graph.cancel) as watcher:
            with self._lock:
                n_reused = self._claimed(stream_id).keep_prefix(prompt)
            if not self._prefill(stream_id, prompt, watcher):
                yield _last(text, "aborted")
                return
            t_ns = t_prefill_ns = time.monotonic_ns()
            self._last_start = StreamStart(len(prompt), n_reused, t_start_ns, t_prefill_ns)
            while True:
                with self._lock:
                    decoder = self._claimed(stream_id)
                    pressure = config.pressure() if config.pressure else 0.0
                    logits = decoder.logits[:n_vocab]
                    if pressure > 0 and self._closer.can_close:
                        token = self._closer.sample(logits, pressure)
                    else:
                        token = sampler.sample(logits)
                    n_cached = len(decoder.cached)
                t_before_ns, t_ns = t_ns, time.monotonic_ns()
                if not config.ignore_eos and tokenizer.is_eog(token):
                    yield TokenEvent(None, text.flush(), t_ns, "stop")
                    return
                n_out += 1
                shown = text.push(tokenizer.piece(token))
                finish: FinishReason | None = None
                if text.stopped:
                    finish = "stop"
                elif n_out == config.max_tokens:
                    finish = "length"
                elif n_cached >= self._n_ctx:
                    finish = "context"
                if finish is not None:
                    yield TokenEvent(token, shown + text.flush(), t_ns, finish)
                    return
                yield TokenEvent(token, shown, t_ns)
                if n_out > 1:
                    watcher.expect((t_ns - t_before_ns) / 1e9)
                if watcher.stopped() or not self._step(stream_id, token, watcher):
                    yield _last(text, "aborted")
                    return

    def feed(self, tokens: Sequence[int], stop: Callable[[], bool] | None = None) -> bool:
        """Evaluate `tokens` behind what the cache holds and sample nothing: warms a prefix up, and
        is decode alone for benchmarks. False if `stop` ended it.

        Raises InputError if they are none or leave the context.
        """
        have = self._open_decoder().cached
        prompt = [*have, *tokens]
        if not tokens or len(prompt) > self._n_ctx:
            raise InputError(
                f"cannot evaluate {len(tokens)} tokens behind {len(have)}: "
                f"the context holds {self._n_ctx}"
            )
        self._check_ids(tokens)
        stream_id = self._begin()
        with StopWatcher(stop, self._graph.cancel) as watcher:
            return self._prefill(stream_id, prompt, watcher)

    def _check_prompt(self, prompt: list[int]) -> None:
        self._open_decoder()
        if not prompt:
            raise InputError("there is nothing to continue: the prompt has no tokens")
        if len(prompt) >= self._n_ctx:
            raise InputError(
                f"the prompt has {len(prompt)} tokens and the context holds {self._n_ctx}, "
                "one of which must stay free for the answer",
                next_step="shorten the prompt, or build the model with a larger context: "
                "its length is fixed when it is exported",
            )
        self._check_ids(prompt)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if min(tokens) < 0 or max(tokens) >= self._n_vocab:
            raise InputError(
                f"token ids from {min(tokens)} to {max(tokens)}; "
                f"the vocabulary has 0 to {self._n_vocab - 1}"
            )

    def _begin(self) -> int:
        """Claim the cache for a new stream; an older, unfinished one loses it."""
        with self._lock:
            self._open_decoder()
            self._stream_id += 1
            self._last_start = None
            self._graph.allow()
            return self._stream_id

    def _claimed(self, stream_id: int) -> Decoder:
        """The decoder, if this stream still owns it. The lock must be held."""
        if self._decoder is None:
            raise EngineError("the engine was closed before this stream ended")
        if stream_id != self._stream_id:
            raise EngineError("another stream was started on this engine before this one ended")
        return self._decoder

    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        """Evaluate what of `prompt` is not cached yet, in steps. False if stopped on the way."""
        budget_s = _STEP_BUDGET_S if watcher.active else None
        while True:
            if watcher.stopped():
                return False
            with self._lock:
                decoder = self._claimed(stream_id)
                done = len(decoder.cached)
                if done == len(prompt) - 1:
                    break
                ok = decoder.prefill(prompt[done:-1], budget_s=budget_s)
            if not ok:
                return self._stopped(watcher)
        # Its logits are wanted, and only decode gives them.
        return self._step(stream_id, prompt[-1], watcher)

    def _step(self, stream_id: int, token: int, watcher: StopWatcher) -> bool:
        """Evaluate one token. False if stopped meanwhile."""
        with self._lock:
            ok = self._claimed(stream_id).decode(token)
        return ok or self._stopped(watcher)

    def _stopped(self, watcher: StopWatcher) -> bool:
        if watcher.error is not None:
            raise watcher.error
        return False

    # ---- logits -------------------------------------------------------------------------------

    def logits(
        self, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> Any:
        """As `edge.types.LogitsEngine` says. One decode step per token, for exported prefill gives
        no logits: as slow as generating them.
        """
        import numpy as np

        ids = list(tokens)
        self._open_decoder()
        if not ids or len(ids) > self._n_ctx:
            raise InputError(f"logits of {len(ids)} tokens; the context holds 1 to {self._n_ctx}")
        self._check_ids(ids)
        stream_id = self._begin()
        found = np.empty((len(ids), self._n_vocab), np.float32)
        self.reset()
        try:
            for i, token in enumerate(ids):
                with self._lock:
                    decoder = self._claimed(stream_id)
                    if not decoder.decode(token):
                        raise EngineError("the engine was closed before its logits were known")
                    found[i] = decoder.logits[: self._n_vocab]
                if progress is not None:
                    progress(i + 1, len(ids))
        finally:
            with self._lock:
                if self._decoder is not None:
                    self._decoder.truncate(0)
        return found

    # ---- state --------------------------------------------------------------------------------

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> int:
        """The used part of every KV tensor in order of name."""
        import numpy as np

        with self._lock:
            decoder = self._savable()
            keep = count_to_save(n_tokens, len(decoder.cached))
            if keep and decoder.reusable([*decoder.cached[:keep], 0]) != keep:
                raise UnsupportedModelError(
                    f"this model's memory cannot be cut to its first {keep} tokens"
                )
            views = decoder.kv_slices(keep)

            def fill(state: mmap.mmap) -> int:
                done = 0
                for view in views:
                    target = np.frombuffer(state, view.dtype, view.size, done)
                    target.reshape(view.shape)[...] = view
                    done += view.nbytes
                return done

            tokens = decoder.cached[:keep]
            n_bytes = sum(view.nbytes for view in views)
            write_state(
                Path(path), self._state_identity(), tokens, n_bytes, fill, max_bytes=max_bytes
            )
            return keep

    def restore_prefix(self, path: Path) -> int:
        import numpy as np

        with self._lock:
            decoder = self._savable()
            with mapped_state(Path(path), self._state_identity(), self._n_ctx) as (tokens, state):
                decoder.truncate(0)
                views = decoder.kv_slices(len(tokens))
                if sum(view.nbytes for view in views) != len(state):
                    raise IntegrityError(f"{path}: its state has another size than this model's")
                done = 0
                for view in views:
                    source = np.frombuffer(state, view.dtype, view.size, done)
                    view[...] = source.reshape(view.shape)
                    done += view.nbytes
            decoder.kv_replaced()
            decoder.cached = list(tokens)
            return len(tokens)

    def _state_identity(self) -> dict[str, Any]:
        """What a saved state belongs to."""
        identity = self._identity
        return {
            "model": identity.fingerprint,
            "engine": identity.name,
            "build": identity.build,
            "n_ctx": self._n_ctx,
            "kv_type": self._kv_type(),
        }

    def _kv_type(self) -> str:
        types = {str(view.dtype) for view in self._savable().kv.values()}
        names = {"float32": "f32", "float16": "f16", "int8": "i8"}
        return "/".join(sorted(names.get(kind, kind) for kind in types))

    def reusable(self, tokens: Sequence[int]) -> int:
        with self._lock:
            return self._open_decoder().reusable(tokens)

    def reset(self) -> None:
        with self._lock:
            self._open_decoder().truncate(0)

    def describe(self) -> EngineInfo:
        decoder, identity = self._open_decoder(), self._identity
        return EngineInfo(
            name=identity.name,
            version=identity.version,
            build=identity.build,
            n_ctx=self._n_ctx,
            n_threads=self._n_threads,
            n_batch=max((1, *decoder.lengths)),
            kv_type=self._kv_type(),
            quant=identity.quant,
            details={
                "n_ctx_allocated": decoder.n_ctx,
                "prefill_lengths": list(decoder.lengths),
                "n_vocab": self._n_vocab,
                "n_logits": decoder.n_logits,
                "can_close": self._closer.can_close,
                "can_abort_prefill": True,
                "aborts_inside_a_step": self._graph.can_cancel,
                "can_save_prefix": True,
            },
        )


def _last(text: TextStream, reason: FinishReason) -> TokenEvent:
    return TokenEvent(None, text.flush(), time.monotonic_ns(), reason)


def choose_n_ctx(exported: int, wanted: int | None, name: str) -> int:
    """The context in force. Raises UsageError for one beyond the exported."""
    if wanted is not None and wanted > exported:
        raise UsageError(
            f"a context of {wanted} tokens was asked for; {name} was exported with a cache of "
            f"{exported}, which cannot grow",
            next_step=f"--ctx {exported}, or build it again with a larger context",
        )
    return min(exported, wanted or exported)


def give_back_memory() -> None:
    """Return freed heap to the system, as `llama_library.give_back_memory` does."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
