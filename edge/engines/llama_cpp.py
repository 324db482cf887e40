"""llama.cpp on its C interface: what `edge.types.Engine` promises, with little between.

Per token, Python makes four native calls (decode, sample, end of generation?, piece) on buffers
that exist already. Everything else happens once per stream.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.engines import llama_library as library
from edge.engines.abort import TILE, UNFUSED_TILE, ChunkSizer, StopWatcher
from edge.engines.attention import quicker_attention
from edge.engines.fit import available_bytes, check_fits, estimate_bytes, most_heads
from edge.engines.kv_state import count_to_save, fingerprint, mapped_state, write_state
from edge.engines.llama_checks import check_graph, check_layers, check_tokens_unique
from edge.engines.llama_closing import Closer
from edge.engines.llama_context import ABORTED, NO_SLOT, OK, LlamaContext
from edge.engines.llama_sampler import Sampler
from edge.engines.llama_vocab import Vocab
from edge.engines.lookup import Gain, Guesser
from edge.engines.settings import DEFAULT_N_CTX, EngineSettings
from edge.engines.text_stream import TextStream
from edge.errors import (
    EngineError,
    InputError,
    UnsupportedModelError,
    UsageError,
)
from edge.gguf import GgufHeader, read_header
from edge.types import (
    EngineInfo,
    FinishReason,
    GenerationConfig,
    Message,
    StreamStart,
    TokenEvent,
)

NAME = "llama_cpp"


class LlamaCppEngine:
    """One model and one context. Calls may come from any thread, one at a time; `close` may come
    while a stream runs on another thread: the stream then ends.
    """

    def __init__(
        self,
        lib: Any,
        context: LlamaContext,
        path: Path,
        header: GgufHeader,
        settings: EngineSettings,
        n_ctx: int,
    ) -> None:
        self._lib, self._path, self._header, self._settings = lib, path, header, settings
        self._context: LlamaContext | None = context
        self._is_closing = False
        self._lock = threading.Lock()  # held during native calls on the context
        self._vocab_lock = threading.Lock()  # the same for the vocabulary: `count` need not wait
        self._abort = context.abort
        # The library rounds up; what was asked for is the limit.
        self._n_ctx = min(n_ctx, int(lib.llama_n_ctx(context.handle)))
        self._vocab = Vocab(lib, lib.llama_model_get_vocab(context.model))
        # A GPU looks at the abort flag between steps only.
        n_nodes = 1 if lib.llama_supports_gpu_offload() else count_nodes(header)
        self._chunks = ChunkSizer(
            context.n_batch,
            n_nodes,
            settings.prefill_chunk,
            shared=context.adapts_threads,
            tile=UNFUSED_TILE if settings.flash_attn == "off" else TILE,
        )
        self._gain = Gain(context.n_draft) if context.n_draft else None
        self._stream_id = 0
        self._is_streaming = False
        self._last_start: StreamStart | None = None
        self._fingerprint: str | None = None

    # ---- open and close -----------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: Path,
        settings: EngineSettings,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> LlamaCppEngine:
        """Check the file, check the memory, load. See `edge.engines.open_engine` for errors."""
        header = read_header(path)
        if header.split_count > 1:
            raise UnsupportedModelError(
                f"{path}: one part of a model in {header.split_count} files",
                next_step="edge build makes one file of it",
            )
        check_layers(path, header)
        check_graph(path, header, settings.kv_type)
        if settings.check_vocabulary:
            check_tokens_unique(path)
        n_ctx = choose_n_ctx(header, settings)
        free: int | None = None
        if settings.check_memory:
            need = settings.need_bytes or estimate_bytes(path, header, n_ctx, settings)
            available = available_bytes()
            check_fits(need, available, path.name)
            free = available - need
        if settings.flash_attn == "quicker":
            chosen = quicker_attention(settings, n_ctx, most_heads(path, header), free)
            settings = settings.replace(flash_attn=chosen)
        lib = library.load_library()
        library.silence(lib)
        library.clear_log()
        context = LlamaContext.open(lib, path, n_ctx, settings, progress)
        return cls(lib, context, path, header, settings, n_ctx)

    def close(self) -> None:
        """Free the engine's memory. Calling it twice, or during a stream, is fine."""
        self._is_closing = True
        self._abort.set()  # a running graph ends at its next node
        with self._lock, self._vocab_lock:
            if self._context is not None:
                self._context.free()
                self._context = None

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_abort"):
            self.close()

    def _open_context(self) -> LlamaContext:
        if self._context is None:
            raise EngineError("the engine is closed")
        return self._context

    # ---- text ---------------------------------------------------------------------------------

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def header(self) -> GgufHeader:
        """The checked header of the file that was loaded."""
        return self._header

    @property
    def has_template(self) -> bool:
        """Whether the model says how a conversation is written; `render` needs it."""
        return bool(self._header.text("tokenizer.chat_template"))

    def count(self, text: str) -> int:
        return len(self.tokenize(text))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        with self._vocab_lock:
            self._open_context()
            return self._vocab.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        with self._vocab_lock:
            self._open_context()
            return self._vocab.detokenize(tokens)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a plain text to be continued, beginning-of-text token included where the
        vocabulary asks for it.
        """
        return self._vocab.with_bos(self.tokenize(text))

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> list[int]:
        """Raises UnsupportedModelError if the model has no chat template."""
        from edge.template import render  # brings jinja2: only who chats pays for it

        self._open_context()
        template = self._header.text("tokenizer.chat_template")
        if not template:
            raise UnsupportedModelError(
                f"{self._path.name} has no chat template: it is a base model, which continues text",
                next_step="edge run --raw MODEL PROMPT",
            )
        text = render(
            template,
            [message.to_dict() for message in messages],
            bos_token=self._vocab.bos_text,
            eos_token=self._vocab.eos_text,
            add_generation_prompt=generate,
        )
        # Most templates write BOS themselves: `with_bos` adds it only where it is not there.
        return self._vocab.with_bos(self.tokenize(text, special=True))

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
        context = self._open_context()
        if not self._is_streaming:
            context.stream_begins()
        return context.threads_now

    def _generate(
        self,
        prompt: list[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        t_start_ns: int,
    ) -> Iterator[TokenEvent]:
        stream_id = self._begin()
        vocab, text, n_out = self._vocab, TextStream(config.stop), 0
        with (
            Sampler(self._lib, config, vocab.n_tokens, prompt) as sampler,
            Closer(self._lib, vocab) as closer,
            StopWatcher(stop, self._abort.set, self._open_context().give_up_if_stuck) as watcher,
            self._computing(),
        ):
            with self._lock:
                n_reused = self._claimed(stream_id).keep_prefix(prompt)
            if not self._prefill(stream_id, prompt, watcher):
                yield _last(text, "aborted")
                return
            t_ns = t_prefill_ns = time.monotonic_ns()
            self._last_start = StreamStart(len(prompt), n_reused, t_start_ns, t_prefill_ns)
            guesser = self._guesser(config, prompt)
            while True:
                with self._lock:
                    context = self._claimed(stream_id)
                    pressure = config.pressure() if config.pressure else 0.0
                    chosen_by = closer if pressure > 0 and closer.can_close else sampler
                    index = guesser.index if guesser else -1
                    token = chosen_by.sample(context.handle, pressure, index)
                    t_before_ns, t_ns = t_ns, time.monotonic_ns()
                    ended = not config.ignore_eos and vocab.is_eog(token)
                    piece = vocab.piece(token)
                    is_cached = False
                    n_cached = len(context.cached)
                    if guesser is not None:
                        # The token itself does not count as cached yet, guessed or not.
                        n_cached -= guesser.n_left
                        is_cached, n_wrong = guesser.check(token)
                        if n_wrong:
                            context.truncate(n_cached)
                if ended:
                    yield TokenEvent(None, text.flush(), t_ns, "stop")
                    return
                n_out += 1
                shown = text.push(piece)
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
                if watcher.stopped():
                    yield _last(text, "aborted")
                    return
                if is_cached:
                    continue
                # What may still come behind this token: guesses beyond it would be thrown away.
                room = self._n_ctx - n_cached - 2 if pressure == 0 else 0
                if config.max_tokens > 0:
                    room = min(room, config.max_tokens - n_out - 1)
                guesses = guesser.guess(room) if guesser is not None else []
                if not self._step(stream_id, [token, *guesses], guesser, watcher):
                    yield _last(text, "aborted")
                    return

    def _guesser(self, config: GenerationConfig, prompt: list[int]) -> Guesser | None:
        """Only greedy answers are guessed: there a guess is right or wrong, and right ones change
        nothing.
        """
        is_greedy = config.temperature == 0 and config.repeat_penalty == 1
        return Guesser(prompt, self._gain) if self._gain is not None and is_greedy else None

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """While a stream runs: the cores are ours, as far as others leave them."""
        with self._lock:
            self._open_context().stream_begins()
            self._is_streaming = True
        try:
            yield
        finally:
            self._is_streaming = False
            if self._context is not None:
                self._context.stream_ended()

    def feed(self, tokens: Sequence[int], stop: Callable[[], bool] | None = None) -> bool:
        """Evaluate `tokens` behind what the cache holds and sample nothing: warms a prefix up, and
        is decode alone for benchmarks. False if `stop` ended it.

        Raises InputError if they are none or leave the context.
        """
        have = self._open_context().cached
        prompt = [*have, *tokens]
        if not tokens or len(prompt) > self._n_ctx:
            raise InputError(
                f"cannot evaluate {len(tokens)} tokens behind {len(have)}: "
                f"the context holds {self._n_ctx}"
            )
        self._check_ids(tokens)
        stream_id = self._begin()
        with StopWatcher(stop, self._abort.set) as watcher:
            return self._prefill(stream_id, prompt, watcher)

    def _check_prompt(self, prompt: list[int]) -> None:
        self._open_context()
        if not prompt:
            raise InputError("there is nothing to continue: the prompt has no tokens")
        if len(prompt) >= self._n_ctx:
            raise InputError(
                f"the prompt has {len(prompt)} tokens and the context holds {self._n_ctx}, "
                "one of which must stay free for the answer",
                next_step="shorten the prompt, or open the model with a larger --ctx",
            )
        self._check_ids(prompt)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if min(tokens) < 0 or max(tokens) >= self._vocab.n_tokens:
            raise InputError(
                f"token ids from {min(tokens)} to {max(tokens)}; "
                f"the vocabulary has 0 to {self._vocab.n_tokens - 1}"
            )

    def _begin(self) -> int:
        """Claim the context for a new stream; an older, unfinished one loses it."""
        with self._lock:
            self._open_context()
            self._stream_id += 1
            self._last_start = None
            self._abort.clear()
            return self._stream_id

    def _claimed(self, stream_id: int) -> LlamaContext:
        """The context, if this stream still owns it. The lock must be held."""
        if self._context is None:
            raise EngineError("the engine was closed before this stream ended")
        if stream_id != self._stream_id:
            raise EngineError("another stream was started on this engine before this one ended")
        return self._context

    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        """Evaluate what of `prompt` is not cached yet, in steps. False if stopped on the way."""
        done = 0
        while True:
            if watcher.stopped():
                return False
            with self._lock:
                context = self._claimed(stream_id)
                done = len(context.cached)
                chunk = prompt[done : done + self._chunks.next_size(interruptible=watcher.active)]
                t_ns = time.monotonic_ns()
                code = context.evaluate(chunk)
            if code == ABORTED and self._is_to_repeat(context, watcher):
                continue
            if code != OK:
                return self._stopped_or_raise(code, len(chunk), watcher)
            self._chunks.measured(len(chunk), (time.monotonic_ns() - t_ns) / 1e9)
            if done + len(chunk) == len(prompt):
                return True

    def _step(
        self, stream_id: int, tokens: list[int], guesser: Guesser | None, watcher: StopWatcher
    ) -> bool:
        """Evaluate one generated token, and guesses behind it. False if stopped meanwhile."""
        while True:
            t_ns = time.monotonic_ns()
            with self._lock:
                context = self._claimed(stream_id)
                if len(tokens) == 1:
                    code = context.evaluate_one(tokens[0])
                else:
                    code = context.evaluate(tokens, guesses=True)
            if code != ABORTED or not self._is_to_repeat(context, watcher):
                break
        if code != OK:
            return self._stopped_or_raise(code, len(tokens), watcher)
        if guesser is not None:
            guesser.stepped(tokens[1:], (time.monotonic_ns() - t_ns) / 1e9)
        return True

    def _is_to_repeat(self, context: LlamaContext, watcher: StopWatcher) -> bool:
        """Whether an aborted step was only given up to be done by fewer threads. A stop that came
        meanwhile was cleared with the abort flag, so that it has to be asked for again.
        """
        return context.was_given_up() and not self._is_closing and not watcher.stopped()

    def _stopped_or_raise(self, code: int, n_tokens: int, watcher: StopWatcher) -> bool:
        if code == ABORTED:
            if watcher.error is not None:
                raise watcher.error
            return False
        reason = "found no room in the KV cache" if code == NO_SLOT else f"failed (code {code})"
        raise library.engine_error(f"llama.cpp {reason} while evaluating {n_tokens} tokens")

    # ---- logits -------------------------------------------------------------------------------

    def logits(
        self, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> Any:
        """As `edge.types.LogitsEngine` says; takes memory for a second context meanwhile."""
        from edge.engines.llama_logits import logits_of  # brings numpy

        ids = list(tokens)
        self._open_context()
        if not ids or len(ids) > self._n_ctx:
            raise InputError(f"logits of {len(ids)} tokens; the context holds 1 to {self._n_ctx}")
        self._check_ids(ids)
        stream_id = self._begin()
        with self._lock:
            context = self._claimed(stream_id)
            context.truncate(0)
            return logits_of(
                self._lib,
                context.model,
                self._path.name,
                ids,
                self._settings,
                self._abort,
                progress,
            )

    # ---- state --------------------------------------------------------------------------------

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> int:
        path = Path(path)
        with self._lock:
            context = self._open_context()
            keep = count_to_save(n_tokens, len(context.cached))
            with context.cut_for_now(keep, path.parent):
                write_state(
                    path,
                    self._identity(),
                    context.cached,
                    context.state_bytes,
                    context.save,
                    max_bytes=max_bytes,
                )
            return keep

    def restore_prefix(self, path: Path) -> int:
        with self._lock:
            context = self._open_context()
            with mapped_state(Path(path), self._identity(), self._n_ctx) as (tokens, state):
                if not context.load(state, tokens):
                    raise library.engine_error(f"llama.cpp could not load the state in {path}")
            return len(tokens)

    def _identity(self) -> dict[str, Any]:
        """What a saved state belongs to."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._path, self._header.data_offset)
        return {
            "model": self._fingerprint,
            "engine": NAME,
            "build": self._build(),
            "n_ctx": self._n_ctx,
            "kv_type": self._settings.kv_type,
            "flash_attn": self._settings.flash_attn,
            "swa_full": self._settings.swa_full,
        }

    def reusable(self, tokens: Sequence[int]) -> int:
        with self._lock:
            return self._open_context().reusable(tokens)

    def reset(self) -> None:
        with self._lock:
            self._open_context().truncate(0)

    def _build(self) -> str:
        """The library's own version; the package's stands beside it, for it is the finer one."""
        return f"{self._lib.llama_version().decode('utf-8', 'replace')}/{library.version()}"

    def describe(self) -> EngineInfo:
        lib, context = self._lib, self._open_context()
        return EngineInfo(
            name=NAME,
            version=library.version(),
            build=self._build(),
            n_ctx=self._n_ctx,
            n_threads=context.n_threads,
            n_batch=context.n_batch,
            kv_type=self._settings.kv_type,
            quant=lib.llama_ftype_name(lib.llama_model_ftype(context.model)).decode(),
            details={
                "arch": self._header.arch,
                "n_params": int(lib.llama_model_n_params(context.model)),
                "model_bytes": int(lib.llama_model_size(context.model)),
                "n_ctx_train": int(lib.llama_model_n_ctx_train(context.model)),
                "n_ctx_allocated": int(lib.llama_n_ctx(context.handle)),
                "n_threads_batch": context.n_threads_batch,
                "n_ubatch": int(lib.llama_n_ubatch(context.handle)),
                "use_mmap": self._settings.use_mmap,
                "repack": self._settings.repack,
                "flash_attn": self._settings.flash_attn,
                "can_close": bool(self._vocab.end_tokens),
                "can_abort_prefill": True,
                "n_draft": context.n_draft,
                "n_draft_steps": 0 if self._gain is None else self._gain.n_made,
                "draft_gain": None if self._gain is None else self._gain.value,
                "can_save_prefix": True,
                "gpu_offload": bool(lib.llama_supports_gpu_offload()),
                "cpu_features": library.cpu_features(lib),
            },
        )


