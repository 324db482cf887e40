"""The engine `llama_cpp`: `boardfit.edge.types.Engine` on llama.cpp's C interface.

Per token, Python makes four native calls (decode, sample, end of generation?, piece) on buffers
that exist already. Everything else happens once per stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines import llama_library as library
from boardfit.edge.engines.abort import TILE, UNFUSED_TILE, ChunkSizer
from boardfit.edge.engines.attention import quicker_attention
from boardfit.edge.engines.claims import Claims
from boardfit.edge.engines.fit import available_bytes, check_fits, estimate_bytes, most_heads
from boardfit.edge.engines.kv_state import count_to_save, fingerprint, mapped_state, write_state
from boardfit.edge.engines.llama_checks import check_graph, check_layers, check_tokens_unique
from boardfit.edge.engines.llama_context import LlamaContext
from boardfit.edge.engines.llama_generation import LlamaGeneration
from boardfit.edge.engines.llama_vocab import Vocab
from boardfit.edge.engines.settings import DEFAULT_N_CTX, EngineSettings
from boardfit.edge.errors import (
    InputError,
    UnsupportedModelError,
    UsageError,
)
from boardfit.edge.files.gguf import GgufHeader, read_header
from boardfit.edge.types import (
    EngineInfo,
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
        path: OpenedFile,
        header: GgufHeader,
        settings: EngineSettings,
        n_ctx: int,
    ) -> None:
        self._lib, self._path, self._header, self._settings = lib, path, header, settings
        abort = context.abort
        self._claims = Claims(context, interrupt=abort.set, allow=abort.clear, release=context.free)
        self._vocab_lock = threading.Lock()  # of its own: `count` need not wait for a stream
        # The library rounds up; what was asked for is the limit.
        self._n_ctx = min(n_ctx, int(lib.llama_n_ctx(context.handle)))
        self._vocab = Vocab(lib, lib.llama_model_get_vocab(context.model))
        # A GPU looks at the abort flag between steps only.
        n_nodes = 1 if lib.llama_supports_gpu_offload() else count_nodes(header)
        chunks = ChunkSizer(
            context.n_batch,
            n_nodes,
            settings.prefill_chunk,
            shared=context.adapts_threads,
            tile=UNFUSED_TILE if settings.flash_attn == "off" else TILE,
        )
        self._generation = LlamaGeneration(lib, self._claims, self._vocab, chunks, self._n_ctx)
        self._fingerprint: str | None = None

    # ---- open and close -----------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: OpenedFile,
        settings: EngineSettings,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> LlamaCppEngine:
        """Check the file, check the memory, load. See `boardfit.edge.engines.open_engine` for
        errors.
        """
        header = read_header(path)
        if header.split_count > 1:
            raise UnsupportedModelError(
                f"{path}: one part of a model in {header.split_count} files",
                next_step="edge build makes one file of it",
            )
        check_layers(path, header)
        check_graph(path, header, settings.kv_type)
        settings = library.choose_buffers(header, settings)
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
        with self._vocab_lock:
            self._claims.close()

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

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
            self._claims.get()
            return self._vocab.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        with self._vocab_lock:
            self._claims.get()
            return self._vocab.detokenize(tokens)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a plain text to be continued, beginning-of-text token included where the
        vocabulary asks for it.
        """
        return self._vocab.with_bos(self.tokenize(text))

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> list[int]:
        """Raises UnsupportedModelError if the model has no chat template."""
        from boardfit.edge.template.render import (
            render,  # brings jinja2: only who chats pays for it
        )

        self._claims.get()
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
        return self._generation.stream(prompt, config, stop, t_start_ns)

    @property
    def last_start(self) -> StreamStart | None:
        return self._generation.last_start

    @property
    def threads_now(self) -> int:
        return self._generation.threads_now

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
                next_step="shorten the prompt, or open the model with a larger --ctx",
            )
        self._check_ids(prompt)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if min(tokens) < 0 or max(tokens) >= self._vocab.n_tokens:
            raise InputError(
                f"token ids from {min(tokens)} to {max(tokens)}; "
                f"the vocabulary has 0 to {self._vocab.n_tokens - 1}"
            )

    # ---- logits -------------------------------------------------------------------------------

    def logits(
        self, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> Any:
        """As `boardfit.edge.types.LogitsEngine` says; takes memory for a second context
        meanwhile.
        """
        from boardfit.edge.engines.llama_logits import logits_of  # brings numpy

        ids = list(tokens)
        self._claims.get()
        if not ids or len(ids) > self._n_ctx:
            raise InputError(f"logits of {len(ids)} tokens; the context holds 1 to {self._n_ctx}")
        self._check_ids(ids)
        stream_id = self._generation.begin()
        with self._claims.lock:
            context = self._claims.get_for(stream_id)
            context.truncate(0)
            return logits_of(
                self._lib,
                context.model,
                self._path.name,
                ids,
                self._settings,
                context.abort,
                progress,
            )

    # ---- state --------------------------------------------------------------------------------

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> int:
        path = Path(path)
        with self._claims.lock:
            context = self._claims.get()
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
        with self._claims.lock:
            context = self._claims.get()
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
        with self._claims.lock:
            return self._claims.get().reusable(tokens)

    def reset(self) -> None:
        with self._claims.lock:
            self._claims.get().truncate(0)

    def _build(self) -> str:
        """The library's own version; the package's stands beside it, for it is the finer one."""
        return f"{self._lib.llama_version().decode('utf-8', 'replace')}/{library.version()}"

    def describe(self) -> EngineInfo:
        lib, context, gain = self._lib, self._claims.get(), self._generation.gain
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
                "n_draft_steps": 0 if gain is None else gain.n_made,
                "draft_gain": None if gain is None else gain.value,
                "can_save_prefix": True,
                "gpu_offload": bool(lib.llama_supports_gpu_offload()),
                "cpu_features": library.cpu_features(lib),
            },
        )


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
