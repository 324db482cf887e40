"""`edge build` of an existing `.onnx` or `.tflite` network: its weights in 8 or 4 bits, one folder
per board.

    FOLDER/detector.onnx    the network
    FOLDER/network.json     what it was made of, for which board, how far its outputs moved; hashes

`edge bench FOLDER` checks the hashes and measures it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boardfit.converters.build.jobs import check_devices, check_output, is_output, job_name
from boardfit.converters.formats.base import GGUF
from boardfit.converters.formats.network.quantize import RECIPES, NetworkReport, quantize_network
from boardfit.converters.formats.onnx.convert import accuracy_level
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bench.network import file_bytes
from boardfit.edge.bench.network_folder import KIND, RECORD, SCHEMA
from boardfit.edge.bundle.bundle import sha256_file
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.rooted import work_beside
from boardfit.edge.errors import DoesNotFitError, EngineError, IntegrityError, UsageError
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import MIB, format_bytes, printable

DEFAULT_RECIPE = "int8"
#: Relative error of an output (root mean square) beyond which a result is refused. 8 bits per
#: channel err by about 0.01, blocks of 4 bits by 0.1; a misread weight errs by 1.
BOUNDS = {"int8": 0.1, "int4": 0.4}
_RUNTIMES = {
    ".onnx": ("onnxruntime", ("onnxruntime",)),
    ".tflite": ("the TFLite interpreter", ("litert", "tflite_runtime")),
}
# The runtime, and the weights mapped once and packed once more for its kernels.
_PROCESS_BYTES = 80 * MIB


@dataclass(frozen=True)
class BuiltNetwork:
    """One finished folder."""

    folder: Path
    device: str
    report: NetworkReport


def build_network(
    source: Path,
    devices: Sequence[DeviceProfile],
    output: Path,
    *,
    recipe: str | None = None,
    accept_quality: bool = False,
    overwrite: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int | None = None,
    reporter: Reporter,
) -> list[BuiltNetwork]:
    """Quantize `source` for every board: at `output`, or below it where there are several. Raises
    UsageError when the output exists, EngineError for a board on which the file's runtime is known
    not to run, DoesNotFitError for one too small, IntegrityError when an output is further from the
    source's than `BOUNDS`, and what `quantize_network` raises; nothing is left then.
    """
    check_devices(devices)
    check_output(output, overwrite)
    for device in devices:
        check_board(source, device)
    recipe = recipe or DEFAULT_RECIPE
    made: dict[int, NetworkReport] = {}
    built = []
    with work_beside(output, "build") as work:
        for device in devices:
            name = job_name(device.id, "", len(devices), 1)
            folder = work.path / "networks" / name
            folder.parent.mkdir(exist_ok=True)
            level = accuracy_level(device.isa or None) if source.suffix.lower() == ".onnx" else 0
            if level not in made:
                reporter.stage(f"storing the weights of {printable(source.name)} as {recipe}")
                made[level] = quantize_network(
                    source, folder, recipe, shapes=shapes, threads=threads, accuracy_level=level,
                    progress=reporter.progress, say=reporter.stage,
                )  # fmt: skip
                check_errors(made[level], accept_quality)
            else:
                shutil.copytree(made[level].path.parent, folder)
            report = made[level]
            seal(source, folder, device, report)
            built.append((name, device.id, report))
        work.publish("networks", is_output if overwrite else None)
    return [BuiltNetwork(output / name, device, report) for name, device, report in built]


def check_board(source: Path, device: DeviceProfile) -> None:
    """Raise for a board on which the network cannot run: see `build_network`."""
    runtime, engines = _RUNTIMES[source.suffix.lower()]
    known = [found for name in engines if (found := device.engine_support(name)) is not None]
    if known and not any(found.runs for found in known):
        raise EngineError(
            f"{runtime} does not run on {device.name}: {known[0].note} [{known[0].source}]"
        )
    needed, free = file_bytes(source) + _PROCESS_BYTES, device.free_ram_bytes
    if needed > free:
        raise DoesNotFitError(
            f"{source.name} needs about {format_bytes(needed)} on {device.name}, which leaves "
            f"{format_bytes(free)} free",
            shortfall_bytes=needed - free,
            next_step="choose a larger board",
        )


def check_errors(report: NetworkReport, accept: bool) -> None:
    worst, bound = report.worst_relative_rms, BOUNDS[report.recipe]
    if worst is None or worst <= bound or accept:
        return
    name = max(report.errors, key=lambda n: report.errors[n]["relative_rms"] or 0.0)
    raise IntegrityError(
        f"output {printable(name)} is off by {worst:.1%} (root mean square); {report.recipe} may "
        f"move one by {bound:.0%}",
        next_step="--recipe int8, or keep it anyway with --accept-quality",
    )


def seal(source: Path, folder: Path, device: DeviceProfile, report: NetworkReport) -> None:
    """Write `network.json`. No times, no paths: the same inputs give the same record."""
    record: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "network": report.path.name,
        "device": device.id,
        "recipe": report.recipe,
        "source": {
            "file": source.name,
            "sha256": sha256_file(source),
            "n_bytes": report.source_bytes,
        },
        "types": dict(report.types),
        "errors": {name: dict(values) for name, values in report.errors.items()},
        "files": {
            path.name: {"n_bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(folder.iterdir())
            if path.name != RECORD
        },
    }
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / RECORD, f"{text}\n".encode())


def refuse_language_options(given: Mapping[str, object]) -> None:
    """Raise UsageError for options that only language models have."""
    named = [name for name, value in given.items() if value]
    if named:
        raise UsageError(
            f"{', '.join(named)}: for language models; a network takes --recipe "
            f"{' or '.join(RECIPES)}, --shape, --threads, --accept-quality and --force"
        )


def check_format(source: Path, formats: str) -> None:
    """A network keeps its format. `formats` is the option's text."""
    own = source.suffix.lower()[1:]
    if formats not in (GGUF, own):  # GGUF is only the option's default here
        raise UsageError(f"{source.name} stays a .{own} file; --format {formats} is not possible")


def network_record(done: BuiltNetwork) -> dict[str, object]:
    """One folder as a JSON-able object."""
    report = done.report
    return {
        "folder": str(done.folder),
        "device": done.device,
        "network": report.path.name,
        **{k: v for k, v in asdict(report).items() if k != "path"},
        "ratio": round(report.ratio, 4),
        "worst_relative_rms": report.worst_relative_rms,
    }


def network_summary(done: BuiltNetwork) -> str:
    """One folder in three lines for a person."""
    report = done.report
    worst = report.worst_relative_rms
    moved = "no output could be compared" if worst is None else f"outputs off by {worst:.2%} (RMS)"
    return (
        f"{done.folder}  {printable(report.path.name)} as {report.recipe} for {done.device}: "
        f"{format_bytes(report.nbytes)}, {report.ratio:.0%} of {format_bytes(report.source_bytes)}"
        f"\n  {moved} against the source on made-up inputs\n  next: edge bench {done.folder}"
    )
