"""Signatures on `tflite_runtime`'s interpreter: the small wheel for old boards (2.14, Python 3.11
at most), whose interpreter gives every signature tensors of its own. Only the positions that a step
wrote differ, so only those are copied, from view to view."""

from __future__ import annotations

import importlib
import os
from typing import Any

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.litert.runtime_errors import captured_stderr, load_error
from boardfit.edge.engines.litert.signature_decoder import (
    SignatureGraph,
    is_kv,
    position_index,
    state_names,
)
from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.units import printable

_PIP_LINE = "pip install tflite-runtime==2.14.0 'numpy<2'  # Python 3.11 or older"


class InterpreterGraph(SignatureGraph):
    """The KV cache of `decode`'s inputs counts; others are brought up to date before they run."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._native = native = interpreter._interpreter
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, dict[str, Any]] = {}
        self._subgraphs: dict[str, int] = {}
        self._current: dict[str, int] = {}  # leading positions of its KV inputs that are right
        for name, tensors in interpreter._get_full_signature_list().items():
            subgraph = native.GetSubgraphIndexFromSignature(name)
            native.AllocateTensors(subgraph)
            self._subgraphs[name], self._current[name] = subgraph, 0
            for key, views in (("inputs", self.inputs), ("outputs", self.outputs)):
                views[name] = {
                    tensor_name: native.tensor(native, index, subgraph)
                    for tensor_name, index in tensors[key].items()
                }
            for view in self.inputs[name].values():
                view[...] = 0

    @classmethod
    def open(cls, path: OpenedFile, n_threads: int, version: str) -> InterpreterGraph:
        """Raises UnsupportedModelError for an operator that the runtime lacks, else EngineError."""
        try:
            interpreter = importlib.import_module("tflite_runtime.interpreter").Interpreter
        except (ImportError, AttributeError) as error:
            # Compiled for numpy 1: with numpy 2 its import fails in one of several ways.
            raise EngineMissingError(
                f"tflite-runtime is installed but does not load: {printable(str(error))}",
                next_step=_PIP_LINE,
            ) from error
        with captured_stderr() as errors:
            try:
                return cls(interpreter(model_path=os.fspath(path), num_threads=n_threads))
            except (ValueError, RuntimeError) as error:
                reason = path.name_path(str(error))
        raise load_error(path.name, f"tflite-runtime {version}", reason, errors)

    def run(self, signature: str, start: int, n: int) -> bool:
        """Run one signature, which writes the positions from `start` to `start + n`."""
        inputs, outputs = self.inputs[signature], self.outputs[signature]
        master, old = self.inputs["decode"], self._current
        states, kv = state_names(inputs, outputs), [name for name in master if is_kv(name)]
        n_ctx = master["mask"].shape[-1]
        for name in old:
            old[name] = min(old[name], start)
        if signature != "decode":
            have = old[signature]
            for name in kv:
                where = position_index(name, master[name], n_ctx, have, start)
                inputs[name][where] = master[name][where]
            old[signature] = start
            for name in states:
                inputs[name][...] = master[name]
        try:
            self._native.Invoke(self._subgraphs[signature])
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"tflite-runtime failed: {printable(str(error))}") from None
        for name in kv:
            where = position_index(name, master[name], n_ctx, start, start + n)
            master[name][where] = outputs[name][where]
        for name in states:
            master[name][...] = outputs[name]
        return True

    def kv_replaced(self) -> None:
        """The KV cache was written from outside."""
        self._current = dict.fromkeys(self._current, 0)

    def close(self) -> None:
        """Free everything. The views must not be used afterwards."""
        self.inputs, self.outputs = {}, {}
        self._interpreter = self._native = None
