"""Plans of small boards proved by force: inside a memory control group of what the board leaves
free, the plan must run with its context full; the next bigger one, refused, must die or thrash.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.memory_truth import Combination, RunFailedError, measure
from converters.memory_truth_models import CONFIGS, hollow_spec, write_hollow
from converters.plan import Candidate, Planner, PlanOptions
from device_profiles.catalog import find_profile
from device_profiles.cost.memory import PROGRAM_FILE_BYTES
from edge.errors import DoesNotFitError, EdgeError
from edge.units import MIB

#: Boards and the models planned for them.
PROOFS = (
    ("raspberry-pi-zero-2-w", "smollm2-360m"),
    ("raspberry-pi-3b-plus", "qwen3-0.6b"),
    ("raspberry-pi-zero-2-w", "smollm2-135m"),
    ("raspberry-pi-4b-1gb", "smollm2-360m"),
)
# A run that read more than this many times its file from storage has lost pages that it needed.
_THRASH = 2.0
_REFUSED_SECONDS = 40.0
_PLANNED_SECONDS = 300.0


@dataclass(frozen=True)
class ControlGroup:
    """A memory control group, of version 1 or 2, without swap."""

    path: Path
    version: int

    @classmethod
    def make(cls, limit_bytes: int) -> ControlGroup:
        """Raises EdgeError where control groups cannot be made."""
        root, name = Path("/sys/fs/cgroup"), f"edgekit-{os.getpid()}-{time.monotonic_ns()}"
        controllers = root / "cgroup.controllers"
        is_v2 = controllers.exists() and "memory" in controllers.read_text().split()
        path = root / name if is_v2 else root / "memory" / name
        try:
            path.mkdir()
            (path / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(
                str(limit_bytes)
            )
            if is_v2:
                (path / "memory.swap.max").write_text("0")
            else:
                (path / "memory.swappiness").write_text("0")
        except OSError as error:
            raise EdgeError(
                f"no memory control group could be made at {path}: {error}",
                next_step="run as root on a Linux whose memory controller is enabled",
            ) from error
        return cls(path, 2 if is_v2 else 1)

    def remove(self) -> None:
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:  # the kernel is still taking the last process out
                time.sleep(0.1)


def run_force(
    work: Path,
    upstream: Path | None,
    only: str,
    *,
    seconds: float = 1e9,
    done: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Every proof whose board or model contains `only`, none begun after `seconds`; `done` is
    called with all of them so far after each.
    """
    begin, found = time.monotonic(), []
    for board, model in PROOFS:
        if only in f"{board} {model}" and time.monotonic() - begin < seconds:
            found.append(prove(work, upstream, board, model))
            if done is not None:
                done(found)
    return found


def prove(work: Path, upstream: Path | None, board: str, model: str) -> dict[str, Any]:
    """One board and model: the plan, and the next bigger rung of its ladder or, where the plan is
    the highest, the next bigger model.
    """
    profile = find_profile(board)
    planner = Planner(hollow_spec(model, upstream), profile, PlanOptions())
    chosen = planner.choose()
    planned = _run(work, upstream, model, chosen, planner.budget_bytes, _PLANNED_SECONDS)
    bigger_model, bigger = _next_bigger(upstream, board, model, planner, chosen)
    refused = _run(work, upstream, bigger_model, bigger, planner.budget_bytes, _REFUSED_SECONDS)
    return {
        "board": board,
        "limit_bytes": planner.budget_bytes - PROGRAM_FILE_BYTES,
        "planned": planned,
        "refused": refused,
        "held": planned["outcome"] == "runs" and refused["outcome"] != "runs",
    }


