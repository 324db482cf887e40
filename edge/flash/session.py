"""Run scripts on a board and take their answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from boardfit.edge.errors import DeviceError, DeviceUnreachableError, EdgeError
from boardfit.edge.fields import read_finite, refuse_constant
from boardfit.edge.process.child import CompletedProcess, TimeoutExpired
from boardfit.edge.process.listener import run_limited
from boardfit.edge.slots.files import disk_trouble
from boardfit.edge.units import printable

MAX_OUTPUT = 16 * 1024 * 1024
#: What ssh and adb leave with when the connection breaks.
_BROKEN = 255


@dataclass(frozen=True)
class Done:
    rc: int
    out: bytes
    err: str

    @classmethod
    def from_process(cls, got: CompletedProcess[bytes]) -> Done:
        return cls(got.returncode, got.stdout, got.stderr.decode("utf-8", "replace"))

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")

    def last_record(self) -> dict[str, Any]:
        """The JSON object on the last line of the output; empty when there is none."""
        lines = self.text.strip().splitlines()
        try:
            record = json.loads(lines[-1], parse_constant=refuse_constant, parse_float=read_finite)
        except (IndexError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}


def shell_error(place: str, output: str, rc: int) -> EdgeError:
    """Turn the message of a failed script into an error with a next step."""
    lines = [line for line in output.strip().splitlines() if line.strip()]
    text = printable(lines[-1]) if lines else f"a command left with {rc}"
    return disk_trouble(place, output, text) or DeviceError(
        f"{place}: {text}", next_step="flash again: the data already sent is kept"
    )


class Channel(ABC):
    """How commands reach a board; `place` is the board as the user named it."""

    place: str

    @abstractmethod
    def argv(self, script: str) -> list[str]:
        """A local command line that runs `sh -c script` there, with its streams and exit code."""

    @abstractmethod
    def find_connection_error(self, done: Done) -> EdgeError | None:
        """The error behind a result that is the connection's and not the script's; else None."""

    def run(self, script: str, *, timeout_s: float = 60) -> Done:
        """Run a script there, without input. Raises DeviceUnreachableError when the connection
        breaks or the answer does not come in time, DeviceError when it is too long.
        """
        # On the input of a shell, because a command line must be short.
        text = f"{{ {script}\n}} </dev/null\n".encode()
        try:
            got = run_limited(
                self.argv("exec sh"), self.place, timeout_s=timeout_s, most_bytes=MAX_OUTPUT,
                input=text,
            )  # fmt: skip
        except TimeoutExpired:
            raise DeviceUnreachableError(
                f"{self.place} did not answer within {timeout_s:.0f} s",
                next_step="check that the board is on and reachable, then run it again",
            ) from None
        done = Done.from_process(got)
        if error := self._find_break(done):
            raise error
        return done

    def explain(self, done: Done) -> EdgeError:
        """The error for a script that failed, or for the connection that broke meanwhile."""
        return self._find_break(done) or shell_error(self.place, done.err, done.rc)

    def _find_break(self, done: Done) -> EdgeError | None:
        if (error := self.find_connection_error(done)) or 0 <= done.rc < _BROKEN:
            return error
        return DeviceUnreachableError(
            f"the connection to {self.place} was lost; the current release is unchanged",
            next_step="run the same command again to resume",
        )
