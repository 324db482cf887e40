"""Open the way to a board: one class per kind of target, imported when it is needed."""

from pathlib import Path

import click

from boardfit.edge.flash.board import Board, DirectoryBoard
from boardfit.edge.flash.target import MEDIA, FlashTarget

#: Options that `edge flash`, `edge rollback`, `edge slots` and `edge key` share.
ssh_config_option = click.option(
    "--ssh-config", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Use this file instead of ~/.ssh/config (as ssh -F does).",
)  # fmt: skip
wait_option = click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=0, show_default=True,
    help="Seconds to wait for another flash of the same board.",
)  # fmt: skip


def connect(target: FlashTarget, *, ssh_config: Path | None = None, via: str = "auto") -> Board:
    """Open the way to a board. `ssh_config` stands in for ~/.ssh/config; `via` is how ssh sends.
    Raises DeviceUnreachableError when it cannot be reached.
    """
    if target.scheme == "dir":
        return DirectoryBoard(Path(target.folder))
    if target.scheme in MEDIA:
        from boardfit.edge.flash.media.root import ImageBoard

        return ImageBoard(target)
    if target.scheme == "adb":
        from boardfit.edge.flash.adb import AdbBoard

        return AdbBoard(target)
    from boardfit.edge.flash.ssh import SshBoard

    return SshBoard(target, config=ssh_config, via=via)
