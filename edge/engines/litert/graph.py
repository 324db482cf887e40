"""A compiled LiteRT model whose tensors live in memory that Python sees, and whose KV cache is
never copied: one buffer per KV tensor serves every signature, as input and output at once.

The runtime's DYNAMIC_UPDATE_SLICE then updates it in place (upstream:
`tflite/kernels/dynamic_update_slice.cc`), which is how LiteRT-LM runs on CPUs too.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from boardfit.edge.disk.opened_file import Source
from boardfit.edge.engines.abort import NativeFlag
from boardfit.edge.engines.litert import library
from boardfit.edge.engines.litert.runtime_errors import captured_stderr, damaged, load_error
from boardfit.edge.engines.litert.signature_decoder import SignatureGraph, is_kv, state_names
from boardfit.edge.errors import EngineError, UnsupportedModelError
from boardfit.edge.files.kind import open_regular
from boardfit.edge.terminal.progress import Progress


class MappedWeights:
    """A part of a file, mapped: where the runtime finds the model. Closed after the graph."""

    def __init__(self, path: Source, offset: int, n_bytes: int) -> None:
        import mmap

        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        file, _ = open_regular(path)
        with file:
            # Copy-on-write, because ctypes only takes addresses of writable memory.
            self._map = mmap.mmap(
                file.fileno(), offset - start + n_bytes, access=mmap.ACCESS_COPY, offset=start
            )
        self._first = ctypes.c_char.from_buffer(self._map, offset - start)
        self.address = ctypes.addressof(self._first)
        self.n_bytes = n_bytes

    def close(self) -> None:
        del self._first
        self._map.close()


class LitertGraph(SignatureGraph):
    """Signatures of one model, whose tensors are numpy views, by signature and name. A KV tensor is
    the same view everywhere.
    """

    can_cancel = True

    def __init__(self, lib: Any, weights: MappedWeights) -> None:
        self._lib, self._weights = lib, weights
        self._run = lib.LiteRtRunCompiledModel
        self._environment = self._model = self._options = self._compiled = ctypes.c_void_p()
        self._buffers: list[ctypes.c_void_p] = []
        self._calls: dict[str, tuple[Any, ...]] = {}
        self._states: dict[str, list[tuple[Any, Any]]] = {}  # old and new view of each
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, dict[str, Any]] = {}
        self.cancel_flag = NativeFlag()

    @classmethod
    def open(
        cls,
        lib: Any,
        weights: MappedWeights,
        *,
        name: str,
        runtime: str,
        n_threads: int,
        cache_path: Path | None,
        report: Progress,
    ) -> LitertGraph:
        """Compile the model in `weights`; `name` and `runtime` are for messages. Weights in the
        kernels' layout are written to `cache_path` at the first opening, and mapped at the next.

        Raises InputError for a damaged model, UnsupportedModelError for an operator that the
        runtime lacks, EngineError if it does not take the model otherwise.
        """
        graph = cls(lib, weights)
        try:
            graph._environment = library.environment(lib)
            report(1, 4)
            source = (graph._environment, weights.address, weights.n_bytes)
            status, graph._model = library.try_create(lib, "LiteRtCreateModelFromBuffer", *source)
            if status != library.OK:
                raise damaged(name, library.status_text(status))
            report(2, 4)
            graph._options = library.cpu_options(lib, n_threads, cache_path)
            with captured_stderr() as errors:
                arguments = (graph._environment, graph._model, graph._options)
                status, graph._compiled = library.try_create(
                    lib, "LiteRtCreateCompiledModel", *arguments
                )
            if status != library.OK:
                raise load_error(name, runtime, library.status_text(status), errors)
            report(3, 4)
            graph.can_cancel = library.attach_cancel(lib, graph._compiled, graph.cancel_flag)
            graph._make_buffers()
            report(4, 4)
        except BaseException:
            graph.close()
            raise
        return graph

    # ---- buffers ------------------------------------------------------------------------------

    def _make_buffers(self) -> None:
        count = ctypes.c_size_t()
        self._check(self._lib.LiteRtGetNumModelSignatures(self._model, ctypes.byref(count)))
        shared: dict[str, tuple[ctypes.c_void_p, Any]] = {}
        for index in range(count.value):
            signature = library.create(self._lib, "LiteRtGetModelSignature", self._model, index)
            text = ctypes.c_char_p()
            self._check(self._lib.LiteRtGetSignatureKey(signature, ctypes.byref(text)))
            name = (text.value or b"").decode("utf-8", "replace")
            tensors = {side: self._tensors(signature, side) for side in ("Input", "Output")}
            names = [{tensor_name for tensor_name, _ in found} for found in tensors.values()]
            states = state_names(*names)
            arguments: list[Any] = [self._compiled, index]
            for side, views in (("Input", self.inputs), ("Output", self.outputs)):
                handles = (ctypes.c_void_p * len(tensors[side]))()
                views[name] = {}
                for i, (tensor_name, kind) in enumerate(tensors[side]):
                    # Memory is one buffer for all signatures; one with positions, which a step adds
                    # to, even for input and output.
                    key = tensor_name if is_kv(tensor_name) else f"{side} {tensor_name}"
                    if is_kv(tensor_name) or tensor_name in states:
                        if key not in shared:
                            shared[key] = self._buffer(kind)
                        handle, view = shared[key]
                        if view.shape != kind.shape:
                            raise UnsupportedModelError(
                                f"{tensor_name} has the shape {view.shape} in one signature and "
                                f"{kind.shape} in {name}"
                            )
                    else:
                        handle, view = self._buffer(kind)
                    handles[i] = handle
                    views[name][tensor_name] = view
                arguments += [len(handles), handles]
            self._calls[name] = tuple(arguments)
            self._states[name] = [
                (self.inputs[name][state], self.outputs[name][state]) for state in states
            ]

    def _tensors(
        self, signature: ctypes.c_void_p, direction: str
    ) -> list[tuple[str, library.TensorType]]:
        lib, count = self._lib, ctypes.c_size_t()
        self._check(
            getattr(lib, f"LiteRtGetNumSignature{direction}s")(signature, ctypes.byref(count))
        )
        found = []
        for i in range(count.value):
            text, kind = ctypes.c_char_p(), library.TensorType()
            get_name = getattr(lib, f"LiteRtGetSignature{direction}Name")
            self._check(get_name(signature, i, ctypes.byref(text)))
            tensor = library.create(
                lib, f"LiteRtGetSignature{direction}TensorByIndex", signature, i
            )
            self._check(lib.LiteRtGetRankedTensorType(tensor, ctypes.byref(kind)))
            found.append(((text.value or b"").decode("utf-8", "replace"), kind))
        return found

    def _buffer(self, kind: library.TensorType) -> tuple[ctypes.c_void_p, Any]:
        """A new zeroed buffer of the runtime and a numpy view of it."""
        import numpy as np

        dtype = library.ELEMENT_TYPES.get(kind.element_type)
        shape = kind.shape
        if dtype is None or any(size < 1 for size in shape):
            raise UnsupportedModelError(
                f"a tensor of element type {kind.element_type} and shape {shape} at the border of "
                "a signature"
            )
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        wanted = (self._environment, library.HOST_MEMORY, ctypes.byref(kind), n_bytes)
        handle = library.create(self._lib, "LiteRtCreateManagedTensorBuffer", *wanted)
        self._buffers.append(handle)
        address = library.create(self._lib, "LiteRtGetTensorBufferHostMemory", handle)
        memory = (ctypes.c_uint8 * n_bytes).from_address(address.value or 0)
        view = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        view[...] = 0
        return handle, view

    def _check(self, status: int) -> None:
        if status != library.OK:
            raise EngineError(f"LiteRT failed: {library.status_text(status)}")

    # ---- running ------------------------------------------------------------------------------

    def run(self, signature: str, start: int = 0, n: int = 0) -> bool:
        """Run one signature on what its inputs hold. False if it was cancelled on the way: the KV
        cache then holds parts of the step, at the step's own positions only.
        """
        status = self._run(*self._calls[signature])
        # The runtime of today calls a cancelled run a failed one.
        if status != library.OK and self.cancel_flag.is_set():
            return False
        self._check(status)
        for old, new in self._states[signature]:
            old[...] = new
        return True

    def cancel(self) -> None:
        self.cancel_flag.set()

    def allow(self) -> None:
        self.cancel_flag.clear()

    def close(self) -> None:
        """Free everything. The views must not be used afterwards."""
        lib = self._lib
        self.inputs, self.outputs, self._calls, self._states = {}, {}, {}, {}
        for destroy, handle in (
            (lib.LiteRtDestroyCompiledModel, self._compiled),
            *((lib.LiteRtDestroyTensorBuffer, buffer) for buffer in self._buffers),
            (lib.LiteRtDestroyOptions, self._options),
            (lib.LiteRtDestroyModel, self._model),
            (lib.LiteRtDestroyEnvironment, self._environment),
        ):
            if handle:
                destroy(handle)
        self._buffers = []
        self._environment = self._model = self._options = self._compiled = ctypes.c_void_p()
        self._weights.close()
