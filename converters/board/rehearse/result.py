"""What a rehearsal is asked, what it found, and what the end of an emulated program means."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from boardfit.converters.board.rehearse.cpu import CpuChoice
from boardfit.converters.board.rehearse.sandbox import How
from boardfit.edge.errors import DoesNotFitError, EdgeError, EngineError, IntegrityError
from boardfit.edge.probe.emulation import GuestMemory
from boardfit.edge.units import find_error_line, format_bytes, printable

PROMPT = "Turn on the light in the kitchen."
#: Tokens that must agree, near ties included. Not all: rounding differs between kernels.
MIN_AGREEMENT = 0.9

ProblemKind = Literal[
    "illegal-instruction", "crash", "missing-library", "wrong-wheel", "out-of-memory",
    "wrong-answers", "damaged", "timeout", "engine",
]  # fmt: skip
_ERRORS: Mapping[str, type[EdgeError]] = {
    "out-of-memory": DoesNotFitError,
    "damaged": IntegrityError,
}
_SIGNAL = re.compile(r"uncaught target signal (\d+)")
_MISSING = re.compile(
    r"(\S+\.so[.\d]*): cannot open shared object file|version [`'](\S+?)' not found"
)
# As `boardfit.edge.supervisor` reports the death of native code.
_NATIVE_DEATH = re.compile(r"in native code ended it|a check of the engine's own failed")
_SIGKILL, _SIGILL = 9, 4
LESS_MEMORY = "plan with less memory: a shorter --ctx, or a smaller recipe"
REPORT = "report this as a bug"
_REBUILD = "edge engine add BUNDLE -o OUT makes it again, with kernels chosen on the board"


@dataclass(frozen=True)
class Options:
    """`how` fixes the way to run arm64 programs, `root` a root file system of one's own."""

    prompt: str = PROMPT
    n_tokens: int = 16
    how: How | None = None
    root: Path | None = None
    free_bytes: int | None = None
    min_agreement: float = MIN_AGREEMENT


@dataclass(frozen=True)
class TokenAgreement:
    """Of `n` tokens, `equal` are the host's own, and `near` are nearly as likely there."""

    n: int
    equal: int
    near: int

    @property
    def share(self) -> float:
        return (self.equal + self.near) / self.n if self.n else 0.0


@dataclass(frozen=True)
class Problem:
    """Why the board would not have a working model: in which stage, what, and what to do."""

    kind: ProblemKind
    stage: str
    message: str
    next_step: str = REPORT


@dataclass
class Rehearsal:
    """One rehearsal. Seconds are the emulator's and do not predict the board. `memory` is the peak
    of the board's program and, apart, of the emulator; `limit_bytes` what the board leaves free;
    `planned_bytes` is the plan's figure. None: not reached, or not measured.
    """

    bundle_id: str
    device: str
    board_core: str
    cpu: CpuChoice
    how: str
    limit_how: str
    limit_bytes: int
    planned_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    engine: str | None = None
    kernels: tuple[str, ...] = ()
    text: str | None = None
    agreement: TokenAgreement | None = None
    memory: GuestMemory | None = None
    problem: Problem | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.problem is None

    def fail(
        self, kind: ProblemKind, message: str, stage: str = "answering", next_step: str = REPORT
    ) -> None:
        self.problem = Problem(kind, stage, message, next_step)

    @property
    def error(self) -> EdgeError | None:
        """What the command line ends with, its message naming the stage; None if all is well."""
        if self.problem is None:
            return None
        message = f"rehearsal for {self.device} failed while {self.problem.stage}: "
        kind = _ERRORS.get(self.problem.kind, EngineError)
        return kind(message + self.problem.message, next_step=self.problem.next_step)

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["cpu"] = {
            "name": self.cpu.cpu.name,
            "exact": self.cpu.exact,
            "untried": sorted(self.cpu.untried),
        }
        data["seconds"] = {name: round(value, 2) for name, value in self.seconds.items()}
        if self.agreement:
            data["agreement"]["share"] = self.agreement.share
        record = {"schema": 1, "kind": "boardfit-rehearsal", "ok": self.ok, **data}
        if self.problem:  # under the keys that every command's error has
            record |= {"message": self.problem.message, "next_step": self.problem.next_step}
        return record


def find_signal(code: int, output: str) -> int | None:
    """The signal that ended a program: its own, the shell's 128 + n, or what qemu reports."""
    if match := _SIGNAL.search(output):
        return int(match[1])
    if code < 0:
        return -code
    return code - 128 if 128 < code < 160 else None


def diagnose(
    stage: str, code: int, output: str, *, oom_kills: int, limit_bytes: int, cpu: str
) -> Problem:
    """The problem behind exit `code` and the end of a stage's `output`."""
    signal = find_signal(code, output)
    last = printable(find_error_line(output), limit=600)
    if oom_kills or signal == _SIGKILL:
        message = f"the kernel killed it at the {format_bytes(limit_bytes)} that the board leaves"
        return Problem("out-of-memory", stage, f"{message} free", LESS_MEMORY)
    if signal == _SIGILL or "SIGILL" in output:
        message = f"illegal instruction on {cpu}: the engine was compiled for a newer core"
        return Problem("illegal-instruction", stage, message, _REBUILD)
    if match := _MISSING.search(output):
        message = f"the board's system has no {match[1] or match[2]}: {last}"
        return Problem("missing-library", stage, message, _REBUILD)
    if signal is not None:
        return Problem("crash", stage, f"it ended with signal {signal}: {last}")
    if _NATIVE_DEATH.search(last):
        return Problem("crash", stage, last)
    if ", this board has " in output:
        return Problem("wrong-wheel", stage, last, _REBUILD)
    if code == 4:
        return Problem("out-of-memory", stage, last, LESS_MEMORY)
    if code == 7:
        return Problem("damaged", stage, last, "copy or build the bundle again")
    step = "BOARDFIT_TRACEBACK=1 shows more"
    return Problem("engine", stage, last or f"exit code {code}", step)