def _next_bigger(
    upstream: Path | None, board: str, model: str, planner: Planner, chosen: Candidate
) -> tuple[str, Candidate]:
    rungs = planner.rungs()
    for weights, n_ctx in rungs[_place(planner, chosen) + 1 :]:
        leanest = planner.leanest(weights, n_ctx)
        if not planner.fits(leanest):
            return model, leanest
    order = sorted(CONFIGS, key=lambda name: hollow_spec(name).shape.n_params)
    for name in order[order.index(model) + 1 :]:
        other = Planner(hollow_spec(name, upstream), find_profile(board), PlanOptions())
        try:
            other.choose()
        except DoesNotFitError:
            weights, n_ctx = other.rungs()[0]
            return name, other.leanest(weights, n_ctx)
    raise EdgeError(f"{board} holds every model that we have")


def _place(planner: Planner, chosen: Candidate) -> int:
    rungs = [(weights.recipe.id, n_ctx) for weights, n_ctx in planner.rungs()]
    return rungs.index((chosen.recipe, chosen.n_ctx))


def _run(
    work: Path,
    upstream: Path | None,
    model: str,
    candidate: Candidate,
    budget_bytes: int,
    seconds: float,
) -> dict[str, Any]:
    c, spec = candidate, hollow_spec(model, upstream)
    path = work / f"{model}-{c.recipe}.gguf"
    # A board whose cores have no repacked kernels gets none here either.
    repack = c.repack and c.memory.get("weights_repacked", 0) > 0
    combination = Combination(
        model, c.recipe, c.n_ctx, c.kv_type, c.n_ubatch, c.use_mmap, repack
    )  # fmt: skip
    # Pages of programs are in the cache already and charged to nobody here.
    limit = budget_bytes - PROGRAM_FILE_BYTES
    group = ControlGroup.make(limit)
    begin, measured, outcome, said = time.monotonic(), None, "runs", ""
    try:
        n_bytes = write_hollow(spec, c.weights.recipe, path)
        _drop_cached(path)
        try:
            measured = measure(path, spec.shape.n_vocab, combination, group=group, limit_s=seconds)
            read_bytes = measured.read_bytes
        except RunFailedError as error:
            outcome, said = "unfinished" if error.alive else "killed", str(error)[:200]
            read_bytes = error.read_bytes
    finally:
        path.unlink(missing_ok=True)
        group.remove()
    if outcome != "killed" and read_bytes > _THRASH * n_bytes:
        outcome = "thrashes"
    return {
        "model": model,
        "recipe": c.recipe,
        "n_ctx": c.n_ctx,
        "kv_type": c.kv_type,
        "n_ubatch": c.n_ubatch,
        "use_mmap": c.use_mmap,
        "repack": repack,
        "predicted_bytes": c.peak_bytes,
        "measured_bytes": measured.peak_total if measured else None,
        "n_filled": measured.n_filled if measured else None,
        "file_bytes": n_bytes,
        "read_bytes": read_bytes,
        "outcome": outcome,
        "said": said,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _drop_cached(path: Path) -> None:
    """Write the file out and drop its pages, so that who reads it next is charged for them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def force_lines(proofs: list[dict[str, Any]]) -> list[str]:
    """The proofs in words; read: what storage delivered, the file once if nothing was lost."""
    lines = []
    for proof in proofs:
        verdict = "holds" if proof["held"] else "DOES NOT HOLD"
        lines.append(f"{proof['board']}: {proof['limit_bytes'] / MIB:.0f} MiB, {verdict}")
        for kind in ("planned", "refused"):
            run = proof[kind]
            measured = run["measured_bytes"]
            lines.append(
                f"  {kind}: {run['model']} {run['recipe']} ctx {run['n_ctx']} {run['kv_type']}"
                f" batch {run['n_ubatch']}, predicted {run['predicted_bytes'] / MIB:.0f} MiB,"
                f" resident {'-' if measured is None else round(measured / MIB)} MiB,"
                f" file {run['file_bytes'] / MIB:.0f} MiB, read {run['read_bytes'] / MIB:.0f} MiB,"
                f" {run['seconds']:.0f} s:"
                f" {run['outcome']}"
            )
    return lines
