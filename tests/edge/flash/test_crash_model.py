"""A disk that keeps only what was flushed. At every step of a flash the power goes, and what a disk
may then hold is laid out and looked at: files never fsynced are empty, or full of zeros; a folder
shows the names of its last fsync, or the newest ones, each folder by itself.

A kernel is kinder than that. What survives this needs no kindness.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import boardfit.edge.slots.files as files_module
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.flash import flash
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from tests.edge.flash.cargo import make_bundle
from tests.edge.flash.test_transfer import QUICK, Quiet

Names = dict[str, tuple[str, int | str]]


class Disk:
    """What was flushed, by inode. Inodes seen are kept open, so that no number is used twice."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, Names] = {}
        self._held: dict[int, int] = {}

    def flushed(self, fd: int) -> None:
        info = os.fstat(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if stat.S_ISDIR(info.st_mode):
            self.folders[info.st_ino] = self.names(path)
        elif stat.S_ISREG(info.st_mode):
            self._hold(path)
            self.files[info.st_ino] = path.read_bytes()

    def names(self, folder: Path) -> Names:
        found: Names = {}
        for path in folder.iterdir():
            self._hold(path)
            if path.is_symlink():
                found[path.name] = ("link", os.readlink(path))
            else:
                kind = "folder" if path.is_dir() else "file"
                found[path.name] = (kind, path.lstat().st_ino)
        return found

    def _hold(self, path: Path) -> None:
        inode = path.lstat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_PATH | os.O_NOFOLLOW)

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)

    def crash(self, image: Path, prefer_new: Callable[[], bool], fill: bytes) -> None:
        """Lay out at `image` what the disk may hold now."""
        now = {folder.lstat().st_ino: folder for folder in (self.root, *self.root.rglob("*"))}
        self._lay_out(self.root.lstat().st_ino, image, now, prefer_new, fill)

    def _lay_out(
        self, inode: int, image: Path, now: dict[int, Path],
        prefer_new: Callable[[], bool], fill: bytes,
    ) -> None:  # fmt: skip
        image.mkdir()
        newest = self.names(now[inode]) if inode in now else {}
        names = newest if prefer_new() else self.folders.get(inode, {})
        for name, (kind, what) in names.items():
            if kind == "link":
                os.symlink(str(what), image / name)
            elif kind == "folder":
                self._lay_out(int(what), image / name, now, prefer_new, fill)
            else:
                (image / name).write_bytes(self.files.get(int(what), fill))


@pytest.mark.parametrize("mode", ["newest names", "flushed names", "each folder its own"])
def test_the_power_goes_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    old, new = (
        open_bundle(
            make_bundle(tmp_path / name, {"model.gguf": name.encode() * 900, "d/x": b"shared"})
        )
        for name in ("old", "new")
    )
    root = tmp_path / "card"
    disk, rng = Disk(root), random.Random(7)
    choices = {
        "newest names": lambda: True,
        "flushed names": lambda: False,
        "each folder its own": lambda: rng.random() < 0.5,
    }
    real_fsync = os.fsync
    images = 0

    def fsync(fd: int) -> None:
        real_fsync(fd)
        disk.flushed(fd)

    def power_cut() -> None:
        nonlocal images
        if not root.exists():
            return
        for fill in (b"", bytes(2700)):
            images += 1
            image = tmp_path / f"image{images}"
            disk.crash(image, choices[mode], fill)
            look_at(image)

    def look_at(image: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(files_module, "fault_point", lambda: None)
            patch.setattr(os, "fsync", real_fsync)
            slots = Slots(LocalFiles(image))
            current = slots.current()
            assert current in before, (image, current)
            if current is not None:
                slots.verify(current)
            report = flash(new, DirectoryBoard(image), QUICK, Quiet())
            assert slots.current() == new.id and report.bundle == new.id
            slots.verify(new.id)

    board = DirectoryBoard(root)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(files_module, "fault_point", power_cut)
    try:
        before: set[str | None] = {None, old.id}
        flash(old, board, QUICK, Quiet())
        before = {old.id, new.id}
        flash(new, board, QUICK, Quiet())
        before = {new.id}
        power_cut()
    finally:
        disk.close()
    assert images > 100
