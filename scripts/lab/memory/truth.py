"""Compare predicted memory with a real run, in a fresh process, with a full context."""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
import signal
import time
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.compute_buffer import compute_bytes, read_features
from boardfit.device_profiles.cost.graph_table import metadata_bytes
from boardfit.device_profiles.cost.memory import (
    MemoryPhases,
    engine_anonymous_bytes,
    kv_bytes,
    memory_phases,
    output_bytes,
    split_weights,
)
from boardfit.device_profiles.shape import ModelShape
from boardfit.edge.process.child import PIPE, Popen, decode_output, python_argv, start_child
from lab.memory.fill import CachePart, lengthen_state


@dataclass(frozen=True)
class Combination:
    """One run: a model of `truth_models.CONFIGS`, a recipe, and engine settings. With
    `n_computed`, only that many tokens at the end of the context are computed; the cells before are
    filled from a saved state (`lab.memory.fill`).
    """

    model: str
    recipe: str
    n_ctx: int
    kv_type: str = "f16"
    n_ubatch: int = 512
    use_mmap: bool = True
    repack: bool = True
    n_threads: int = 1
    n_computed: int | None = None


@dataclass(frozen=True)
class Measured:
    """Bytes of one process. `anonymous` is RssAnon, `total` all that is resident, mapped files
    included; `loading` is the peak until the model was open, `running` the figure with the context
    full. `peak_total` is the kernel's own high-water mark.
    """

    loading_anonymous: int
    loading_total: int
    running_anonymous: int
    running_total: int
    peak_anonymous: int
    peak_total: int
    n_filled: int
    seconds: float
    stages: dict[str, dict[str, int]]
    read_bytes: int = 0


def predict(spec: ModelSpec, combination: Combination, isa: Set[str]) -> MemoryPhases:
    """What the planner's terms say for this run."""
    c, shape = combination, spec.shape
    weights = WeighingScale(spec).weigh(load_recipe(c.recipe))
    used = isa if c.repack else frozenset[str]()
    split = split_weights(weights.tensors, weights.artifact_bytes, used, shape)
    features = read_features(weights.tensors)
    return memory_phases(
        split,
        use_mmap=c.use_mmap,
        kv_cache=kv_bytes(shape, c.n_ctx, c.kv_type, c.n_ubatch),
        compute=compute_bytes(shape, features, c.n_ctx, c.n_ubatch, c.n_threads, c.kv_type),
        output=output_bytes(shape),
        engine=engine_anonymous_bytes(shape, len(spec.get("tokenizer.ggml.merges", ())))
        + metadata_bytes(shape.arch, len(weights.tensors), min(c.n_ubatch, c.n_ctx)),
        n_tokens=c.n_ctx,
    )


#: Where the child finds `lab`.
_SCRIPTS = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_FIELDS = ("RssAnon", "RssFile", "RssShmem", "VmHWM", "VmRSS")


class RunFailedError(Exception):
    """A run that died, or was stopped for its time or its reads (`alive`); until then it had read
    `read_bytes` from storage.
    """

    def __init__(self, message: str, read_bytes: int, *, alive: bool = False) -> None:
        super().__init__(message)
        self.read_bytes, self.alive = read_bytes, alive


def measure(
    path: Path,
    shape: ModelShape,
    combination: Combination,
    *,
    control_group: Path | None = None,
    limit_s: float = 600.0,
    limit_read_bytes: float = math.inf,
) -> Measured:
    """Run the file in a fresh process, in a control group if given, and sample its memory.

    Raises RunFailedError with the process's last words when it dies, takes longer than `limit_s` or
    reads more than `limit_read_bytes` from storage.
    """
    c, begin = combination, time.monotonic()
    if shape.lazy_table:
        forget_cached(path)
    settings = {
        "n_ctx": c.n_ctx,
        "n_threads": c.n_threads,
        "n_batch": c.n_ubatch,
        "n_ubatch": c.n_ubatch,
        "kv_type": c.kv_type,
        "use_mmap": c.use_mmap,
        "repack": c.repack,
        "check_memory": False,
    }

    arguments = [str(path.absolute()), shape.n_vocab, c.n_computed, settings]
    state = path.with_name(path.name + ".state")
    libc = ctypes.CDLL(None)

    def join_group() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it must not go on alone
        if control_group is not None:
            (control_group / "cgroup.procs").write_text(str(os.getpid()))

    child = start_child(
        python_argv("lab.memory.truth_child", json.dumps(arguments), folder=_SCRIPTS),
        stdin=PIPE,
        before_exec=join_group,
    )
    try:
        return _follow(child, begin, limit_s, limit_read_bytes, lambda: _lengthen(state, shape, c))
    finally:
        state.unlink(missing_ok=True)
        if child.poll() is None:
            child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            assert stream is not None
            stream.close()


