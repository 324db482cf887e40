"""Measure a language model: memory, TTFT, prefill, decode, load; sustained, decode for minutes."""

import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from boardfit.device_profiles.shape import is_behind
from boardfit.edge.bench.conditions import machine_state
from boardfit.edge.bench.deadline_run import Workload, run_workload
from boardfit.edge.bench.heat import read_heat
from boardfit.edge.bench.record import MeasuredArtifact, make_records
from boardfit.edge.bench.request import DEFAULT_REPEATS, BenchRequest
from boardfit.edge.bench.runner import TestRun, measure_load, run_sustained, run_tests
from boardfit.edge.bench.workloads import make_tests
from boardfit.edge.disk.opened_file import Source
from boardfit.edge.engines import open_engine
from boardfit.edge.engines.llama.estimate import cache_bytes_per_token, count_layers
from boardfit.edge.engines.target import OpenModel, engine_of, open_model
from boardfit.edge.files.gguf import GgufHeader, GgufTensor, read_header
from boardfit.edge.probe.measure import last_level_cache, measure_copy_bandwidth
from boardfit.edge.probe.system import LocalSystem
from boardfit.edge.process.live import STATUS
from boardfit.edge.template.options import parse_variables
from boardfit.edge.terminal.progress import ProgressLine, Say
from boardfit.edge.units import MIB, printable

MAX_WAIT_S = 600.0
_EVERY_S = 2.0


