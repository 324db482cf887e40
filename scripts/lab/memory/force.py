"""Prove the plans of small boards in memory control groups of the board's free memory. The plan
must run with a full context; the next bigger, refused plan must die or thrash.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.device_profiles.cost.memory import PROGRAM_FILE_BYTES
from boardfit.edge.errors import EdgeError
from boardfit.edge.probe.machine import probe_this_machine
from boardfit.edge.units import MIB
from lab.memory.force_boards import (
    BoardClass,
    PlannedRun,
    board_classes,
    small_boards,
)
from lab.memory.truth import RunFailedError, measure
from lab.memory.truth_models import hollow_spec, write_hollow

# A run that read more than this many times its file from storage has lost pages that it needed,
# again and again: opening reads it once, and once more if the cache takes the place of its pages.
_THRASH = 3.0
_REFUSED_SECONDS = 300.0
_PLANNED_SECONDS = 1800.0


@dataclass(frozen=True)
class ControlGroup:
    """A memory control group, of version 1 or 2, without swap."""

    path: Path
    version: int

    @classmethod
    def make(cls, limit_bytes: int) -> ControlGroup:
        """Raises EdgeError where control groups cannot be made."""
        root, name = Path("/sys/fs/cgroup"), f"boardfit-{os.getpid()}-{time.monotonic_ns()}"
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
    seconds: float = math.inf,
    earlier: Sequence[Mapping[str, Any]] = (),
    done: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """A proof for every class with a board whose name contains `only`, none begun after `seconds`.
    Those that are among `earlier` ones, of the same plans and limits, are not made again; `done` is
    called with all of them so far after each.
    """
    here = probe_this_machine(measure=False)
    begin, found = time.monotonic(), list[dict[str, Any]]()
    for group in board_classes(small_boards(), here, upstream):
        if not any(only in board for board in group.boards):
            continue
        steps = _steps(group, earlier)
        if any(step.made is None for step in steps) and time.monotonic() - begin > seconds:
            continue
        planned, refused = (
            step.made or _run(work, upstream, step.run, step.limit_bytes, step.seconds)
            for step in steps
        )
        found.append(
            {
                "name": group.name,
                "boards": group.boards,
                "free_bytes": [group.smallest.free_bytes, group.largest.free_bytes],
                "planned": planned,
                "refused": refused,
                "held": planned["outcome"] == "runs"
                and refused["outcome"] in ("killed", "thrashes"),
            }
        )
        if done is not None:
            done(found)
    return found


def result_of(proofs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept: the proofs, which of them stands for each board, and the boards without one."""
    boards = board_entries(proofs)
    unproved = [p.id for p in small_boards() if p.id not in boards]
    return {"boards": boards, "unproved": unproved, "proofs": list(proofs)}


