"""A loaded model and its context, opened, driven and freed; and the tokens whose KV it holds.

Knows nothing of threads or streams: `boardfit.edge.engines.lease` holds the lock around every call.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.abort import NativeFlag
from boardfit.edge.engines.kv_state import scratch
from boardfit.edge.engines.llama import library
from boardfit.edge.engines.llama.shelves import MIN_KEPT, Shelves
from boardfit.edge.engines.prefix_cache import Fill, SavableCache
from boardfit.edge.engines.settings import EngineSettings, default_threads
from boardfit.edge.engines.threads import ThreadGovernor
from boardfit.edge.errors import EngineError, UnsupportedModelError
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import printable

_FLASH = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_LOAD_PLAIN, _LOAD_MMAP = 0, 1  # enum llama_load_mode
_LAZY_ON = 2  # enum llama_lazy_mode
_NO_VOCAB = 0  # LLAMA_VOCAB_TYPE_NONE

# What llama_decode returns (llama.h).
OK, NO_SLOT, ABORTED = 0, 1, 2


class LlamaContext:
    """One model and one context. Its `sequences` compute; `Shelves` keeps others beside them."""

    def __init__(self, lib: Any, model: Any, handle: Any, settings: EngineSettings) -> None:
        self.lib, self.model, self.handle = lib, model, handle
        self.n_batch = int(lib.llama_n_batch(handle))
        self.abort = NativeFlag()
        attach_abort(lib, handle, self.abort)
        self._decode = lib.llama_decode
        self.n_threads = int(lib.llama_n_threads(handle))
        self.n_threads_batch = int(lib.llama_n_threads_batch(handle))
        # Of no use to a GPU, which the threads only wait for.
        adapt = settings.adapt_threads and not lib.llama_supports_gpu_offload()
        most = max(self.n_threads, self.n_threads_batch)
        self._governor = ThreadGovernor(most) if adapt and most > 1 else None
        self.threads_now = most
        self.memory = lib.llama_get_memory(handle)
        self.n_swa = int(lib.llama_model_n_swa(model))
        self.recurrent = bool(
            lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        )
        self._batch = _Batch(lib, self.n_batch)
        # Wrong guesses are cut off again: recurrent states and sliding windows have no way back.
        can_cut = not (self.recurrent or self.n_swa)
        self.n_draft = min(settings.n_draft, self.n_batch - 1) if can_cut else 0
        # For the same reason their sequences run one at a time: a step may have to be repeated.
        n_seqs, n_slots = int(lib.llama_n_seq_max(handle)), settings.n_slots if can_cut else 1
        #: Whether a prompt's marks are kept: nothing else of it could be reused.
        self.keeps_marks = n_seqs > n_slots and not can_cut
        self.shelves = Shelves(lib, self.memory, range(n_slots, n_seqs), has_past=can_cut)
        self.sequences = [LlamaSequence(self, seq) for seq in range(n_slots)]
        self._can_give_up = can_cut
        self._gave_up = False

    @classmethod
    def open(
        cls,
        lib: Any,
        path: OpenedFile,
        n_ctx: int,
        settings: EngineSettings,
        progress: Progress | None,
    ) -> LlamaContext:
        """Load `path`, whose header was checked. Raises EngineError or UnsupportedModelError."""
        model = load_model(lib, path, settings, progress)
        try:
            refuse_unsuitable(lib, model, path)
            handle = make_context(
                lib, model, path.name, n_ctx, settings, n_outputs=1 + settings.n_draft
            )
            return cls(lib, model, handle, settings)
        except BaseException:
            lib.llama_model_free(model)
            raise

    @property
    def adapts_threads(self) -> bool:
        """Whether the number of threads may change between steps."""
        return self._governor is not None

    def free(self) -> None:
        self.lib.llama_free(self.handle)
        self.lib.llama_model_free(self.model)
        self.handle = self.model = self.memory = None
        for sequence in self.sequences:
            sequence.cached = []

    # ---- evaluation ---------------------------------------------------------------------------

    def evaluate(self, parts: Sequence[Part]) -> int:
        """Evaluate parts of several sequences, at most `n_batch` tokens in all, and wait until that
        is done. Returns OK, or llama_decode's code, and then nothing of any part is cached.
        """
        n = self._batch.fill(parts)
        code = self._run(self._batch.struct, self.n_threads if n == 1 else self.n_threads_batch, n)
        if code == OK and n > 1:
            # A GPU may not be done yet; the measurement of a chunk needs its true time.
            self.lib.llama_synchronize(self.handle)
        for sequence, tokens, _ in parts:
            if code == OK:
                sequence.cached.extend(tokens)
            else:
                sequence.forget_failed_step()
        return code

    def _run(self, batch: Any, n_threads: int, n_tokens: int) -> int:
        """Decode the batch, by at most `n_threads` threads. Returns llama_decode's code."""
        governor = self._governor
        if governor is None:
            return self._decode_in_room(batch)
        governor.before_step(min(n_threads, governor.now), n_tokens)
        code = self._decode_in_room(batch)
        given_up = self._gave_up and code == ABORTED
        if not given_up:
            self.was_given_up()  # it ended all the same
        self._take_threads(governor.gave_up() if given_up else governor.after_step())
        return code

    def _decode_in_room(self, batch: Any) -> int:
        """Decode a batch. What was used longest ago leaves the cache for it."""
        code = int(self._decode(self.handle, batch))
        while code == NO_SLOT and self.make_room():
            code = int(self._decode(self.handle, batch))
        return code

    def make_room(self) -> bool:
        """Drop what was used longest ago and computes nothing. False if there is none."""
        if self.shelves.drop_oldest():
            return True
        idle = [each for each in self.sequences if each.cached and not each.is_busy]
        for sequence in idle:
            sequence.truncate(0)
        return bool(idle)

    def give_up_if_stuck(self) -> None:
        """From another thread: end a step whose threads stand in each other's way."""
        if self._can_give_up and self._governor is not None and self._governor.is_stuck():
            self._gave_up = True
            self.abort.set()

    def was_given_up(self) -> bool:
        """After an aborted step, once: whether it only has to be repeated, by fewer threads."""
        if not self._gave_up:
            return False
        self._gave_up = False
        self.abort.clear()
        return True

    def stream_begins(self) -> None:
        """Look at what others left of the cores since `stream_ended`."""
        if self._governor is not None:
            self._take_threads(self._governor.before_stream())

    def stream_ended(self) -> None:
        """Nothing is computed from now on."""
        if self._governor is not None:
            self._governor.after_stream()

    def _take_threads(self, n: int) -> None:
        if n != self.threads_now:
            self.threads_now = n
            self.lib.llama_set_n_threads(
                self.handle, min(self.n_threads, n), min(self.n_threads_batch, n)
            )


