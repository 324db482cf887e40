"""The modes of a card do not depend on who flashed it: others read it, and nobody else writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.flash import FlashOptions, flash
from boardfit.edge.terminal.progress import Reporter
from tests.edge.flash.cargo import make_bundle


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_a_flash_leaves_the_same_modes_under_every_umask(tmp_path: Path, mask: int) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "bundle", {"model.gguf": b"x", "a/b/c": b"y"}))
    before = os.umask(mask)
    try:
        board = DirectoryBoard(tmp_path / "new")
        flash(bundle, board, FlashOptions(gate=False), Reporter())
    finally:
        os.umask(before)
    places = [p for p in (tmp_path / "new", *(tmp_path / "new").rglob("*")) if not p.is_symlink()]
    modes = {(p.is_dir(), p.stat().st_mode & 0o777) for p in places}
    assert modes == {(True, 0o755), (False, 0o644)}, [
        (p, oct(p.stat().st_mode)) for p in places if p.stat().st_mode & 0o022
    ]
