"""Every numbered write, rename and fsync of a flash as the last thing that happens, and each of
them failing: over a folder, and over a shell as ssh and adb give one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import boardfit.edge.slots.faults as faults
from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.errors import EdgeError
from boardfit.edge.flash.board import Board, DirectoryBoard
from boardfit.edge.flash.flash import flash
from boardfit.edge.flash.shell_files import ShellBoard
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.layout import release_folder
from boardfit.edge.slots.store import Slots
from tests.edge.flash.cargo import make_bundle
from tests.edge.flash.power_cut import PowerCut
from tests.edge.flash.test_files import PipeChannel
from tests.edge.flash.test_transfer import QUICK, Quiet


class PipeBoard(ShellBoard):
    """A board that is a shell of this machine: all of ssh but the network."""

    def __init__(self, root: Path) -> None:
        super().__init__(PipeChannel(), str(root))

    def capture(self) -> None:  # type: ignore[override]
        return None


def make_board(kind: str, root: Path) -> Board:
    return DirectoryBoard(root) if kind == "dir" else PipeBoard(root)


def flash_in_child(bundle: Bundle, kind: str, root: Path, fault: str) -> int:
    """Flash in a process of its own, which may be killed; its exit status, -9 for a kill."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            faults.hook = PowerCut(fault)
            board = make_board(kind, root)
            flash(bundle, board, QUICK, Quiet())
            board.close()
            code = 0
        except EdgeError:
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Bundle, Bundle]:
    return tuple(  # type: ignore[return-value]
        open_bundle(
            make_bundle(tmp_path / name, {"model.gguf": name.encode() * 60_000, "d/x": b"shared"})
        )
        for name in ("old", "new")
    )


def points(kind: str, root: Path, bundle: Bundle, counter: Path) -> Iterator[int]:
    assert flash_in_child(bundle, kind, root, f"count:{counter}") == 0
    n = int(counter.read_text())
    assert n > 30
    return iter(range(1, n + 1))


@pytest.mark.parametrize("kind", ["dir", "shell"])
@pytest.mark.parametrize("what", ["killed", "ENOSPC", "EIO"])
def test_at_every_point_a_whole_release_is_current(
    kind: str, what: str, bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    if kind == "shell" and what != "killed":
        pytest.skip("a board's shell fails by itself: test_files fills its disk")
    old, new = bundles
    root = tmp_path / "böard"
    assert flash_in_child(old, kind, root, "0") == 0
    slots = Slots(LocalFiles(root))
    n_cut = 0
    for point in points(kind, root, new, tmp_path / "count"):
        slots.switch_back(old.id)
        slots.remove([new.id])
        fault = f"{point}" if what == "killed" else f"{point}:{what}"
        code = flash_in_child(new, kind, root, fault)
        assert code == (-signal.SIGKILL if what == "killed" else 3), (point, code)
        n_cut += 1
        current = slots.current()
        assert current in (old.id, new.id)
        slots.verify(current)
        for release in slots.present():
            slots.verify(release)  # nothing half-written under a final name
        assert flash_in_child(new, kind, root, "0") == 0, point
        assert slots.current() == new.id and slots.previous() == old.id
        slots.verify(new.id)
    assert n_cut > 30
    assert not (root / "incoming").exists()
    assert sorted(os.listdir(root / "releases")) == sorted(
        release_folder(b.id).rpartition("/")[2] for b in bundles
    )
