"""An image or a card as a read-only board: `edge slots list image:FILE`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from boardfit.edge.errors import DeviceUnreachableError, InputError
from boardfit.edge.flash.media.ext4 import Ext4Files, Volume
from boardfit.edge.flash.media.release import ROOT
from boardfit.edge.flash.media.root import open_root
from boardfit.edge.flash.media.source import detect_packing
from boardfit.edge.flash.session import Done
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.probe.system import CapturedSystem
from boardfit.edge.terminal.progress import Advance


class ImageBoard:
    """`boardfit.edge.flash.board.Board` over an image's root file system, for reading."""

    is_running = False

    def __init__(self, target: FlashTarget) -> None:
        path = Path(target.folder)
        try:
            with contextlib.ExitStack() as stack:
                if target.scheme == "image" and (packing := detect_packing(path)):
                    raise InputError(
                        f"{path} is packed ({packing}); only plain images are looked into",
                        next_step=f"edge flash BUNDLE image:{path} unpacks it",
                    )
                file = stack.enter_context(path.open("rb"))
                _, partition = open_root(path, file, target.partition)
        except FileNotFoundError:
            raise DeviceUnreachableError(
                f"there is no {path}", next_step="edge flash --list-cards shows the cards"
            ) from None
        except PermissionError:
            raise InputError(
                f"{path} cannot be read by this user", next_step="read it as root (sudo)"
            ) from None
        self._volume = Volume(path, partition)
        self.place = f"{target.scheme}:{path}#{partition.number}"
        self.files = Ext4Files(self._volume, ROOT, self.place)

    def resume_from(self, n_there: int) -> int:
        return 0

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        raise self.files.reading_only()

    def can_patch(self) -> bool:
        return False

    def patch(self, source: Path, part: str, progress: Advance) -> int:
        raise self.files.reading_only()

    def execute(self, script: str, *, timeout_s: float) -> Done:
        return Done(126, b"", f"{self.place} is not a running board{os.linesep}")

    def capture(self) -> CapturedSystem | None:
        return None

    def close(self) -> None:
        self._volume.close()
