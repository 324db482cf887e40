"""Places that a bundle can be flashed to: one base, and folders of this machine."""

from pathlib import Path
from typing import ClassVar

from boardfit.edge.errors import InputError
from boardfit.edge.flash.session import Done
from boardfit.edge.probe.system import CapturedSystem
from boardfit.edge.process.child import run_child
from boardfit.edge.slots.files import BoardFiles, LocalFiles
from boardfit.edge.terminal.progress import Advance

#: What a part may be cut back to.
BLOCK = 1 << 20


class Board:
    """A connected board, `place` as the user named it, with the files below its root. Close it when
    done. `is_running`: whether programs can be run on the board itself, which a card cannot.
    """

    is_running: ClassVar[bool] = False
    place: str
    files: BoardFiles

    def resume_from(self, n_there: int) -> int:
        """From which byte a part of `n_there` bytes goes on; the last block may be half written."""
        return max(0, n_there - 1) // BLOCK * BLOCK

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        """Write `source` from byte `offset` to the same place in `part`, unflushed. Returns the
        bytes sent.
        """
        raise self.files.read_only_error()

    def can_patch(self) -> bool:
        """Whether `patch` works: rsync on both ends."""
        return False

    def patch(self, source: Path, part: str) -> int:
        """Make `part`, which holds something similar, equal to `source`, sending what differs.
        Returns the bytes that crossed, both ways.
        """
        raise NotImplementedError(f"{self.place} has no rsync")

    def execute(self, script: str, *, timeout_s: float) -> Done:
        return Done(126, b"", f"{self.place} is not a running board\n")

    def capture(self) -> CapturedSystem | None:
        """What a probe would read there; None where there is no board to ask."""
        return None

    def close(self) -> None:
        """Let go of the connection, where there is one."""


class DirectoryBoard(Board):
    """A folder of this machine. Nothing is run in it but the health gate's reading of the model."""

    files: LocalFiles

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is not a folder", next_step="give a folder: dir:/media/card")
        if not path.absolute().parent.is_dir():
            raise InputError(
                f"there is no folder {path.absolute().parent}",
                next_step="mount the card or share first, then give a path inside it",
            )
        self.place = f"dir:{path}"
        self.files = LocalFiles(path)

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        self.files.copy_into(source, part, offset, progress)
        return source.stat().st_size - offset

    def execute(self, script: str, *, timeout_s: float) -> Done:
        return Done.from_process(run_child(["sh", "-c", script], timeout_s=timeout_s))