def forget_cached(path: Path) -> None:
    """Drop a file from the page cache, as after the start of a board: of cached pages, the kernel
    maps those around each that is touched.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _follow(
    child: Popen[bytes],
    begin: float,
    limit_s: float,
    limit_read_bytes: float,
    lengthen: Callable[[], None],
) -> Measured:
    assert child.stdin and child.stdout and child.stderr
    os.set_blocking(child.stdout.fileno(), False)
    lines = io.TextIOWrapper(child.stdout, errors="replace")
    stages: dict[str, dict[str, int]] = {}
    peaks: dict[str, int] = dict.fromkeys(("anonymous", "total"), 0)
    n_filled, read_bytes, loading, last = 0, 0, {}, {}
    while True:
        line = lines.readline()
        try:
            now = read_status(child.pid)
            read_bytes = storage_reads(child.pid)
        except (OSError, KeyError):  # ended, or about to end
            now = {}
        if now:
            last = now
            peaks["anonymous"] = max(peaks["anonymous"], now["RssAnon"])
            peaks["total"] = max(peaks["total"], now["VmRSS"])
        if line.startswith("stage: "):  # the library prints too
            _, name, *rest = line.split()
            stages[name] = last
            if name == "open":
                loading = {**peaks, "total": max(peaks["total"], last["VmHWM"])}
            elif name == "saved":
                lengthen()
            elif name == "restored":  # what restoring took is no part of a run
                peaks = dict(loading)
                Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # resets VmHWM
            if rest:
                n_filled = int(rest[0])
                break
            child.stdin.write(b"\n")
            child.stdin.flush()
        elif line:
            continue
        elif child.poll() is not None:
            raise RunFailedError(
                f"the run ended with {child.returncode} after stage"
                f" {list(stages)[-1:]}: {decode_output(child.stderr.read())[-2000:]}",
                read_bytes,
            )
        elif read_bytes > limit_read_bytes:
            message = f"stopped after reading {read_bytes} bytes, stages {list(stages)}"
            raise RunFailedError(message, read_bytes, alive=True)
        elif time.monotonic() - begin > limit_s:
            message = f"not done after {limit_s:.0f} s, stages {list(stages)}"
            raise RunFailedError(message, read_bytes, alive=True)
        else:
            time.sleep(0.01)
    running = stages["answered"]
    return Measured(
        loading_anonymous=loading["anonymous"],
        loading_total=loading["total"],
        running_anonymous=running["RssAnon"],
        running_total=running["VmRSS"],
        peak_anonymous=peaks["anonymous"],
        peak_total=max(peaks["total"], running["VmHWM"]),
        n_filled=n_filled,
        seconds=round(time.monotonic() - begin, 1),
        stages=stages,
        read_bytes=read_bytes,
    )


def _lengthen(state: Path, shape: ModelShape, combination: Combination) -> None:
    """Make the saved state one of all tokens before those that are computed."""
    c = combination
    assert c.n_computed is not None
    windows = {layer.window for layer in shape.layers if layer.n_head_kv}
    parts: list[CachePart] = ["full"]
    parts += ["window"] if windows - {None} else []
    parts += ["states"] if any(layer.state_values for layer in shape.layers) else []
    longer = state.with_suffix(".longer")
    n_window = max((w for w in windows if w), default=0)
    lengthen_state(state, longer, tuple(parts), c.n_ctx - 8 - c.n_computed, n_window)
    longer.replace(state)


def storage_reads(pid: int) -> int:
    """Bytes that a process made storage deliver."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def read_status(pid: int) -> dict[str, int]:
    """Bytes by kind, of /proc/<pid>/status."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in _FIELDS:
            found[key] = int(value.split()[0]) * 1024
    return {key: found[key] for key in _FIELDS}


def row(combination: Combination, predicted: MemoryPhases, measured: Measured) -> dict[str, Any]:
    """One row of the table, errors as shares of what was measured."""
    pairs: dict[str, tuple[int, int]] = {
        "peak_anonymous": (predicted.peak_anonymous, measured.peak_anonymous),
        "peak_total": (predicted.peak_total, measured.peak_total),
        "loading_anonymous": (predicted.loading_anonymous, measured.loading_anonymous),
        "loading_total": (predicted.loading_total, measured.loading_total),
        "running_anonymous": (predicted.running_anonymous, measured.running_anonymous),
        "running_total": (predicted.running_total, measured.running_total),
    }
    return {
        **asdict(combination),
        "predicted": {key: pair[0] for key, pair in pairs.items()},
        "measured": {key: pair[1] for key, pair in pairs.items()},
        "error": {key: round(a / b - 1, 4) for key, (a, b) in pairs.items()},
        "run": asdict(measured),
        "terms": predicted.terms,
    }
