"""The runtimes of any network: onnxruntime; ai-edge-litert or else tflite-runtime."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as installed
from typing import Any

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
from boardfit.edge.types import EngineInfo
from boardfit.edge.units import MIB, printable

_PROCESS_BYTES = 80 * MIB
_TFLITE_PACKAGES = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}


def open_network(path: Source, n_threads: int, *, check_memory: bool = True) -> Network:
    """Check the file, check the memory, load. Raises InputError or UnsafeInputError for a broken
    file, EngineMissingError without a runtime, UnsupportedModelError for an operator that it lacks.
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
        kinds = {"float": "float32", "double": "float64"}
        self.inputs = tuple(
            InputSpec(i.name, kinds.get(kind, kind), tuple(i.shape))
            for i in self._session.get_inputs()
            for kind in [i.type.removeprefix("tensor(").removesuffix(")")]
        )
        facts = {"providers": self._session.get_providers(), "operators": model.ops}
        version, quant = onnxruntime.__version__, _weights(model.tensors)
        self.info = describe_runtime("onnxruntime", version, n_threads, quant, facts)
        self._feeds: dict[str, Any] = {}
        self._outputs: list[Any] = []

    def prepare(self, values: Mapping[str, Any]) -> None:
        """Take the inputs of the runs to come."""
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
        """The outputs of the latest run, as numpy arrays."""
        return self._outputs

    def close(self) -> None:
        self._session, self._outputs, self._feeds = None, [], {}


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
        self._path, self._runtime = path, runtime
        with self._load_errors():
            self._interpreter: Any = interpreter.Interpreter(
                model_path=os.fspath(path), num_threads=n_threads
            )
            self._details = self._interpreter.get_input_details()
            if not any(-1 in d["shape_signature"] for d in self._details):
                self._interpreter.allocate_tensors()
        self.inputs = tuple(
            InputSpec(
                d["name"],
                d["dtype"].__name__.rstrip("_"),
                tuple(None if n < 0 else int(n) for n in d["shape_signature"]),
            )
            for d in self._details
        )
        facts = {"providers": ["XNNPACK"], "operators": dict.fromkeys(header.operators, 1)}
        name = _TFLITE_PACKAGES[package]
        self.info = describe_runtime(name, version, n_threads, header.quant, facts)

    @contextmanager
    def _load_errors(self) -> Iterator[None]:
        """Put what the interpreter raises and prints into words."""
        with captured_stderr() as errors:
            failed = ""
            try:
                yield
            except (RuntimeError, ValueError) as error:
                failed = self._path.name_path(str(error))
        if failed:
            raise tflite_load_error(self._path.name, self._runtime, failed, errors)

    def prepare(self, values: Mapping[str, Any]) -> None:
        with self._load_errors():
            for detail, spec in zip(self._details, self.inputs, strict=True):
                if None in spec.shape:
                    shape = values[spec.name].shape
                    self._interpreter.resize_tensor_input(detail["index"], shape)
            self._interpreter.allocate_tensors()
            for detail in self._details:
                self._interpreter.set_tensor(detail["index"], values[detail["name"]])

    def run(self) -> None:
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise EngineError(
                f"{self._path.name}: {self._runtime} failed: {printable(str(error), 400)}"
            ) from None

    def outputs(self) -> list[Any]:
        return [
            self._interpreter.get_tensor(d["index"]) for d in self._interpreter.get_output_details()
        ]

    def close(self) -> None:
        self._interpreter = None


Network = OnnxNetwork | TfliteNetwork


def describe_runtime(
    name: str, version: str, n_threads: int, quant: str, facts: Mapping[str, Any]
) -> EngineInfo:
    """`facts` are the execution `providers`, and how often each of the `operators` appears."""
    details = {**facts, "operators": dict(sorted(facts["operators"].items()))}
    return EngineInfo(
        name=name, version=version, build=f"{name}/{version}", n_ctx=0, n_threads=n_threads,
        n_batch=1, kv_type="none", quant=quant, details=details,
    )  # fmt: skip


def _weights(tensors: Any) -> str:
    """The element type that most bytes of the weights have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += max(tensor.nbytes, math.prod(tensor.shape))
    return max(sizes, key=sizes.__getitem__, default="none")
