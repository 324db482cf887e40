"""Collect an imatrix: run a text through the engine and observe every matrix product.

The engine's scheduler calls back before and after each operation of the graph. Where it multiplies
a weight matrix, the other operand's squares are added up, per input column and per expert, in the
same order and precision as upstream's `IMatrixCollector` (`tools/imatrix/imatrix.cpp`).
"""

import ctypes
import functools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from boardfit.converters.formats.gguf.imatrix import Imatrix, Sums
from boardfit.converters.formats.gguf.kernels import library_path
from boardfit.converters.imatrix.files import read_imatrix, write_imatrix
from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.engines.model_file import model_file
from boardfit.edge.errors import EngineError, EngineMissingError, InputError, UsageError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.kind import read_regular_text
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.progress import Progress

# Smaller batches are not representative; upstream's threshold.
_MIN_ROWS = 16
_MAX_TEXT_BYTES = 256 * 1024 * 1024
_UBATCH = 512  # upstream's
_F32 = 0


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h; `_Collector.check_layout` compares it with the library."""


_Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.POINTER(_Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
)


def compute(
    model: Source,
    text: Path,
    out: Path,
    *,
    n_ctx: int = 512,
    max_chunks: int | None = None,
    threads: int | None = None,
    process_output: bool = False,
    progress: Progress | None = None,
) -> Imatrix:
    """Run `text` (UTF-8) through the GGUF `model` (F16, BF16 or Q8_0) in chunks of `n_ctx` tokens
    and write `out`. `process_output` includes the output matrix. Raises UsageError for a text
    shorter than two chunks, InputError for a model or text that cannot be read or activations that
    are not finite, EngineMissingError without the engine.
    """
    if n_ctx < _MIN_ROWS:
        raise UsageError(f"n_ctx must be at least {_MIN_ROWS}, got {n_ctx}")
    model = model_file(model)
    read_header(model)  # refuse a hostile file before native code sees it
    content = read_regular_text(text, _MAX_TEXT_BYTES)
    llama = load_engine()
    collector = _Collector(process_output)
    callback = llama.ggml_backend_sched_eval_callback(collector.on_node)
    with open_context(llama, model, n_ctx, threads, callback) as context:
        tokens, bos = tokenize(llama, context, content)
        n_chunks = len(tokens) // n_ctx
        if len(tokens) < 2 * n_ctx:
            raise UsageError(
                f"{text} has {len(tokens)} tokens; at least {2 * n_ctx} are needed for chunks of "
                f"{n_ctx}",
                next_step="Give a longer text (some 100 KiB is usual) or a smaller n_ctx.",
            )
        n_chunks = min(n_chunks, max_chunks or n_chunks)
        for index in range(n_chunks):
            chunk = tokens[index * n_ctx : (index + 1) * n_ctx]
            decode(llama, context, chunk if bos is None else [bos, *chunk[1:]])
            if collector.failure is not None:
                raise collector.failure
            if progress is not None:
                progress(index + 1, n_chunks)
    if not collector.sums:
        raise EngineError(f"the engine multiplied no weight matrix of {model} that we know of")
    write_imatrix(out, collector.sums, datasets=[text.name], n_chunks=n_chunks, chunk_size=n_ctx)
    return read_imatrix(out)


class _Collector:
    """The callback, and what it has added up so far."""

    def __init__(self, process_output: bool) -> None:
        self.sums: dict[str, Sums] = {}
        self.failure: Exception | None = None
        self._process_output = process_output
        self._lib = _ggml()
        self._checked = False

    def on_node(self, node: Any, ask: bool, _user_data: object) -> bool:
        """ggml's `ggml_backend_sched_eval_callback`: asked whether a node is wanted, then given it.
        Nothing may be raised through C, so a failure is kept and stops the graph.
        """
        try:
            tensor = ctypes.cast(node, ctypes.POINTER(_Tensor)).contents
            if not self._checked:
                self._check_layout(tensor)
            if ask:
                return self._is_wanted(tensor)
            self._collect(tensor)
            return True
        except Exception as error:
            self.failure = error
            return False

    def _check_layout(self, tensor: _Tensor) -> None:
        pointer = ctypes.byref(tensor)
        seen = (
            self._lib.ggml_get_name(pointer),
            self._lib.ggml_nelements(pointer),
            self._lib.ggml_get_data(pointer),
        )
        ours = (tensor.name, math.prod(tensor.ne), tensor.data)
        if seen != ours:
            raise EngineError(
                f"the engine's ggml_tensor is laid out otherwise than expected ({seen} != {ours})",
                next_step=f"{install_line('llama', 'llama-cpp-python')} --force-reinstall",
            )
        self._checked = True

    def _op(self, tensor: _Tensor) -> str:
        return bytes(self._lib.ggml_op_name(tensor.op)).decode()

    def _is_wanted(self, tensor: _Tensor) -> bool:
        op = self._op(tensor)
        if op == "MUL_MAT_ID":
            return True
        if op != "MUL_MAT":
            return False
        inputs = tensor.src[1].contents
        name = _weight_name(tensor)
        return (
            inputs.ne[1] >= _MIN_ROWS
            and inputs.type == _F32
            and (name.startswith("blk.") or (self._process_output and name == "output.weight"))
        )

    def _collect(self, tensor: _Tensor) -> None:
        name = _weight_name(tensor)
        weights, inputs = tensor.src[0].contents, tensor.src[1].contents
        rows = self._array(tensor.src[1], np.float32)  # [i3, i2, row, column]
        if self._op(tensor) == "MUL_MAT_ID":
            ids = self._array(tensor.src[2], np.int32)[0, 0]  # [token, slot]
            entry = self._entry(name, weights.ne[2], weights.ne[2], inputs.ne[0])
            _add_experts(entry, rows[0], ids)
        else:
            n_matrices = weights.ne[2] * weights.ne[3]
            entry = self._entry(name, n_matrices, 1, inputs.ne[0])
            for i3 in range(inputs.ne[3]):
                for i2 in range(inputs.ne[2]):
                    matrix = (i3 % weights.ne[3]) * weights.ne[2] + i2 % weights.ne[2]
                    _add_squares(entry.values[matrix], rows[i3, i2])
            entry.counts[:] += inputs.ne[1] * inputs.ne[2] * inputs.ne[3] // n_matrices
        if not np.isfinite(entry.values).all():
            raise InputError(
                f"the activations that go into {name} are not finite: the model is damaged"
            )

    def _entry(self, name: str, n_matrices: int, n_counts: int, n_per_row: int) -> Sums:
        entry = self.sums.get(name)
        if entry is None:
            entry = self.sums[name] = Sums(
                np.zeros((n_matrices, n_per_row), np.float32), np.zeros(n_counts, np.int64)
            )
        if entry.values.shape != (n_matrices, n_per_row):
            raise EngineError(f"{name} is multiplied as two different shapes")
        return entry

    def _array(self, pointer: Any, dtype: Any) -> np.ndarray:
        """A tensor's values as `[ne3, ne2, ne1, ne0]`, copied from where the backend has them."""
        tensor = pointer.contents
        buffer = np.empty(self._lib.ggml_nbytes(pointer), np.uint8)
        self._lib.ggml_backend_tensor_get(pointer, buffer.ctypes.data, 0, buffer.nbytes)
        return np.lib.stride_tricks.as_strided(
            buffer.view(dtype), tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1], writeable=False
        )