#: A sequence, tokens behind what it holds, and how many of the last of them give logits.
Part = tuple["LlamaSequence", Sequence[int], int]


class _Batch:
    """The library's arrays of one step."""

    def __init__(self, lib: Any, n: int) -> None:
        self._tokens, self._places = (lib.llama_token * n)(), (lib.llama_pos * n)()
        self._one = (ctypes.c_int32 * n)(*[1] * n)
        self._seqs = (lib.llama_seq_id * n)()
        size, kind = ctypes.sizeof(lib.llama_seq_id), ctypes.POINTER(lib.llama_seq_id)
        first = ctypes.addressof(self._seqs)
        rows = [ctypes.cast(first + i * size, kind) for i in range(n)]
        self._rows = (kind * n)(*rows)
        self._wanted: Any = (ctypes.c_int8 * n)()
        arrays = (self._places, self._one, self._rows, self._wanted)
        self.struct = lib.llama_batch(0, self._tokens, None, *arrays)

    def fill(self, parts: Sequence[Part]) -> int:
        """Take the parts in; returns the number of tokens."""
        n = 0
        for sequence, tokens, n_wanted in parts:
            held, end = len(sequence.cached), n + len(tokens)
            self._tokens[n:end] = tokens
            self._places[n:end] = range(held, held + end - n)
            self._seqs[n:end] = [sequence.seq] * (end - n)
            self._wanted[n:end] = [0] * (end - n - n_wanted) + [1] * n_wanted
            n = end
        self.struct.n_tokens = n
        return n


