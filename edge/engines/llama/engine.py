"""The engine `llama_cpp`: `boardfit.edge.types.Engine` on llama.cpp's C interface.

Per token, Python makes four native calls (decode, sample, end of generation?, piece) on buffers
that exist already. Everything else happens once per stream.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.abort import TILE, UNFUSED_TILE, ChunkSizer
from boardfit.edge.engines.base import EngineBase, LogitRows
from boardfit.edge.engines.generation import AnswerStream
from boardfit.edge.engines.kv_state import fingerprint
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.llama import library
from boardfit.edge.engines.llama.context import (
    ABORTED,
    NO_SLOT,
    OK,
    LlamaContext,
    LlamaSequence,
    Part,
)
from boardfit.edge.engines.llama.ready import check_file, check_memory
from boardfit.edge.engines.llama.sampler import LlamaCloser, LlamaSampler
from boardfit.edge.engines.llama.vocab import Vocab
from boardfit.edge.engines.lookup import Gain, Guesser
from boardfit.edge.engines.settings import DEFAULT_N_CTX, EngineSettings
from boardfit.edge.errors import UnsupportedModelError, UsageError
from boardfit.edge.files.gguf import GgufHeader, read_header
from boardfit.edge.files.gguf.purpose import require_language_model, require_text_only
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import EngineInfo, GenerationConfig

if TYPE_CHECKING:
    from boardfit.edge.engines.constraint import ConstrainedSampler


class LlamaCppEngine(EngineBase[LlamaSequence]):
    """llama.cpp's, on one context: a step serves all its sequences. It may be given up, repeated,
    or hold guesses.
    """

    name = "llama_cpp"
    longer_context = "open the model with a larger --ctx"

    def __init__(
        self,
        lib: Any,
        context: LlamaContext,
        path: OpenedFile,
        header: GgufHeader,
        settings: EngineSettings,
        n_ctx: int,
    ) -> None:
        self._lib, self._path, self.header, self._settings = lib, path, header, settings
        abort = context.abort
        lease = Lease(
            context.sequences, interrupt=abort.set, allow=abort.clear, release=context.free
        )
        vocab = Vocab(
            lib, lib.llama_model_get_vocab(context.model), header.text("tokenizer.chat_template")
        )
        # A GPU looks at the abort flag between steps only.
        n_nodes = 1 if lib.llama_supports_gpu_offload() else count_nodes(header)
        chunks = ChunkSizer(
            context.n_batch,
            n_nodes,
            settings.prefill_chunk,
            shared=context.adapts_threads,
            tile=UNFUSED_TILE if settings.flash_attn == "off" else TILE,
        )
        # The library rounds up; what was asked for is the limit.
        n_ctx = min(n_ctx, int(lib.llama_n_ctx(context.handle)))
        super().__init__(path.name, lease, vocab, n_ctx)
        self._vocab, self._chunks = vocab, chunks
        self._gain = Gain(context.n_draft) if context.n_draft else None
        self._n_streaming = 0
        self._fingerprint: str | None = None

    @classmethod
    def open(
        cls, path: OpenedFile, settings: EngineSettings, *, progress: Progress | None = None
    ) -> LlamaCppEngine:
        """Check the file, check the memory, load. See `boardfit.edge.engines.open_engine`."""
        header = read_header(path)
        if header.split_count > 1:  # first of all: later parts name no architecture
            raise UnsupportedModelError(
                f"{path}: one part of a model in {header.split_count} files",
                next_step="edge build makes one file of it",
            )
        require_language_model(header, path)
        require_text_only(header, path)
        settings = check_file(path, header, settings)
        n_ctx = choose_n_ctx(header, settings)
        settings = check_memory(path, header, settings, n_ctx)
        lib = library.load_library()
        library.silence(lib)
        context = LlamaContext.open(lib, path, n_ctx, settings, progress)
        return cls(lib, context, path, header, settings, n_ctx)

    @property
    def threads_now(self) -> int:
        """Threads that compute, or would if a stream began now."""
        context = self._lease.get().context
        if not self._n_streaming:
            context.stream_begins()
        return context.threads_now

    def _compute_logits(self, stream_id: int, tokens: list[int], found: LogitRows) -> None:
        """Takes memory for a second context meanwhile."""
        from boardfit.edge.engines.llama.logits import read_logits  # brings numpy

        with self._lease.lock:
            sequence = self._lease.get_for(stream_id) or self._lease.get()
            sequence.truncate(0)
            name, settings, context = self._path.name, self._settings, sequence.context
            read_logits(self._lib, context.model, name, tokens, settings, context.abort, found)

    @contextlib.contextmanager
    def _samplers(
        self, config: GenerationConfig, prompt: list[int]
    ) -> Iterator[tuple[LlamaSampler, LlamaCloser | None]]:
        vocab = self._vocab
        with (
            LlamaSampler(self._lib, config, vocab.n_tokens, prompt) as sampler,
            LlamaCloser(self._lib, vocab) as closer,
        ):
            with self._lease.lock:
                if not self._n_streaming:  # while a stream runs the cores are ours
                    self._lease.get().context.stream_begins()
                self._n_streaming += 1
            try:
                yield sampler, closer if vocab.end_tokens else None
            finally:
                self._n_streaming -= 1
                if not self._n_streaming and (sequence := self._lease.held) is not None:
                    sequence.context.stream_ended()

    def _logits(self, held: LlamaSequence) -> Any:
        return held.context.handle

    def _mask(self, source: Any, index: int, allowed: Any) -> Any:
        import numpy as np

        logits = np.ctypeslib.as_array(
            self._lib.llama_get_logits_ith(source, index), (self._vocab.n_tokens,)
        )
        logits[~allowed] = -np.inf
        return source

    def _make_guesser(
        self, config: GenerationConfig, prompt: list[int], bound: ConstrainedSampler | None
    ) -> Guesser | None:
        """Only greedy answers are guessed: there a guess is right or wrong, and right ones change
        nothing.
        """
        is_greedy = config.temperature == 0 and config.repeat_penalty == 1
        gain = self._gain if is_greedy else None
        return Guesser(prompt, gain, bound) if gain is not None or bound is not None else None

    def _get_look(self) -> Callable[[], None]:
        return self._lease.get().context.give_up_if_stuck

    def _step(self, streams: list[AnswerStream]) -> bool:
        context = self._lease.get().context
        while True:
            taken = self._take_parts(streams)
            parts, t_ns = [part for _, part in taken], time.monotonic_ns()
            code = context.evaluate(parts)
            if code == OK:
                break
            if code == ABORTED:
                given_up = context.was_given_up()
                if not given_up or any(each.watcher.has_fired for each in streams):
                    return False
                self._lease.allow()
            elif code != NO_SLOT or not self._hold_newest(streams[0]):
                reason = "found no room in the KV cache" if code == NO_SLOT else f"failed ({code})"
                raise library.engine_error(f"llama.cpp {reason} in a step of {len(parts)} parts")
            streams = [each for each in streams if not each.is_held]
        self._learn(taken, (time.monotonic_ns() - t_ns) / 1e9)
        self._choose_all(taken)
        return True

    def _hold_newest(self, asked: AnswerStream) -> bool:
        """Have the newest other stream that holds cells wait until another one has ended. It then
        reads again what it held. False if there is none.
        """
        for stream in reversed(self._streams):
            sequence = self._lease.get_for(stream.id)
            if stream is not asked and sequence is not None and sequence.cached:
                sequence.truncate(0)
                stream.is_held = True
                return True
        return False

    def _take_parts(self, streams: list[AnswerStream]) -> list[tuple[AnswerStream, Part]]:
        """What the next step evaluates: a token for each stream, and a slice of one prompt. Guesses
        where a stream is alone.
        """
        taken: list[tuple[AnswerStream, Part]] = []
        reader: tuple[AnswerStream, LlamaSequence] | None = None
        for stream in streams:
            sequence = self._lease.get_for(stream.id)
            assert sequence is not None
            n_new = len(stream.known) - len(sequence.cached)
            if n_new == 1:
                taken.append((stream, (sequence, stream.known[-1:], 1)))
            elif reader is None:
                reader = stream, sequence
        if reader is not None:
            taken.append((reader[0], self._slice(*reader, len(taken))))
        elif len(taken) == 1 and streams[0].guesses:
            stream, guesser = streams[0], streams[0].guesser
            tokens = [stream.known[-1], *stream.guesses]
            n_wanted = 1 if guesser is not None and guesser.is_forced else len(tokens)
            taken[0] = stream, (taken[0][1][0], tokens, n_wanted)
        return taken

    def _slice(self, stream: AnswerStream, sequence: LlamaSequence, n_beside: int) -> Part:
        done, context = len(sequence.cached), sequence.context
        n = self._chunks.next_size(interruptible=stream.watcher.active, n_beside=n_beside)
        marks = stream.config.marks if context.keeps_marks else ()
        end = min((mark for mark in marks if done < mark < done + n), default=done + n)
        tokens = stream.known[done:end]
        return sequence, tokens, int(done + len(tokens) == len(stream.known))

    def _learn(self, taken: list[tuple[AnswerStream, Part]], seconds: float) -> None:
        n, (stream, (_, tokens, n_wanted)) = len(taken), taken[-1]
        is_decode = n_wanted > 0 and (len(tokens) == 1 or tokens[1:] == stream.guesses)
        self.n_shared += n > 1
        if not is_decode:
            self._chunks.measured(len(tokens) + n - 1, seconds)
        elif len(tokens) == 1:
            self._sharing.observe(n, seconds)
        if is_decode and n == 1 and stream.guesser is not None:
            stream.guesser.stepped(stream.guesses, seconds)

    def _choose_all(self, taken: list[tuple[AnswerStream, Part]]) -> None:
        """Choose tokens before the next step overwrites the logits."""
        n_before = 0
        for stream, (sequence, tokens, n_wanted) in taken:
            n_before += len(tokens)
            if sequence.context.keeps_marks and len(sequence.cached) in stream.config.marks:
                sequence.keep_mark()
            if n_wanted:
                stream.index = n_before - n_wanted
                self._choose(stream, sequence)

    def _identify(self) -> dict[str, Any]:
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._path, self.header.data_offset)
        return {
            "model": self._fingerprint,
            "engine": self.name,
            "build": self._build(),
            "n_ctx": self.n_ctx,
            "kv_type": self._settings.kv_type,
            "flash_attn": self._settings.flash_attn,
            "swa_full": self._settings.swa_full,
        }

    def _build(self) -> str:
        """The library's own version; the package's stands beside it, for it is the finer one."""
        return f"{self._lib.llama_version().decode('utf-8', 'replace')}/{library.version()}"

    def describe(self) -> EngineInfo:
        lib, context, gain = self._lib, self._lease.get().context, self._gain
        return EngineInfo(
            name=self.name,
            version=library.version(),
            build=self._build(),
            n_ctx=self.n_ctx,
            n_threads=context.n_threads,
            n_batch=context.n_batch,
            kv_type=self._settings.kv_type,
            quant=lib.llama_ftype_name(lib.llama_model_ftype(context.model)).decode(),
            details={
                "arch": self.header.arch,
                "n_params": int(lib.llama_model_n_params(context.model)),
                "model_bytes": int(lib.llama_model_size(context.model)),
                "n_ctx_train": int(lib.llama_model_n_ctx_train(context.model)),
                "n_ctx_allocated": int(lib.llama_n_ctx(context.handle)),
                "n_threads_batch": context.n_threads_batch,
                "n_ubatch": int(lib.llama_n_ubatch(context.handle)),
                "use_mmap": self._settings.use_mmap,
                "repack": self._settings.repack,
                "flash_attn": self._settings.flash_attn,
                "can_close": bool(self._vocabulary.end_tokens),
                "can_abort_prefill": True,
                "n_draft": context.n_draft,
                "n_draft_steps": 0 if gain is None else gain.n_made,
                "draft_gain": None if gain is None else gain.value,
                "can_save_prefix": True,
                "n_shelves": int(lib.llama_n_seq_max(context.handle)) - len(context.sequences),
                "n_slots": len(context.sequences),
                "keeps_marks": context.keeps_marks,
                "gpu_offload": bool(lib.llama_supports_gpu_offload()),
                "cpu_features": library.cpu_features(lib),
            },
        )


def count_nodes(header: GgufHeader) -> int:
    """How many times the widest matrix product of a layer fits into the whole graph: what a step
    takes, divided by this, is what its longest node takes. At most three per layer, for attention
    at great depth. The output matrix does not count: one token goes through it.
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