def _add_squares(total: np.ndarray, rows: np.ndarray) -> None:
    """`total += row²` for each row in turn, in float32, as upstream adds."""
    stacked = np.empty((len(rows) + 1, rows.shape[1]), np.float32)
    stacked[0] = total
    np.multiply(rows, rows, out=stacked[1:])
    np.add.reduce(stacked, axis=0, out=total)


def _add_experts(entry: Sums, rows: np.ndarray, ids: np.ndarray) -> None:
    """`rows` `[token, slot or 1, column]` went to the experts `ids` `[token, slot]`."""
    n_slots = rows.shape[1]
    chosen = ids.T.reshape(-1)  # slot by slot, as upstream walks
    slot, token = np.divmod(np.arange(chosen.size), len(ids))
    for expert in np.unique(chosen):
        if not 0 <= expert < len(entry.counts):
            raise EngineError(f"a token was sent to expert {expert} of {len(entry.counts)}")
        picked = np.flatnonzero(chosen == expert)
        _add_squares(entry.values[expert], rows[token[picked], slot[picked] % n_slots])
        entry.counts[expert] += len(picked)


def _weight_name(tensor: _Tensor) -> str:
    """`CUDA0#blk.0.attn_k.weight#0` → `blk.0.attn_k.weight`: backends decorate names."""
    name = bytes(tensor.src[0].contents.name).decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def _ggml() -> Any:
    lib = ctypes.CDLL(str(library_path()))
    pointer = ctypes.c_void_p
    for name, result in (
        ("ggml_get_name", ctypes.c_char_p),
        ("ggml_nelements", ctypes.c_int64),
        ("ggml_nbytes", ctypes.c_size_t),
        ("ggml_get_data", ctypes.c_void_p),
    ):
        function = getattr(lib, name)
        function.argtypes, function.restype = [pointer], result
    lib.ggml_op_name.argtypes, lib.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
    lib.ggml_backend_tensor_get.argtypes = [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]
    lib.ggml_backend_tensor_get.restype = None
    return lib


