"""Result records for tests: traces with times chosen by hand, through the code of `edge bench`.

Nothing here computes a figure: `make_records` and `append_results` do, as for a real run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boardfit.edge.bench.metrics import LoadTrace, measure, measure_load, numbers
from boardfit.edge.bench.record import MeasuredArtifact, make_records
from boardfit.edge.bench.runner import TestRun
from boardfit.edge.bench.store import append_results
from boardfit.edge.bench.workloads import Test
from boardfit.edge.types import EngineInfo, HeatSample, MemorySample, Plan, TokenEvent, Trace

MS = 10**6
MIB = 2**20

PI5 = {
    "model": "Raspberry Pi 5 Model B Rev 1.0",
    "profile": "raspberry-pi-5-8gb",
    "cpu": "Cortex-A76",
    "n_cores": 4,
    "ram_bytes": 8_455_553_024,
    "memory_limit_bytes": None,
    "arch": "aarch64",
    "governor": "ondemand",
}


def request(
    start_ms: int,
    *,
    n_prompt: int,
    prefill_ms: int,
    n_out: int,
    step_ms: int,
    heat: bool = True,
    n_memory: int = 4,
    throttled: int | None = 0,
    deadline_s: float | None = None,
) -> Trace:
    """A request whose tokens come evenly; memory grows by 1 MiB over it, the board warms up."""
    start = start_ms * MS
    first = start + (prefill_ms + 1) * MS
    events = [TokenEvent(5, "x", first + i * step_ms * MS) for i in range(n_out)]
    end = events[-1].t_ns + MS
    span = end - start
    memory = tuple(
        MemorySample(start + span * i // n_memory, 90 * MIB, (40 + i // max(1, n_memory - 1)) * MIB,
                     50 * MIB, 85 * MIB, 0)
        for i in range(n_memory)
    )  # fmt: skip
    warm = 45.0 + start_ms / 1000
    return Trace(
        request_start_ns=start,
        n_prompt=n_prompt,
        n_reused=0,
        prefill_end_ns=start + prefill_ms * MS,
        events=tuple(events),
        request_end_ns=end,
        memory=memory,
        heat=(HeatSample(start, warm, 2.4e9, throttled), HeatSample(end, warm + 1, 2.3e9, 0))
        if heat
        else (),
        deadline_s=deadline_s,
    )


def run_of(test: Test, traces: Sequence[Trace], flags: Sequence[str] = ()) -> TestRun:
    figures = [numbers(measure(trace)) for trace in traces]
    return TestRun(test, "ab" * 32, list(traces), [], figures, list(flags))


def some_runs(*, repeats: int = 5, step_ms: int = 50, heat: bool = True) -> list[TestRun]:
    """Prefill, decode at two depths, end-to-end and loads, with a little spread."""
    clock = 0

    def traces(n_prompt: int, prefill_ms: int, n_out: int, step: int) -> list[Trace]:
        nonlocal clock
        found = []
        for i in range(repeats):
            found.append(
                request(clock, n_prompt=n_prompt, prefill_ms=prefill_ms + i, n_out=n_out,
                        step_ms=step + i % 2, heat=heat)
            )  # fmt: skip
            clock += 5000
        return found

    loads = [
        LoadTrace(10**9 * i, 10**9 * i + 80 * MS, 10**9 * i + 95 * MS, (MemorySample(0, 1, 2),))
        for i in range(repeats)
    ]
    return [
        run_of(Test("prefill", 128, 0, 0), traces(128, 1280, 1, 1)),
        run_of(Test("prefill", 512, 0, 0), traces(512, 4700, 1, 1)),
        run_of(Test("decode", 0, 0, 32), traces(1, 1, 33, step_ms)),
        run_of(Test("decode", 0, 512, 32), traces(512, 1, 33, step_ms + 20)),
        run_of(Test("end-to-end", 64, 0, 32), traces(70, 700, 32, step_ms), ["drift: a little"]),
        TestRun(
            Test("load", 0, 0, 0, "cold"), None, [], loads, [measure_load(x) for x in loads], []
        ),
    ]


def plan(**changes: Any) -> Plan:
    made: dict[str, Any] = {
        "engine": "llama_cpp",
        "recipe": "q4_k_m",
        "device": "raspberry-pi-5-8gb",
        "n_ctx": 1024,
        "kv_type": "f16",
        "n_threads": 4,
        "n_batch": 512,
        "n_ubatch": 512,
        "use_mmap": True,
        "repack": True,
        "artifact_bytes": 400 * MIB,
        "memory": {"weights_mapped": 400 * MIB, "kv_cache": 38 * MIB},
        "budget_bytes": 7 * 2**30,
        "decode_tps": 18.0,
        "prefill_tps": 105.0,
        "error_bound": 0.3,
    }
    return Plan(**{**made, **changes})


def records(
    runs: Sequence[TestRun] | None = None,
    *,
    name: str = "qwen3-0.6b",
    quant: str = "Q4_K - Medium",
    engine: str = "llama_cpp",
    machine: Mapping[str, Any] = PI5,
    time: str | None = None,
    run_id: str | None = None,
    quality: Mapping[str, Any] | None = None,
    n_bytes: int = 400 * MIB,
    subject_plan: Plan | None = None,
) -> list[dict[str, Any]]:
    """The records of one run, not yet sealed. `machine` replaces the facts of this machine."""
    subject = MeasuredArtifact(
        name, f"{n_bytes:064x}", n_bytes, "cd" * 32, "qwen3", "apache-2.0",
        subject_plan or plan(), quality,
    )  # fmt: skip
    info = EngineInfo(engine, "0.3.36", "b1", 1024, 4, 512, "f16", quant, {})
    made = make_records(list(runs or some_runs()), subject, info, "edge bench x", {"rss_bytes": 1})
    for record in made:
        record["machine"] = {**record["machine"], **machine}
        record["time"] = time or record["time"]
        record["run_id"] = run_id or record["run_id"]
    return made


def stored(folder: Path, *runs: list[dict[str, Any]], name: str = "r.jsonl") -> Path:
    """Write runs as `edge bench` does and return the file."""
    path = folder / name
    for run in runs or (records(),):
        append_results(path, run)
    return path
