"""The runtimes that run any network: onnxruntime for `.onnx`; ai-edge-litert or tflite-runtime,
whichever is installed, for `.tflite`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import Any, Protocol

from boardfit.edge.bench.network_inputs import InputSpec
from boardfit.edge.disk.opened_file import OpenedFile, Source, linked_folder
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.litert.runtime_errors import captured_stderr
from boardfit.edge.engines.litert.runtime_errors import load_error as tflite_load_error
from boardfit.edge.engines.litert.tflite_check import check_tflite
from boardfit.edge.engines.model_file import model_file
from boardfit.edge.engines.onnx.library import load_error as onnx_load_error
from boardfit.edge.errors import EdgeError, EngineError, EngineMissingError, InputError
from boardfit.edge.files.onnx import read_onnx
from boardfit.edge.requirements import install_line
from boardfit.edge.units import MIB, printable

_PROCESS_BYTES = 80 * MIB
_TFLITE_PACKAGES = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}


@dataclass(frozen=True)
class RuntimeInfo:
    """What runs the network: `providers` are ONNX Runtime's execution providers or TFLite's
    delegates, `operators` how often each operator appears (empty where the format hides it).
    """

    name: str
    version: str
    n_threads: int
    providers: tuple[str, ...]
    operators: Mapping[str, int]
    quant: str


class Network(Protocol):
    """A loaded network."""

    inputs: tuple[InputSpec, ...]
    info: RuntimeInfo

    def prepare(self, values: Mapping[str, Any]) -> None:
        """Take the inputs of the runs to come."""

    def run(self) -> None:
        """One inference, outputs included."""

    def outputs(self) -> list[Any]:
        """The outputs of the latest run, as numpy arrays."""

    def close(self) -> None:
        """Free it."""


def open_network(path: Source, n_threads: int, *, check_memory: bool = True) -> Network:
    """Check the file, check the memory, load.

    Raises InputError or UnsafeInputError for a broken file, EngineMissingError without a runtime,
    UnsupportedModelError, naming the operator and the runtime's version, for an operator that the
    runtime lacks.
    """
    path = model_file(path)
    if path.suffix.lower() == ".onnx":
        return OnnxNetwork(path, n_threads, check_memory)
    if path.suffix.lower() == ".tflite":
        return TfliteNetwork(path, n_threads, check_memory)
    raise InputError(
        f"{path}: expected an .onnx or a .tflite file",
        next_step="give a bundle, a language model, or a network in one of these formats",
    )


class OnnxNetwork:
    """A network in onnxruntime, on the CPU."""

    def __init__(self, path: OpenedFile, n_threads: int, check_memory: bool) -> None:
        model = read_onnx(path)
        if check_memory:
            check_fits(2 * model.nbytes + _PROCESS_BYTES, available_bytes(), path.name)
        if importlib.util.find_spec("onnxruntime") is None:
            raise EngineMissingError(
                "onnxruntime is not installed", next_step=install_line("onnx", "onnxruntime")
            )
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 4
        try:
            with linked_folder(model.files) as folder:
                self._session: Any = onnxruntime.InferenceSession(
                    str(folder / path.name), options, providers=["CPUExecutionProvider"]
                )
        except EdgeError:
            raise
        except Exception as error:  # its own exceptions share no base class but this
            raise onnx_load_error(path.name, str(error)) from None
        self._name = path.name
        self.inputs = tuple(
            InputSpec(i.name, _onnx_type(i.type), tuple(i.shape))
            for i in self._session.get_inputs()
        )
        self.info = RuntimeInfo(
            name="onnxruntime",
            version=onnxruntime.__version__,
            n_threads=n_threads,
            providers=tuple(self._session.get_providers()),
            operators=model.ops,
            quant=_weights(model.tensors),
        )
        self._feeds: dict[str, Any] = {}
        self._outputs: list[Any] = []

    def prepare(self, values: Mapping[str, Any]) -> None:
        self._feeds = dict(values)

    def run(self) -> None:
        try:
            self._outputs = self._session.run(None, self._feeds)
        except Exception as error:
            raise EngineError(
                f"{self._name}: onnxruntime failed: {printable(' '.join(str(error).split()), 400)}",
                next_step="--shape NAME=1x3x224x224 gives the inputs other shapes",
            ) from None

    def outputs(self) -> list[Any]:
        return self._outputs

    def close(self) -> None:
        self._session = None
        self._outputs, self._feeds = [], {}


class TfliteNetwork:
    """A network in a TFLite interpreter, with the XNNPACK delegate that the wheels bring."""

    def __init__(self, path: OpenedFile, n_threads: int, check_memory: bool) -> None:
        header = check_tflite(path)
        if check_memory:
            check_fits(2 * header.n_bytes + _PROCESS_BYTES, available_bytes(), path.name)
        package = next((p for p in _TFLITE_PACKAGES if importlib.util.find_spec(p)), None)
        if package is None:
            raise EngineMissingError(
                "neither ai-edge-litert nor tflite-runtime is installed",
                next_step=install_line("tflite", "ai-edge-litert"),
            )
        version = installed(_TFLITE_PACKAGES[package])
        runtime = f"{_TFLITE_PACKAGES[package]} {version}"
        interpreter = importlib.import_module(f"{package}.interpreter")
        with captured_stderr() as errors:
            failed = ""
            try:
                self._interpreter: Any = interpreter.Interpreter(
                    model_path=os.fspath(path), num_threads=n_threads
                )
                self._details = self._interpreter.get_input_details()
                if not any(-1 in d["shape_signature"] for d in self._details):
                    self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                failed = path.name_path(str(error))
        if failed:
            raise tflite_load_error(path.name, runtime, failed, errors)
        self._name, self._runtime = path.name, runtime
        self.inputs = tuple(
            InputSpec(
                d["name"],
                d["dtype"].__name__.rstrip("_"),
                tuple(None if n < 0 else int(n) for n in d["shape_signature"]),
            )
            for d in self._details
        )
        counts: dict[str, int] = dict.fromkeys(header.operators, 1)
        self.info = RuntimeInfo(
            name=_TFLITE_PACKAGES[package],
            version=version,
            n_threads=n_threads,
            providers=("XNNPACK",),
            operators=counts,
            quant=header.quant,
        )

    def prepare(self, values: Mapping[str, Any]) -> None:
        with captured_stderr() as errors:
            failed = ""
            try:
                for detail, spec in zip(self._details, self.inputs, strict=True):
                    if any(dim is None for dim in spec.shape):
                        self._interpreter.resize_tensor_input(
                            detail["index"], values[spec.name].shape
                        )
                self._interpreter.allocate_tensors()
                for detail in self._details:
                    self._interpreter.set_tensor(detail["index"], values[detail["name"]])
            except (RuntimeError, ValueError) as error:
                failed = str(error)
        if failed:
            raise tflite_load_error(self._name, self._runtime, failed, errors)

    def run(self) -> None:
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise EngineError(
                f"{self._name}: {self._runtime} failed: {printable(str(error), 400)}"
            ) from None

    def outputs(self) -> list[Any]:
        return [
            self._interpreter.get_tensor(d["index"]) for d in self._interpreter.get_output_details()
        ]

    def close(self) -> None:
        self._interpreter = None


def _onnx_type(text: str) -> str:
    """`tensor(float)` as numpy calls it."""
    kind = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(kind, kind)


def _weights(tensors: Any) -> str:
    """The element type that most bytes of the weights have."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + max(
            tensor.nbytes, math.prod(tensor.shape)
        )
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else "none"