def board_entries(proofs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each board is left with and the proof that stands for it, by board."""
    return {
        board: {"proof": proof["name"], "held": proof["held"]}
        for proof in proofs
        for board in proof["boards"]
    }


@dataclass(frozen=True)
class _Step:
    """One run of a proof, and an earlier one that shows as much."""

    run: PlannedRun
    limit_bytes: int
    seconds: float
    made: Mapping[str, Any] | None


def _steps(group: BoardClass, earlier: Sequence[Mapping[str, Any]]) -> tuple[_Step, _Step]:
    """Make the two steps of a class of boards.

    The planned run gets the least memory that any board of the class leaves free. The refused run
    gets the most. Both limits are reduced by (a) program pages already in the page cache and (b)
    weights that the board would repack but this CPU does not.
    """
    small, large = group.smallest, group.largest
    within = _limit(small.free_bytes, small.planned)
    beyond = _limit(large.free_bytes, large.refused)
    made = _made_before(small.planned, [p["planned"] for p in earlier], most=within)
    refused = _made_before(large.refused, [p["refused"] for p in earlier], least=beyond)
    return (
        _Step(small.planned, within, _PLANNED_SECONDS, made),
        _Step(large.refused, beyond, _REFUSED_SECONDS, refused),
    )


def _limit(free_bytes: int, run: PlannedRun) -> int:
    """Whole pages, as the kernel counts."""
    limit = free_bytes - PROGRAM_FILE_BYTES - run.missing_here
    return limit - limit % mmap.PAGESIZE


def _made_before(
    run: PlannedRun,
    earlier: Sequence[Mapping[str, Any]],
    *,
    least: float = 0,
    most: float = math.inf,
) -> Mapping[str, Any] | None:
    """An earlier run of the same settings within a limit from `least` to `most`, that came out as
    it should: what runs in less runs, and what dies in more dies.
    """
    wanted = {key: v for key, v in asdict(run.combination).items() if key != "n_threads"}
    for made in earlier:
        right = (
            made["outcome"] == "runs"
            if least == 0
            else made["outcome"] == "killed" or _has_thrashed(made)
        )
        same = all(made.get(key) == value for key, value in wanted.items())
        if same and right and least <= made["limit_bytes"] <= most:
            return made
    return None


def _has_thrashed(run: Mapping[str, Any]) -> bool:
    return bool(run["read_bytes"] > _THRASH * run["file_bytes"])


def _run(
    work: Path, upstream: Path | None, run: PlannedRun, limit: int, seconds: float
) -> dict[str, Any]:
    c = run.combination
    spec, path = hollow_spec(c.model, upstream), work / f"{c.model}-{c.recipe}.gguf"
    group = ControlGroup.make(limit)
    begin, measured, outcome, said = time.monotonic(), None, "runs", ""
    try:
        n_bytes = write_hollow(spec, load_recipe(c.recipe), path)
        _drop_cached(path)
        try:
            measured = measure(
                path,
                spec.shape,
                c,
                control_group=group.path,
                limit_s=seconds,
                limit_read_bytes=_THRASH * n_bytes,
            )
            read_bytes = measured.read_bytes
        except RunFailedError as error:
            outcome, said = "unfinished" if error.alive else "killed", str(error)[:200]
            read_bytes = error.read_bytes
    finally:
        path.unlink(missing_ok=True)
        group.remove()
    result: dict[str, Any] = {
        **asdict(c),
        "limit_bytes": limit,
        "predicted_bytes": run.bytes_there,
        "predicted_here_bytes": run.bytes_here,
        "measured_bytes": measured.peak_total if measured else None,
        "n_filled": measured.n_filled if measured else None,
        "file_bytes": n_bytes,
        "read_bytes": read_bytes,
        "outcome": outcome,
        "said": said,
        "seconds": round(time.monotonic() - begin, 1),
    }
    if outcome != "killed" and _has_thrashed(result):
        result["outcome"] = "thrashes"
    return result


def _drop_cached(path: Path) -> None:
    """Write the file out and drop its pages, so that who reads it next is charged for them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def force_lines(proofs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The proofs in words; read: what storage delivered, the file once if nothing was lost."""
    lines = []
    for proof in proofs:
        verdict = "holds" if proof["held"] else "DOES NOT HOLD"
        free = " to ".join(str(n) for n in sorted({n // MIB for n in proof["free_bytes"]}))
        lines.append(f"{', '.join(proof['boards'])}: {free} MiB free, {verdict}")
        lines += [_run_line(kind, proof[kind]) for kind in ("planned", "refused")]
    return lines


def _run_line(kind: str, run: Mapping[str, Any]) -> str:
    load = ("map" if run["use_mmap"] else "read") + ("+repack" if run["repack"] else "")
    measured = run["measured_bytes"]
    sizes = {
        "limit": run["limit_bytes"],
        "predicted": run["predicted_here_bytes"],
        "resident": measured,
        "file": run["file_bytes"],
        "read": run["read_bytes"],
    }
    text = ", ".join(f"{key} {n / MIB:.0f}" for key, n in sizes.items() if n is not None)
    filled = f", {run['n_filled']} tokens in it" if run["n_filled"] else ""
    if run["n_filled"] and run["n_computed"]:
        filled += f", the last {run['n_computed']} computed"
    return (
        f"  {kind}: {run['model']} {run['recipe']} ctx {run['n_ctx']} {run['kv_type']}"
        f" batch {run['n_ubatch']} {load}{filled}; MiB: {text}; {run['seconds']:.0f} s:"
        f" {run['outcome']}"
    )