def load_engine() -> Any:
    """The low-level interface. Raises EngineMissingError, with the pip line, without it."""
    try:
        import llama_cpp.llama_cpp as llama
    except ImportError as error:
        raise EngineMissingError(
            f"computing an imatrix needs the engine llama-cpp-python: {error}",
            next_step=install_line("llama", "llama-cpp-python"),
        ) from None
    return llama


@functools.cache
def _silence(llama: Any) -> Any:
    """Return a log callback that prints nothing. Cached, because the engine keeps the pointer."""
    return llama.llama_log_callback(lambda _level, _text, _data: None)


@contextmanager
def open_context(
    llama: Any, path: OpenedFile, n_ctx: int, threads: int | None, callback: Any
) -> Iterator[Any]:
    """A context that calls back for every node; all of it is freed on the way out."""
    llama.llama_log_set(_silence(llama), None)
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise EngineError(f"the engine cannot load {path}")
    try:
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(_UBATCH, n_ctx)
        params.n_threads = params.n_threads_batch = threads or os.cpu_count() or 1
        params.cb_eval = callback
        context = llama.llama_init_from_model(model, params)
        if not context:
            raise EngineError(f"the engine cannot open {path} with a context of {n_ctx}")
        try:
            yield context
        finally:
            llama.llama_free(context)
    finally:
        llama.llama_model_free(model)


def tokenize(llama: Any, context: Any, content: str) -> tuple[list[int], int | None]:
    """Tokens of the whole text, and the one that every chunk begins with if the model has it."""
    vocab = llama.llama_model_get_vocab(llama.llama_get_model(context))
    data = content.encode()
    capacity = len(data) + 16
    for _ in range(2):  # a negative answer is the number of tokens that need room
        tokens = (llama.llama_token * capacity)()
        n = llama.llama_tokenize(vocab, data, len(data), tokens, capacity, True, False)
        if n >= 0:
            break
        capacity = -n
    else:
        raise EngineError(f"the engine could not tokenize the text ({n})")
    bos = llama.llama_vocab_bos(vocab) if llama.llama_vocab_get_add_bos(vocab) else None
    return list(tokens[:n]), bos


def decode(llama: Any, context: Any, tokens: list[int]) -> None:
    """One chunk from an empty cache. Outputs are asked for everywhere: where none are, the engine
    drops rows in the last layer and their activations would be missed.
    """
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = True
        status = llama.llama_decode(context, batch)
    finally:
        llama.llama_batch_free(batch)
    if status != 0:
        raise EngineError(f"the engine could not evaluate a chunk of text (status {status})")
