"""What a rehearsal found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from boardfit.converters.board.rehearse.cpu import CpuChoice
from boardfit.converters.board.rehearse.reference import TokenAgreement
from boardfit.edge.errors import DoesNotFitError, EngineError, IntegrityError
from boardfit.edge.probe.emulation import GuestMemory

ProblemKind = Literal[
    "illegal-instruction", "crash", "missing-library", "wrong-wheel", "out-of-memory",
    "wrong-answers", "damaged", "timeout", "engine",
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Why the board would not have a working model: in which stage, what, and what to do."""

    kind: ProblemKind
    stage: str
    message: str
    next_step: str


@dataclass(frozen=True)
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
    seconds: Mapping[str, float]
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

    def raise_for_problem(self) -> None:
        """Raise what the command line would exit with: DoesNotFitError, IntegrityError or
        EngineError, its message naming the stage.
        """
        if self.problem is None:
            return
        message = f"rehearsal for {self.device} failed while {self.problem.stage}: "
        message += self.problem.message
        if self.problem.kind == "out-of-memory":
            raise DoesNotFitError(message, next_step=self.problem.next_step)
        if self.problem.kind == "damaged":
            raise IntegrityError(message, next_step=self.problem.next_step)
        raise EngineError(message, next_step=self.problem.next_step)

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
