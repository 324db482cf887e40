"""Implement `boardfit.edge.types.Engine` over a decoder that only evaluates tokens: streaming,
stopping, sampling, the prefix cache, saved prefixes, logits.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from boardfit.edge.engines.claims import Claims
from boardfit.edge.engines.decoder import Decoder, SavableDecoder
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.kv_state import count_to_save, mapped_state, write_state
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.engines.step_generation import StepGeneration
from boardfit.edge.errors import (
    EngineError,
    InputError,
    IntegrityError,
    UnsupportedModelError,
    UsageError,
)
from boardfit.edge.types import (
    EngineInfo,
    GenerationConfig,
    Message,
    StreamStart,
    TokenEvent,
)


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
        self._tokenizer, self._identity, self._settings = tokenizer, identity, settings
        self._n_threads = n_threads
        self._n_ctx = choose_n_ctx(decoder.n_ctx, settings.n_ctx, identity.model_name)
        if tokenizer.n_tokens > decoder.n_logits:
            raise UnsupportedModelError(
                f"{identity.model_name}: the tokenizer has {tokenizer.n_tokens} tokens, the model "
                f"{decoder.n_logits}: they do not belong together"
            )
        # A vocabulary padded for speed has logits that stand for nothing.
        self._n_vocab = tokenizer.n_tokens
        graph = self._graph

        def release() -> None:
            graph.close()
            give_back_memory()

        self._claims: Claims[Decoder] = Claims(
            decoder, interrupt=graph.cancel, allow=graph.allow, release=release
        )
        stop_texts = identity.stop_texts
        self._generation = StepGeneration(self._claims, tokenizer, stop_texts, self._n_ctx)

    # ---- close --------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the engine's memory. Calling it twice, or during a stream, is fine."""
        self._claims.close()

    def __enter__(self) -> StepEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _savable(self) -> SavableDecoder:
        decoder = self._claims.get()
        if not isinstance(decoder, SavableDecoder):
            raise UnsupportedModelError(f"the engine {self._identity.name} cannot save a KV state")
        return decoder

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
        self._claims.get()
        return self._tokenizer.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        self._claims.get()
        return self._tokenizer.detokenize(tokens)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a plain text to be continued, beginning-of-text token included where the
        vocabulary asks for it.
        """
        return self._tokenizer.with_bos(self.tokenize(text))

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> list[int]:
        """Raises UnsupportedModelError if the model has no chat template."""
        from boardfit.edge.template.render import (
            render,  # brings jinja2: only who chats pays for it
        )

        self._claims.get()
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
        return self._generation.stream(prompt, config, stop, t_start_ns)

    @property
    def last_start(self) -> StreamStart | None:
        return self._generation.last_start

    @property
    def threads_now(self) -> int:
        return self._n_threads

    def feed(self, tokens: Sequence[int], stop: Callable[[], bool] | None = None) -> bool:
        """Evaluate `tokens` behind what the cache holds and sample nothing: warms a prefix up, and
        is decode alone for benchmarks. False if `stop` ended it.

        Raises InputError if they are none or leave the context.
        """
        have = self._claims.get().cached
        prompt = [*have, *tokens]
        if not tokens or len(prompt) > self._n_ctx:
            raise InputError(
                f"cannot evaluate {len(tokens)} tokens behind {len(have)}: "
                f"the context holds {self._n_ctx}"
            )
        self._check_ids(tokens)
        return self._generation.feed(prompt, stop)

    def _check_prompt(self, prompt: list[int]) -> None:
        self._claims.get()
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

    # ---- logits -------------------------------------------------------------------------------

    def logits(
        self, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> Any:
        """As `boardfit.edge.types.LogitsEngine` says. One decode step per token, for exported
        prefill gives no logits: as slow as generating them.
        """
        import numpy as np

        ids = list(tokens)
        self._claims.get()
        if not ids or len(ids) > self._n_ctx:
            raise InputError(f"logits of {len(ids)} tokens; the context holds 1 to {self._n_ctx}")
        self._check_ids(ids)
        stream_id = self._generation.begin()
        found = np.empty((len(ids), self._n_vocab), np.float32)
        self.reset()
        try:
            for i, token in enumerate(ids):
                with self._claims.lock:
                    decoder = self._claims.get_for(stream_id)
                    if not decoder.decode(token):
                        raise EngineError("the engine was closed before its logits were known")
                    found[i] = decoder.logits[: self._n_vocab]
                if progress is not None:
                    progress(i + 1, len(ids))
        finally:
            with self._claims.lock:
                if (held := self._claims.held) is not None:
                    held.truncate(0)
        return found

    # ---- state --------------------------------------------------------------------------------

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> int:
        """The used part of every KV tensor in order of name."""
        import numpy as np

        with self._claims.lock:
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

        with self._claims.lock:
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
        with self._claims.lock:
            return self._claims.get().reusable(tokens)

    def reset(self) -> None:
        with self._claims.lock:
            self._claims.get().truncate(0)

    def describe(self) -> EngineInfo:
        decoder, identity = self._claims.get(), self._identity
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
                "can_close": self._generation.closer.can_close,
                "can_abort_prefill": True,
                "aborts_inside_a_step": self._graph.can_cancel,
                "can_save_prefix": True,
            },
        )


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
