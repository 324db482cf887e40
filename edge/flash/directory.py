"""`dir:PATH`: a mounted card, a network share, or the board's own disk."""

from __future__ import annotations

from pathlib import Path

from boardfit.edge.errors import InputError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.session import Done
from boardfit.edge.process.child import run_child
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.terminal.progress import Advance

_BLOCK = 1 << 20


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

    def resume_from(self, n_there: int) -> int:
        return max(0, n_there - 1) // _BLOCK * _BLOCK

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        self.files.copy_into(source, part, offset, progress)
        return source.stat().st_size - offset

    def execute(self, script: str, *, timeout_s: float) -> Done:
        return Done.from_process(run_child(["sh", "-c", script], timeout_s=timeout_s))