class LlamaSequence(SavableCache):
    """One sequence of a context that computes, and the tokens that it holds."""

    def __init__(self, context: LlamaContext, seq: int) -> None:
        self.context, self.seq, self.cached = context, seq, list[int]()
        self._lib, self._shelves = context.lib, context.shelves

    @property
    def _memory(self) -> Any:
        return self.context.memory

    def forget_failed_step(self) -> None:
        """Attention's KV of a failed step is cut off; elsewhere `truncate` starts over."""
        keep = len(self.cached)
        self.cached.append(-1)  # stands for what the step may have left behind
        self.truncate(keep)

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """As the base class, from whichever sequence shares most. What would be cut off is kept."""
        own = super().reusable(prompt)
        if len(self.cached) - own >= MIN_KEPT:
            self._shelves.keep(self.seq, self.cached)
        seq, tokens = self._find(prompt)
        if len(tokens) > own:
            self._shelves.take(seq, self.seq, tokens)
            self.cached = tokens
        else:
            self.truncate(own)
        return len(self.cached)

    def reusable(self, prompt: Sequence[int]) -> int:
        return max(super().reusable(prompt), len(self._find(prompt)[1]))

    def _find(self, prompt: Sequence[int]) -> tuple[int, list[int]]:
        others = {each.seq: each.cached for each in self.context.sequences if each is not self}
        return self._shelves.find(prompt[:-1], others, self._can_cut)

    def keep_mark(self) -> None:
        """Keep what is cached now: later prompts are likely to begin with it."""
        self._shelves.keep(self.seq, self.cached)

    def forget(self) -> None:
        self._shelves.drop_all()
        self.truncate(0)

    def can_cut(self, keep: int) -> bool:
        """Recurrent states have no past; a sliding window has forgotten what lies behind it."""
        return self._can_cut(self.seq, len(self.cached), keep)

    def _can_cut(self, seq: int, held: int, keep: int) -> bool:
        if keep in (0, held):
            return True
        return not self.context.recurrent and self._has_window(seq, keep)

    def _has_window(self, seq: int, keep: int) -> bool:
        first = self._lib.llama_memory_seq_pos_min(self._memory, seq)
        n_swa = self.context.n_swa
        return first >= 0 and not (n_swa and first > max(0, keep - n_swa))

    def truncate(self, keep: int) -> None:
        """Keep the first `keep` cached tokens, or none where the memory cannot be cut there."""
        if 0 < keep < len(self.cached):
            cut = self._lib.llama_memory_seq_rm(self._memory, self.seq, keep, -1)
            if not cut or not self._has_window(self.seq, keep):
                keep = 0
        others = any(each.cached for each in self.context.sequences if each is not self)
        if keep == 0 and (others or len(self._shelves)):
            self._lib.llama_memory_seq_rm(self._memory, self.seq, -1, -1)
        elif keep == 0:
            self._lib.llama_memory_clear(self._memory, False)
        del self.cached[keep:]

    @contextlib.contextmanager
    def saving(self, keep: int, folder: Path) -> Iterator[tuple[int, Fill]]:
        """Cut the cache within the block; what lies behind waits in a file in `folder`."""
        seq = self._shelves.find_exactly(self.cached[:keep])
        if keep == len(self.cached):
            seq = self.seq
        if seq is not None:
            yield self._state_bytes(seq), lambda target: self._save(target, seq)
            return
        if not self.can_cut(keep):
            raise UnsupportedModelError(
                f"this model's memory cannot be cut to its first {keep} tokens"
            )
        tokens = list(self.cached)
        with scratch(folder, self._state_bytes()) as aside:
            if self._save(aside) != len(aside):
                raise library.engine_error("llama.cpp could not put its state aside")
            try:
                self.truncate(keep)
                yield self._state_bytes(), self._save
            finally:
                self._take(aside, tokens)

    def load(self, state: mmap.mmap, tokens: Sequence[int], path: Path) -> None:
        """Inverse of `saving`. Raises EngineError if the library does not take the state."""
        self._shelves.keep(self.seq, self.cached)
        if not self._take(state, tokens):
            raise library.engine_error(f"llama.cpp could not load the state in {path}")

    def _state_bytes(self, seq: int | None = None) -> int:
        """Bytes that `_save` writes now."""
        seq = self.seq if seq is None else seq
        return int(self._lib.llama_state_seq_get_size(self.context.handle, seq))

    def _save(self, target: mmap.mmap, seq: int | None = None) -> int:
        """Write the state of a sequence; returns bytes written, 0 if it failed."""
        view = (ctypes.c_uint8 * len(target)).from_buffer(target)
        seq, handle = self.seq if seq is None else seq, self.context.handle
        return int(self._lib.llama_state_seq_get_data(handle, view, len(target), seq))

    def _take(self, state: mmap.mmap, tokens: Sequence[int]) -> bool:
        """Replace the running sequence by a checked state. False, and no cache, if refused."""
        self.truncate(0)
        view = (ctypes.c_uint8 * len(state)).from_buffer(state)
        while True:
            handle = self.context.handle
            taken = self._lib.llama_state_seq_set_data(handle, view, len(state), self.seq)
            if taken == len(state):
                self.cached = list(tokens)
                last = self._lib.llama_memory_seq_pos_max(self._memory, self.seq)
                if last == len(tokens) - 1:
                    return True
                self.forget()  # whole, but of other tokens
                return False
            if not self.context.make_room():  # it may only have found no room
                self.truncate(0)
                return False


