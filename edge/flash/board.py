"""One base for every place that a bundle can be flashed to."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from boardfit.edge.flash.session import Done
from boardfit.edge.probe.system import CapturedSystem
from boardfit.edge.slots.files import BoardFiles
from boardfit.edge.terminal.progress import Advance


class Board:
    """A connected board, `place` as the user named it, with the files below its root. Close it when
    done. `is_running`: whether programs can be run on the board itself, which a card cannot.
    """

    is_running: ClassVar[bool] = False
    place: str
    files: BoardFiles

    def resume_from(self, n_there: int) -> int:
        """From which byte a part of `n_there` bytes goes on; the last block may be half written."""
        return 0

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        """Write `source` from byte `offset` to the same place in `part`, unflushed. Returns the
        bytes sent.
        """
        raise self.files.read_only_error()

    def can_patch(self) -> bool:
        """Whether `patch` works: rsync on both ends."""
        return False

    def patch(self, source: Path, part: str, progress: Advance) -> int:
        """Make `part`, which holds something similar, equal to `source`, sending what differs.
        Returns the bytes that crossed, both ways.
        """
        raise NotImplementedError(f"{self.place} has no rsync")

    def execute(self, script: str, *, timeout_s: float) -> Done:
        """Run a shell script on the board."""
        return Done(126, b"", f"{self.place} is not a running board\n")

    def capture(self) -> CapturedSystem | None:
        """What a probe would read there; None where there is no board to ask."""
        return None

    def close(self) -> None:
        """Let go of the connection, where there is one."""
