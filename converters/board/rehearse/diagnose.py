"""Explain what would fail on the board, from the end of an emulated program. Pure."""

from __future__ import annotations

import re

from boardfit.converters.board.rehearse.result import Problem, ProblemKind
from boardfit.edge.units import find_error_line, format_bytes, printable

_SIGNAL = re.compile(r"uncaught target signal (\d+)")
_MISSING = re.compile(
    r"(\S+\.so[.\d]*): cannot open shared object file|version [`'](\S+?)' not found"
)
# As `boardfit.edge.supervisor` reports the death of native code.
_NATIVE_DEATH = re.compile(r"in native code ended it|a check of the engine's own failed")
_SIGKILL, _SIGILL = 9, 4
_LESS_MEMORY = "plan with less memory: a shorter --ctx, or a smaller recipe"
_REBUILD = "edge engine add BUNDLE -o OUT makes it again, with kernels chosen on the board"


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

    def problem(kind: ProblemKind, message: str, next_step: str) -> Problem:
        return Problem(kind, stage, message, next_step)

    if oom_kills or signal == _SIGKILL:
        return problem(
            "out-of-memory",
            f"the kernel killed it at the {format_bytes(limit_bytes)} that the board leaves free",
            _LESS_MEMORY,
        )
    if signal == _SIGILL or "SIGILL" in output:
        return problem(
            "illegal-instruction",
            f"illegal instruction on {cpu}: the engine was compiled for a newer core",
            _REBUILD,
        )
    if match := _MISSING.search(output):
        return problem(
            "missing-library", f"the board's system has no {match[1] or match[2]}: {last}", _REBUILD
        )
    if signal is not None:
        return problem("crash", f"it ended with signal {signal}: {last}", "report this as a bug")
    if _NATIVE_DEATH.search(last):
        return problem("crash", last, "report this as a bug")
    if "is for Python" in output or "this board is" in output:
        return problem("wrong-wheel", last, _REBUILD)
    if code == 4:
        return problem("out-of-memory", last, _LESS_MEMORY)
    if code == 7:
        return problem("damaged", last, "copy or build the bundle again")
    return problem("engine", last or f"exit code {code}", "BOARDFIT_TRACEBACK=1 shows more")