def load_model(
    lib: Any, path: OpenedFile, settings: EngineSettings, progress: Progress | None
) -> Any:
    """Load the weights of `path`, whose header was checked. Raises EngineError with the library's
    own words, UnsupportedModelError for an architecture that it does not know.
    """
    params = lib.llama_model_default_params()
    params.load_mode = _LOAD_MMAP if settings.use_mmap else _LOAD_PLAIN
    params.use_extra_bufts = settings.repack
    # Rows of a per-layer embedding table are read when a token needs them. Left to itself, the
    # library reads a table of up to 4 GiB whole, which is more than a board has.
    params.lazy_mode = _LAZY_ON
    if progress is not None:
        report = progress

        def on_progress(share: float, _user_data: object) -> bool:
            report(round(share * 1000), 1000)
            return True

        params.progress_callback = lib.llama_progress_callback(on_progress)
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model and "unknown model architecture" in library.log_tail():
        raise UnsupportedModelError(
            f"{printable(str(path))}: this llama.cpp does not know its architecture",
            next_step=f"a newer engine may: {install_line(library.EXTRA, library.PROJECT)} -U",
        )
    if not model:
        error = library.engine_error(f"llama.cpp could not load {printable(str(path))}")
        raise EngineError(path.name_path(str(error)))
    return model


def refuse_unsuitable(lib: Any, model: Any, path: OpenedFile) -> None:
    """Raise UnsupportedModelError for models that this engine cannot ask for a next token."""
    if not lib.llama_model_has_decoder(model) or lib.llama_model_has_encoder(model):
        reason = "has an encoder; only decoder models generate text here"
    elif lib.llama_model_is_diffusion(model):
        reason = "is a diffusion model, which has no next token"
    elif lib.llama_vocab_type(lib.llama_model_get_vocab(model)) == _NO_VOCAB:
        reason = "holds no vocabulary"
    else:
        return
    raise UnsupportedModelError(f"{printable(str(path))} {reason}")


def make_context(
    lib: Any,
    model: Any,
    name: str,
    n_ctx: int,
    settings: EngineSettings,
    *,
    n_outputs: int = 1,
    embeds: bool = False,
) -> Any:
    """A context on `model`, with room for the logits of `n_outputs` tokens of one step, or for
    their vectors with `embeds`. Raises EngineError with the library's own words.
    """
    params = lib.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = min(settings.n_batch, n_ctx)
    params.n_ubatch = min(settings.n_ubatch, params.n_batch)
    # Logits of few tokens are read. Left at n_batch, buffers for n_ubatch x n_vocab logits
    # would be reserved: 300 MiB for a vocabulary of 150,000.
    params.n_seq_max = settings.n_slots + settings.n_shelves
    params.kv_unified = params.n_seq_max > 1  # sequences share cells
    params.n_outputs_max = max(n_outputs, params.n_seq_max)
    params.n_threads = settings.n_threads or default_threads()
    params.n_threads_batch = settings.n_threads_batch or params.n_threads
    params.flash_attn_type = _FLASH[settings.flash_attn]
    params.type_k = params.type_v = getattr(lib, f"GGML_TYPE_{settings.kv_type.upper()}")
    params.swa_full = settings.swa_full
    params.no_perf = True
    params.embeddings = embeds  # pooled as the model's file states
    handle = lib.llama_init_from_model(model, params)
    if not handle:
        raise library.engine_error(
            f"llama.cpp could not make a context of {n_ctx} tokens for {printable(name)}"
        )
    return handle


def attach_abort(lib: Any, handle: Any, flag: NativeFlag) -> None:
    """Have graphs of the context `handle` look at `flag` after every node (ggml-cpu.c)."""
    callback = ctypes.cast(flag.function, lib.ggml_abort_callback)
    lib.llama_set_abort_callback(handle, callback, ctypes.c_void_p(flag.address))