def _last(text: TextStream, reason: FinishReason) -> TokenEvent:
    return TokenEvent(None, text.flush(), time.monotonic_ns(), reason)


def count_nodes(header: GgufHeader) -> int:
    """How many times the widest matrix product of a layer fits into the whole graph: what a step
    takes, divided by this, is what its longest node takes. At most three per layer, which leaves
    attention at great depth some room. The output matrix does not count: one token goes through it.
    """
    sizes = [tensor.n_elements for tensor in header.tensors if tensor.name.startswith("blk.")]
    n_layer = header.integer(f"{header.arch}.block_count") or 1
    return max(1, min(sum(sizes) // max(sizes, default=1), 3 * n_layer))


def choose_n_ctx(header: GgufHeader, settings: EngineSettings) -> int:
    """The context to allocate. Raises UsageError for one beyond the trained length."""
    trained = header.integer(f"{header.arch}.context_length")
    if settings.n_ctx is None:
        return min(trained or DEFAULT_N_CTX, DEFAULT_N_CTX)
    if trained and settings.n_ctx > trained:
        raise UsageError(
            f"a context of {settings.n_ctx} tokens was asked for; the model was trained with "
            f"{trained} and gets unreliable beyond",
            next_step=f"--ctx {trained}",
        )
    return settings.n_ctx
