"""One protocol for every place that a bundle can be flashed to."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from boardfit.edge.flash.session import Done
from boardfit.edge.probe.system import CapturedSystem
from boardfit.edge.slots.files import BoardFiles
from boardfit.edge.terminal.progress import Advance


class Board(Protocol):
    """A connected board. Close it when done; `with` does."""

    @property
    def place(self) -> str:
        """The board as the user named it."""

    @property
    def files(self) -> BoardFiles:
        """Its files, below the root that the user named."""

    @property
    def is_running(self) -> bool:
        """Whether programs can be run on the board itself. A mounted card has no processor."""

    def resume_from(self, n_there: int) -> int:
        """From which byte a part of `n_there` bytes goes on; the last block may be half written."""

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        """Write `source` from byte `offset` to the same place in `part`; flushing is `settle`'s.
        `progress` receives byte counts. Returns the bytes that crossed to the board.
        """

    def can_patch(self) -> bool:
        """Whether `patch` works: rsync on both ends."""

    def patch(self, source: Path, part: str, progress: Advance) -> int:
        """Make `part`, which holds something similar, equal to `source`, sending what differs.
        Returns the bytes that crossed to the board and back.
        """

    def execute(self, script: str, *, timeout_s: float) -> Done:
        """Run a shell script on the board."""

    def capture(self) -> CapturedSystem | None:
        """What a probe would read there; None where there is no board to ask."""

    def close(self) -> None:
        """Let go of the connection."""
