"""Open the way to a board: one class per kind of target, imported when it is needed."""

from __future__ import annotations

from pathlib import Path

from boardfit.edge.flash.board import Board
from boardfit.edge.flash.target import MEDIA, FlashTarget


def connect(target: FlashTarget, *, ssh_config: Path | None = None, via: str = "auto") -> Board:
    """Open the way to a board. `ssh_config` stands in for ~/.ssh/config; `via` is how ssh sends.

    Raises DeviceUnreachableError with the next step when it cannot be reached.
    """
    if target.scheme == "dir":
        from boardfit.edge.flash.directory import DirectoryBoard

        return DirectoryBoard(Path(target.folder))
    if target.scheme in MEDIA:
        from boardfit.edge.flash.media.board import ImageBoard

        return ImageBoard(target)
    if target.scheme == "adb":
        from boardfit.edge.flash.adb import AdbBoard

        return AdbBoard(target)
    from boardfit.edge.flash.ssh import SshBoard

    return SshBoard(target, config=ssh_config, via=via)
