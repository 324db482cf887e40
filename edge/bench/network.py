"""`edge bench` of any network: latency, memory and load, in the schema of language models."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boardfit.edge.bench.conditions import disturbances, read_conditions
from boardfit.edge.bench.metrics import MEMORY_KINDS, Spread, peak, quantile, spread
from boardfit.edge.bench.network_folder import is_network_folder, open_network_folder
from boardfit.edge.bench.network_inputs import make_values, parse_shapes, resolve_shapes, shape_text
from boardfit.edge.bench.network_runtime import Network, open_network
from boardfit.edge.bench.record import MeasuredArtifact, make_records
from boardfit.edge.bench.request import BenchRequest
from boardfit.edge.bench.runner import TestRun
from boardfit.edge.bench.sampler import ResourceSampler, read_memory
from boardfit.edge.bench.workloads import Test
from boardfit.edge.disk.opened_file import Source
from boardfit.edge.engines.model_file import model_file
from boardfit.edge.engines.onnx.check import CONFIG as GENAI_CONFIG
from boardfit.edge.engines.settings import default_threads
from boardfit.edge.terminal.progress import PartProgress, ProgressLine
from boardfit.edge.types import TokenEvent, Trace

KIND = "inference"
N_WARMUP = 3
MIN_RUNS = 20
# Inferences per repetition that is asked for: a hundred by default.
N_PER_REPEAT, N_PER_REPEAT_QUICK = 20, 4
_MAX_S = 60.0  # of one test; a slow board gets fewer repetitions, at least MIN_RUNS
_LATENCY_QUANTILES = {"latency_p50_s": 0.5, "latency_p90_s": 0.9, "latency_p95_s": 0.95,
                      "latency_p99_s": 0.99}  # fmt: skip


@dataclass(frozen=True)
class InferenceTest(Test):
    """A test whose label says what goes in."""

    inputs: str = ""

    @property
    def label(self) -> str:
        return f"inference {self.inputs}"


@dataclass
class InferenceRun(TestRun):
    """One measured network; `figures` are latencies in the order in which they were taken."""

    load_s: float = 0.0

    def metrics(self) -> dict[str, Spread | None]:
        latencies = [float(figures["latency_s"] or 0.0) for figures in self.figures]
        found: dict[str, Sequence[float]] = {"latency_s": latencies}
        found |= {name: [quantile(latencies, q)] for name, q in _LATENCY_QUANTILES.items()}
        found["load_s"] = [self.load_s]
        for kind in MEMORY_KINDS:
            value = peak(self.traces[0].memory, f"{kind}_bytes")
            found |= {f"peak_{kind}_bytes": [value]} if value is not None else {}
        return {name: spread(values) for name, values in found.items()}


def is_network(path: Path) -> bool:
    """Whether a model is measured as a network: `.onnx` or `.tflite` without what a language model
    has beside it, or a folder that `edge build` made of such a file.
    """
    if is_network_folder(path):
        return True
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return not (path.parent / GENAI_CONFIG).is_file()
    return suffix == ".tflite" and not (path.parent / "tokenizer.json").is_file()


def bench_network(request: BenchRequest, baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure a file or a folder of `edge build`. `baseline` is this process's memory before."""
    n_threads = request.n_threads or default_threads()
    built = open_network_folder(request.model) if is_network_folder(request.model) else None
    file = built.file if built else model_file(request.model)
    given = parse_shapes(request.shapes)
    n_runs = request.repeats * (N_PER_REPEAT_QUICK if request.quick else N_PER_REPEAT)
    with closing(ProgressLine("measuring")) as line:
        started = time.monotonic()
        network = open_network(file, n_threads, check_memory=request.check_memory is not False)
        with closing(network):
            load_s = time.monotonic() - started
            shapes = resolve_shapes(network.inputs, given)
            run = measure_network(network, shapes, n_runs, line)
    run.load_s = load_s
    subject = MeasuredArtifact(
        name=file.stem,
        sha256=file.sha256 or file.digest(),
        n_bytes=file_bytes(file),
        arch="network",
        quality=built.quality if built else None,
    )
    used = replace(request, n_threads=n_threads, sustained_min=None, cool_below=None)
    specs = {s.name: {"dtype": s.dtype, "shape": list(shapes[s.name])} for s in network.inputs}
    info = replace(network.info, details={**network.info.details, "inputs": specs})
    return make_records([run], subject, info, used.repeat_command(), baseline)


def measure_network(
    network: Network, shapes: Mapping[str, tuple[int, ...]], n_runs: int, progress: PartProgress
) -> InferenceRun:
    """Run a network `N_WARMUP` times unmeasured and `n_runs` times measured, within `_MAX_S`."""
    network.prepare(make_values(network.inputs, shapes))
    before, ends, latencies = read_conditions(), list[int](), list[float]()
    with ResourceSampler() as sampler:
        for _ in range(N_WARMUP):
            network.run()
        start_ns = time.monotonic_ns()
        deadline = time.monotonic() + _MAX_S
        for done in range(n_runs):
            if done >= MIN_RUNS and time.monotonic() > deadline:
                break
            progress(done, n_runs, KIND)
            t_ns = time.perf_counter_ns()
            network.run()
            latencies.append((time.perf_counter_ns() - t_ns) / 1e9)
            ends.append(time.monotonic_ns())
        events = tuple(TokenEvent(0, "", t) for t in ends)
        trace = Trace(start_ns, 0, 0, None, events, time.monotonic_ns(), (read_memory(),))
    trace, rates = sampler.attach(trace), [1 / s for s in latencies if s > 0]
    shown = ", ".join(shape_text(shape) for shape in list(shapes.values())[:3])
    more = "" if len(shapes) <= 3 else f" and {len(shapes) - 3} more"
    signature = repr([(spec.name, spec.dtype, shapes[spec.name]) for spec in network.inputs])
    return InferenceRun(
        InferenceTest(KIND, 0, 0, 0, inputs=shown + more),  # type: ignore[arg-type]
        hashlib.sha256(signature.encode()).hexdigest(),
        traces=[trace],
        figures=[{"latency_s": seconds} for seconds in latencies],
        flags=disturbances(before, read_conditions(), sampler.heat_around(trace), rates),
    )


def file_bytes(path: Source) -> int:
    """Bytes of the network: the file and, for ONNX, the files of its external data."""
    if path.suffix.lower() != ".onnx":
        return path.stat().st_size
    from boardfit.edge.files.onnx import read_onnx

    return sum(part.stat().st_size for part in read_onnx(path).files)
