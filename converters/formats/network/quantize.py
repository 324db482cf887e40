"""Quantize an existing `.onnx` or `.tflite` network to 8 or 4 bits, and compare its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.converters.formats.onnx.recipe import INT8_ACTIVATIONS
from boardfit.converters.formats.tools.environments import tool_python
from boardfit.converters.formats.tools.worker import run_worker
from boardfit.edge.bench.network import file_bytes
from boardfit.edge.disk.rooted import work_beside
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.litert.tflite_check import check_tflite
from boardfit.edge.errors import InputError, UnsupportedModelError, UsageError
from boardfit.edge.files.onnx import read_onnx
from boardfit.edge.terminal.progress import Progress, Say
from boardfit.edge.units import MIB, did_you_mean

RECIPES = {"int8": 8, "int4": 4}
_BASE_BYTES = 400 * MIB


@dataclass(frozen=True)
class NetworkReport:
    """A quantized network. `types` counts weights by kind of storage; `errors` holds, per output,
    `relative_rms`, `max_abs` and `snr_db` against the float network on one made-up input.
    """

    path: Path
    recipe: str
    source_bytes: int
    nbytes: int
    types: Mapping[str, int]
    errors: Mapping[str, Mapping[str, float | None]]

    @property
    def ratio(self) -> float:
        return self.nbytes / self.source_bytes

    @property
    def worst_relative_rms(self) -> float | None:
        """The largest relative error of an output; None where none could be compared."""
        found = [e["relative_rms"] for e in self.errors.values() if e["relative_rms"] is not None]
        return max(found, default=None)


def is_network_file(path: Path) -> bool:
    """Whether `edge build` takes the path as a network to quantize rather than a language model."""
    return path.is_file() and path.suffix.lower() in (".onnx", ".tflite")


def quantize_network(
    path: Path,
    output: Path,
    recipe: str = "int8",
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int | None = None,
    accuracy_level: int = INT8_ACTIVATIONS,
    progress: Progress | None = None,
    say: Say | None = None,
) -> NetworkReport:
    """Quantize the weights of the network `path` into the new folder `output`, which appears whole
    or not at all. `shapes` are those of inputs with open dimensions, for the comparison;
    `accuracy_level` is for the matrices of an ONNX network: `formats.onnx.convert` explains it.

    Raises UsageError for an unknown recipe, InputError or UnsafeInputError for a broken file,
    UnsupportedModelError if there is nothing to quantize, DoesNotFitError if memory is short.
    """
    if recipe not in RECIPES:
        raise UsageError(
            f"unknown recipe {recipe!r} for a network; known: {', '.join(RECIPES)}."
            f"{did_you_mean(recipe, RECIPES)}"
        )
    kind = path.suffix.lower()
    if kind == ".onnx":
        model = read_onnx(path)
        if any(node.op_type == "MatMulNBits" for node in model.nodes):
            raise UnsupportedModelError(f"{path.name} is quantized already")
    elif kind == ".tflite":
        check_tflite(path)
    else:
        raise InputError(f"{path}: expected an .onnx or a .tflite file")
    source_bytes = file_bytes(path)
    check_fits(_BASE_BYTES + 4 * source_bytes, available_bytes(), path.name)
    python = tool_python("onnx" if kind == ".onnx" else "litert", say=say)
    with work_beside(output, "conversion") as work:
        made = work.path / "made"
        made.mkdir()
        result: dict[str, Any] = run_worker(
            python,
            f"boardfit.converters.formats.network.worker.{kind[1:]}",
            {
                "model": str(path.resolve()),
                "output": str(made),
                "bits": RECIPES[recipe],
                "accuracy_level": accuracy_level,
                "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
            },
            progress=progress,
            say=say,
            threads=threads,
        )
        if not result["counts"]:
            raise UnsupportedModelError(
                f"{path.name} has no weights that {recipe} could store: nothing was changed",
                next_step="edge bench measures it as it is",
            )
        nbytes = sum(file.stat().st_size for file in made.iterdir())
        work.publish("made")
    return NetworkReport(
        path=output / str(result["file"]),
        recipe=recipe,
        source_bytes=source_bytes,
        nbytes=nbytes,
        types=result["counts"],
        errors=result["errors"],
    )