def bench_language_model(
    request: BenchRequest, baseline: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Open the model, wait for a cool board, and measure. `baseline` is memory before that."""
    opened = open_for_bench(request)
    return measure_language_model(opened, request, baseline, flag=cool_down(request))


def open_for_bench(request: BenchRequest) -> OpenModel:
    """Open the model as the request wants it, and publish which one is measured."""
    with closing(ProgressLine("loading")) as line:
        opened = open_model(
            request.model,
            progress=line,
            n_threads=request.n_threads,
            n_ctx=request.n_ctx,
            thinking=request.thinking or ("off" if request.workload is not None else None),
            template_variables=parse_variables(request.template_vars) or None,
            kv_type=request.kv_type,
            check_memory=request.check_memory,
            n_draft=request.workload.n_draft if request.workload is not None else None,
        )
    STATUS.publish_model(opened.name, opened.engine.describe())
    return opened


def cool_down(request: BenchRequest) -> str | None:
    """Wait until the board is as cool as the request asks. Returns what to flag, if anything."""
    say = functools.partial(print, file=sys.stderr, flush=True)
    return None if request.cool_below is None else wait_until_cool(request.cool_below, say=say)


def wait_until_cool(
    below_c: float,
    *,
    read: Callable[[], float | None] = lambda: read_heat().temp_c,
    max_wait_s: float = MAX_WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
    say: Say = lambda text: None,
) -> str | None:
    """Wait until the hottest sensor reads less than `below_c` °C. Returns what to flag."""
    waited = 0.0
    while (temp_c := read()) is not None and temp_c >= below_c and waited < max_wait_s:
        say(f"cooling: {temp_c:.0f} °C, waiting for less than {below_c:g}")
        sleep(_EVERY_S)
        waited += _EVERY_S
    if temp_c is None:
        return "start temperature unknown: no sensor was readable"
    if temp_c >= below_c:
        return f"warm start: {temp_c:.0f} °C after {waited:.0f} s of cooling, asked for {below_c:g}"
    return None


def measure_language_model(
    opened: OpenModel,
    request: BenchRequest,
    baseline: Mapping[str, Any],
    *,
    flag: str | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Run every test on an open model and close it. `flag` marks all runs but loads."""
    line = ProgressLine("measuring", quiet=quiet)
    with closing(opened.engine) as engine, closing(line):
        info, before = engine.describe(), machine_state()
        tests = make_tests(engine.n_ctx, quick=request.quick, n_gen=request.n_gen)
        runs = run_tests(engine, tests, repeats=request.repeats, progress=line)
        if request.sustained_min is not None:
            seconds = 60 * request.sustained_min
            runs.append(run_sustained(engine, seconds=seconds, progress=line))
        states = {"before": before, "after": machine_state()}
    for run in runs:
        run.flags += [flag] if flag else []
    bandwidth = measure_bandwidth(info.n_threads)  # beside no engine: its buffers are not counted
    runs += measure_loads(info.name, opened, repeats=min(request.repeats, DEFAULT_REPEATS))
    records = make_records(
        runs, describe_artifact(opened), info, request.repeat_command(), baseline, states=states
    )
    return add_moved(records, opened, bandwidth)


def add_moved(
    records: list[dict[str, Any]], opened: OpenModel, bandwidth: float
) -> list[dict[str, Any]]:
    """Add what each decode test moved. Only a GGUF's header lists what a step reads."""
    if engine_of(opened.model) != "llama_cpp":
        return records
    header = read_header(opened.model)
    found = [describe_moved(record, opened.model, header, bandwidth) for record in records]
    return [
        {**record, "moved": moved} if moved else record
        for record, moved in zip(records, found, strict=True)
    ]


def measure_loads(engine_name: str, opened: OpenModel, *, repeats: int) -> list[TestRun]:
    """Measure cold and warm loads, each from a closed engine."""
    reopen = functools.partial(open_engine, engine_name, opened.model, opened.settings)
    path = model_path(opened)
    return [measure_load(reopen, path, repeats=repeats, cold=cold) for cold in (True, False)]


def model_path(opened: OpenModel) -> Path:
    """Return the model's file, also where it is in a bundle."""
    return opened.bundle.model_path if opened.bundle else opened.path


def describe_artifact(opened: OpenModel) -> MeasuredArtifact:
    """Describe the artifact as a result keeps it."""
    bundle, is_gguf = opened.bundle, engine_of(opened.model) == "llama_cpp"
    known = MeasuredArtifact.from_bundle(bundle) if bundle else MeasuredArtifact("", None, 0)
    return replace(
        known,
        name=printable(opened.name),
        n_bytes=opened.model.stat().st_size,
        arch=known.arch or (read_header(opened.model).arch if is_gguf else None),
        plan=opened.plan,
    )


def bench_workload(
    request: BenchRequest, workload: Workload, baseline: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run the workload: a record of its warm part, and one of its cold part."""
    opened = open_for_bench(request)
    flag, path = cool_down(request), model_path(opened)
    artifact = describe_artifact(opened)
    with closing(opened.engine) as engine, closing(ProgressLine("measuring")) as line:
        info, before = engine.describe(), machine_state()
        runs = run_workload(opened, path, workload, line)
    states = {"before": before, "after": machine_state()}
    for run in runs:
        run.flags += [flag] if flag else []
    made = make_records(
        list(runs), artifact, info, request.repeat_command(), baseline, states=states
    )
    return [{**record, "deadline": run.section()} for record, run in zip(made, runs, strict=True)]


# ---- MBU, memory bandwidth utilization: mbu = bytes_per_step × decode_tps ÷ bandwidth ------------
#
# Source: Databricks, "LLM Inference Performance Engineering: Best Practices", 2023. A step reads
# every weight that takes part, and the cache of all tokens before it. Activations are left out.

# A block smaller than the caches would measure these. One of a small board's memory would swap.
_CACHES, _LEAST, _MOST = 4, 32 * MIB, 512 * MIB
_SHARE_OF_FREE = 1 / 8
_SECONDS = 0.3
# Read by rows, not whole (src/llama-graph.cpp, build_inp_embd).
_BY_ROW = ("token_embd.weight", "per_layer_token_embd.weight")


def measure_bandwidth(n_threads: int) -> float:
    """Time copies of a block larger than the caches: bytes per second, read and written."""
    wanted = max(_LEAST, min(_MOST, _CACHES * (last_level_cache(LocalSystem()) or 0)))
    room = int(psutil.virtual_memory().available * _SHARE_OF_FREE)
    block = max(MIB, min(wanted, room))
    return measure_copy_bandwidth(n_threads, block_bytes=block, seconds=_SECONDS)


def count_step_bytes(path: Source, header: GgufHeader, kv_type: str, depth: int) -> int | None:
    """Count the bytes that a token reads at a depth; None beyond a sliding window."""
    window = header.integer(f"{header.arch}.attention.sliding_window")
    if window and depth > window:
        return None
    cache = depth * cache_bytes_per_token(path, header, kv_type)
    return int(count_weight_bytes(header.tensors, header) + cache)


def count_weight_bytes(tensors: Iterable[GgufTensor], header: GgufHeader) -> float:
    """Count the bytes of weights that one token reads: of experts, those that are asked."""
    listed = list(tensors)
    n_layer = count_layers(header)
    is_tied = all(tensor.name != "output.weight" for tensor in listed)
    n_experts = header.integer(f"{header.arch}.expert_count") or 0
    n_used = header.integer(f"{header.arch}.expert_used_count") or n_experts
    total = 0.0
    for tensor in listed:
        is_head = is_tied and tensor.name == _BY_ROW[0]
        if (tensor.name in _BY_ROW and not is_head) or is_behind(tensor.name, n_layer):
            continue
        share = n_used / n_experts if n_experts and "_exps" in tensor.name else 1.0
        total += tensor.nbytes * share
    return total


def describe_moved(
    record: Mapping[str, Any], path: Source, header: GgufHeader, bandwidth: float
) -> dict[str, Any] | None:
    """What a decode test moved. `bandwidth` is in bytes per second, read and written."""
    test, figure = record["test"], record["metrics"].get("decode_tps")
    if test["kind"] != "decode" or not figure or not figure.get("median") or bandwidth <= 0:
        return None
    depth = test["n_depth"] + test["n_gen"] // 2
    n_bytes = count_step_bytes(path, header, str(record["settings"]["kv_type"]), depth)
    if n_bytes is None:
        return None
    return {
        "bytes_per_step": n_bytes,
        "bandwidth": bandwidth,
        "method": f"copy on {record['settings']['n_threads']} threads",
        "mbu": n_bytes * figure["median"] / bandwidth,
    }
