"""Prove once per machine and build that the installed engine's kernels run and compute rightly. A
compiler can emit what this CPU lacks, or drop what a kernel needs (ggml-org/llama.cpp#26954). So
every kernel runs once in a child process, and a stamp keeps the verdict. Standard library only:
`scripts/build_engine` proves a wheel before it is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.probe.ggml import PLAIN
from boardfit.edge.probe.system import read_lines
from boardfit.edge.process.child import DEVNULL, PIPE, python_argv, start_child
from boardfit.edge.terminal.progress import Progress

KIND = "boardfit-engine-proof"
#: Counted up when the cases change: older stamps then prove too little.
VERSION = 1
#: A kernel at these shapes takes milliseconds; a board under load, or emulated, some seconds.
_CASE_S = 120.0
_MAX_STAMP_BYTES = 1 << 20
# What distinguishes one CPU from another in /proc/cpuinfo, on x86 and Arm.
_CPU_LINE = re.compile(
    r"^(?:flags|Features|vendor_id|cpu family|model|model name|stepping|"
    r"CPU (?:implementer|architecture|variant|part|revision))\s*:.*$",
    re.MULTILINE,
)
_NAMES = {"product": "products", "experts": "products of experts", "rows": "look-ups",
          "attention": "attention", "cast": "conversion", "load": "loading"}  # fmt: skip

# A kill by another process, for lack of memory, or by Ctrl-C: it proves nothing about the engine.
_FROM_OUTSIDE = {"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"}
_DEATHS = {
    "SIGILL": "SIGILL, instructions that this processor lacks",
    "SIGSEGV": "SIGSEGV, memory that is not its own",
    "SIGABRT": "SIGABRT, a check of its own failed",
}

#: Deaths after which the rest of a buffer type's kernels is skipped: each takes a new process.
_MOST_DEATHS = 4


@dataclass(frozen=True)
class Failure:
    """One case that failed, and why. `kind` is a tensor type, `` for plain floats; `buffer` is
    `plain` or the name of an extra buffer type.
    """

    op: str
    kind: str
    buffer: str
    n_threads: int
    why: str

    def __str__(self) -> str:
        where = "" if self.buffer == PLAIN else f" from {self.buffer}"
        what = " ".join(part for part in (self.kind, _NAMES.get(self.op, self.op)) if part)
        return f"{what}{where}: {self.why}"


@dataclass(frozen=True)
class Proof:
    """Result of an engine's proof: how many cases ran, and which of them failed."""

    n_cases: int
    failures: tuple[Failure, ...] = ()

    def find_failures(self, needs: Collection[tuple[str, str]], *, extra: bool) -> list[Failure]:
        """Select the failures of a model that needs these (operation, tensor type) and all
        operations on plain floats, with its weights in the `extra` buffer types or the others.
        """
        found = [failure for failure in self.failures if (failure.buffer != PLAIN) == extra]
        return [f for f in found if not f.kind or (f.op, f.kind) in needs]

    def to_dict(self) -> dict[str, Any]:
        return {
            "n_cases": self.n_cases,
            "failures": [list(vars(f).values()) for f in self.failures],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Proof:
        """Raises ValueError, TypeError or KeyError for anything else than `to_dict` gave."""
        rows = [(*map(str, row[:3]), int(row[3]), str(row[4])) for row in data["failures"]]
        return cls(int(data["n_cases"]), tuple(Failure(*row) for row in rows))  # type: ignore[arg-type]


def prove_once(folder: Path, n_threads: int, progress: Progress | None = None) -> Proof:
    """The proof of the libraries in `folder` on this machine: the stamp's, or made now."""
    key = make_key(folder)
    places = [place / f"engine-proof-{key}.json" for place in stamp_folders(folder)]
    for place in places:
        if proof := read_stamp(place, key):
            return proof
    proof, is_complete = prove(folder, n_threads, progress)
    if is_complete:
        stamp = {"kind": KIND, "key": key, **proof.to_dict()}
        for place in places:
            with suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(place, json.dumps(stamp).encode())
                break
    return proof


def make_key(folder: Path) -> str:
    """Stands for this build of the engine on this CPU and kernel."""
    facts: list[Any] = [VERSION, platform.machine(), platform.release(), describe_cpu()]
    for path in sorted(folder.iterdir()):
        info = path.stat()
        facts.append([path.name, info.st_size, info.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def describe_cpu() -> list[str]:
    """What this CPU is and can, one line each; boards with two kinds of cores have both."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return [platform.processor()]
    return sorted({" ".join(line.split()) for line in _CPU_LINE.findall(text)})


def stamp_folders(folder: Path) -> list[Path]:
    """Where a stamp may lie: with the engine's package, or in the cache."""
    from boardfit.edge.disk.verified import cache_directory

    return [folder.parent, cache_directory()]


def read_stamp(path: Path, key: str) -> Proof | None:
    """A stamp's proof; None when there is none, or it is damaged or of another engine."""
    try:
        if path.stat().st_size > _MAX_STAMP_BYTES:
            return None
        data = json.loads(path.read_bytes())
        return Proof.from_dict(data) if (data["kind"], data["key"]) == (KIND, key) else None
    except Exception:  # a damaged file is made again
        return None


def prove(folder: Path, n_threads: int, progress: Progress | None = None) -> tuple[Proof, bool]:
    """Run every case. A child that dies is started again behind the case that killed it. Returns
    the proof, and whether it is complete: not after a kill from outside, for lack of memory
    perhaps.
    """
    failures: list[Failure] = []
    deaths: dict[str, list[str]] = {}
    first, n_cases, is_complete = 0, 1, True
    while first < n_cases:
        at, case = first - 1, ("load", "", PLAIN, n_threads)
        hopeless = {
            buffer: f"not tried after others: {whys[-1]}"
            for buffer, whys in deaths.items()
            if len(whys) >= _MOST_DEATHS
        }
        for finding in run_cases(folder, n_threads, first, hopeless):
            match finding:
                case {"at": int(at), "of": int(n_cases), "case": [op, kind, buffer, int(n)]}:
                    case = (str(op), str(kind), str(buffer), n)
                    if progress:
                        progress(at, n_cases)
                case {"wrong": str(why)}:
                    failures.append(Failure(*case, why))
                case {"signal": str(name)} if name not in _FROM_OUTSIDE:
                    failures.append(Failure(*case, _DEATHS.get(name, name)))
                    deaths.setdefault(case[2], []).append(failures[-1].why)
                case {"signal": _} | {"exit": _}:
                    is_complete = False
        first = at + 1 if at >= first else n_cases
    return Proof(n_cases, tuple(failures)), is_complete


def run_cases(
    folder: Path, n_threads: int, first: int, hopeless: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """One child's findings, the last of them how it died. What is `hopeless` is not run."""
    words = (str(folder.resolve()), str(n_threads), str(first), json.dumps(dict(hopeless or {})))
    command = python_argv("boardfit.edge.probe.proof_kernels", *words)
    env = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        child = start_child(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=env)
    except OSError:  # an emulator of one program cannot start another
        yield {"exit": None}
        return
    try:
        ended = False
        for line in read_lines(child, lambda: _CASE_S):
            finding = json.loads(line)
            ended = "end" in finding
            yield finding
        if child.poll() is None and not ended:  # it hangs: threads that wait for each other
            yield {"wrong": f"does not end within {_CASE_S:.0f} s"}
        elif (code := child.wait()) < 0:
            yield {"signal": signal.Signals(-code).name}
        elif not ended:
            yield {"exit": code}
    finally:
        child.kill()
        child.communicate()


def main(argv: list[str]) -> None:
    """`FOLDER [N_THREADS]` → the proof as JSON; exit code 1 where something failed."""
    folder, n_threads = Path(argv[0]), int(argv[1]) if len(argv) > 1 else 2
    proof, is_complete = prove(folder, n_threads)
    print(json.dumps({**proof.to_dict(), "complete": is_complete}))
    sys.exit(bool(proof.failures))


if __name__ == "__main__":
    main(sys.argv[1:])
