"""Flashing where keys are pinned: refused here before a byte is sent, refused there by a program of
the board, and never a board whose own release is pinned out.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

import boardfit.edge.slots.faults as faults
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.errors import EdgeError, EngineError, IntegrityError, UsageError
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.flash import FlashOptions, FlashReport, flash
from boardfit.edge.flash.gate import GateVerdict
from boardfit.edge.flash.trust import SignaturePolicy, admit, check_on_board
from boardfit.edge.slots import layout
from boardfit.edge.slots.store import Slots
from boardfit.edge.slots.trust import pin_keys, pinned_keys
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.trust.pins import TRUSTED_KEYS
from boardfit.edge.trust.signing import SigningKey
from tests.edge.flash.power_cut import PowerCut
from tests.edge.flash.test_fault_points import PipeBoard
from tests.edge.flash.test_transfer import Quiet
from tests.programs import require

Keys = tuple[SigningKey, SigningKey]


def options(required: bool = False, *keys: SigningKey) -> FlashOptions:
    policy = SignaturePolicy(required or bool(keys), tuple(key.public for key in keys))
    return FlashOptions(gate=False, signature=policy)


def put(bundle: Path, root: Path, how: FlashOptions) -> FlashReport:
    return flash(open_bundle(bundle), DirectoryBoard(root), how, Quiet())


def test_the_first_signed_flash_pins_and_the_next_unsigned_one_is_refused_before_it_is_sent(
    bundle: Path, other: Path, keys: Keys, tmp_path: Path
) -> None:
    root = tmp_path / "board"
    sign_bundle(bundle, keys[0])
    report = put(bundle, root, options(True, keys[0]))
    print_of = keys[0].public.fingerprint
    assert (report.signed_by, report.pinned) == (print_of, [print_of])
    before = sorted(root.rglob("*"))
    for how in (options(), options(True), options(True, keys[0])):
        with pytest.raises(IntegrityError, match="is not signed"):
            put(other, root, how)
        assert sorted(root.rglob("*")) == before
    sign_bundle(other, keys[1])
    with pytest.raises(IntegrityError, match="is signed by"):
        put(other, root, options())
    with pytest.raises(UsageError, match="other keys pinned"):
        put(other, root, options(True, keys[1]))
    assert sorted(root.rglob("*")) == before
    sign_bundle(other, keys[0])
    assert put(other, root, options()).switched  # pinned: nothing needs to be asked for
    facts = Slots(DirectoryBoard(root).files).releases()[0].facts
    assert facts["signed_by"] == print_of


def test_without_a_key_the_first_signer_is_pinned(
    bundle: Path, other: Path, keys: Keys, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="a signature is required"):
        put(bundle, tmp_path / "board", options(True))
    assert not (tmp_path / "board/releases").exists()
    sign_bundle(bundle, keys[1])
    assert put(bundle, tmp_path / "board", options(True)).pinned == [keys[1].public.fingerprint]
    with pytest.raises(IntegrityError, match="--require-signature accepts only"):
        put(bundle, tmp_path / "another", options(True, keys[0]))


def test_without_anything_asked_for_nothing_is_pinned(
    bundle: Path, keys: Keys, tmp_path: Path
) -> None:
    sign_bundle(bundle, keys[0])
    report = put(bundle, tmp_path / "board", options())
    assert report.pinned == [] and not (tmp_path / "board" / TRUSTED_KEYS).exists()


def test_a_release_that_was_there_gets_one_more_signature_alone(
    bundle: Path, keys: Keys, tmp_path: Path
) -> None:
    root = tmp_path / "board"
    sign_bundle(bundle, keys[1])
    put(bundle, root, options())
    sign_bundle(bundle, keys[0])
    report = put(bundle, root, options(True, keys[0]))
    assert report.n_sent == 0 and report.pinned and not report.switched
    assert open_bundle(root / "current/bundle")


def test_a_release_that_fails_after_the_switch_leaves_nothing_pinned(
    bundle: Path, other: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier release is unsigned: pinned too early, it could not be gone back to."""
    root = tmp_path / "board"
    put(bundle, root, options())
    sign_bundle(other, keys[0])

    def verdict(*_: object, quick: bool = False) -> GateVerdict:
        return GateVerdict(failures=["died"] if quick else [])

    monkeypatch.setattr("boardfit.edge.flash.flash.try_release", verdict)
    how = FlashOptions(signature=SignaturePolicy(True))
    with pytest.raises(EngineError, match="Switched back"):
        put(other, root, how)
    assert not (root / TRUSTED_KEYS).exists()
    assert open_bundle(root / "current/bundle").id == open_bundle(bundle).id


def test_at_every_power_cut_the_board_starts_what_it_has(
    bundle: Path, other: Path, keys: Keys, tmp_path: Path
) -> None:
    """An unsigned release is there; a signed one is flashed and pinned, killed at every point."""
    sign_bundle(other, keys[0])
    opened, start = open_bundle(other), tmp_path / "start"
    put(bundle, start, options())

    def cut(root: Path, fault: str) -> int:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                faults.hook = PowerCut(fault)
                flash(opened, DirectoryBoard(root), options(True), Quiet())
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    shutil.copytree(start, tmp_path / "counted", symlinks=True)
    assert cut(tmp_path / "counted", f"count:{tmp_path / 'n'}") == 0
    n_points = int((tmp_path / "n").read_text())
    assert n_points > 30
    n_pinned = 0
    for point in range(1, n_points + 1):
        root = tmp_path / "root"
        shutil.copytree(start, root, symlinks=True)
        assert cut(root, str(point)) == -9
        assert open_bundle(root / "current/bundle", verify=True)
        n_pinned += (root / TRUSTED_KEYS).exists()
        put(other, root, options(True))
        assert (root / TRUSTED_KEYS).exists() and open_bundle(root / "current/bundle")
        shutil.rmtree(root)
    assert 0 < n_pinned < n_points


# ---- the check on the board ---------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board whose PATH has the usual commands, no edge and no ssh-keygen."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in os.listdir("/usr/bin"):
        if name not in ("edge", "ssh-keygen"):
            (folder / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def add_edge(path: Path, body: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body or f'#!/bin/sh\nexec {sys.executable} -m boardfit "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("checker", ["edge", "current release", "ssh-keygen", "nobody"])
def test_the_board_checks_by_a_program_of_its_own(
    checker: str, bundle: Path, other: Path, keys: Keys, tmp_path: Path, programs: Path
) -> None:
    root = tmp_path / "the board's root"
    for path in (bundle, other):
        sign_bundle(path, keys[0])
    board = PipeBoard(root)
    first = flash(open_bundle(bundle), board, options(True), Quiet())
    assert "checked by this machine" in first.notes[0]
    if checker == "edge":
        add_edge(programs / "edge")
    elif checker == "ssh-keygen":
        (programs / "ssh-keygen").symlink_to("/usr/bin/ssh-keygen")
        require("ssh-keygen")  # a link that leads nowhere is none
    elif checker == "current release":
        add_edge(root / layout.env_folder(first.bundle) / "bin/edge")
    second = flash(open_bundle(other), board, options(), Quiet())
    assert second.switched
    assert bool(second.notes) == (checker == "nobody")
    board.close()


@pytest.mark.parametrize("where", ["edge", "current release"])
def test_what_the_board_refuses_is_not_switched_to(
    where: str, bundle: Path, other: Path, keys: Keys, tmp_path: Path, programs: Path
) -> None:
    """Its administrator accepts somebody else: the host cannot know, the board's own edge does."""
    for path in (bundle, other):
        sign_bundle(path, keys[0])
    root, board = tmp_path / "root", PipeBoard(tmp_path / "root")
    first = flash(open_bundle(bundle), board, options(True), Quiet())
    system = tmp_path / "system_keys"
    system.write_text(keys[1].public.line + "\n")
    body = f"#!/bin/sh\nBOARDFIT_TRUSTED_KEYS='{system}' exec {sys.executable} -m boardfit \"$@\"\n"
    at = programs if where == "edge" else root / layout.env_folder(first.bundle) / "bin"
    add_edge(at / "edge", body)
    with pytest.raises(IntegrityError, match=r"refuses release .* signed by"):
        flash(open_bundle(other), board, options(), Quiet())
    assert Slots(board.files).current() == first.bundle
    sign_bundle(other, keys[1])
    assert flash(open_bundle(other), board, options(), Quiet()).switched
    board.close()


def test_an_old_edge_that_knows_no_keys_is_passed_over(
    bundle: Path, keys: Keys, tmp_path: Path, programs: Path
) -> None:
    sign_bundle(bundle, keys[0])
    record = {"error": "UsageError", "message": "there is no command 'key'"}
    add_edge(programs / "edge", f"#!/bin/sh\necho '{json.dumps(record)}'\nexit 2\n")
    board = PipeBoard(tmp_path / "root")
    assert (
        "checked by this machine"
        in flash(open_bundle(bundle), board, options(True), Quiet()).notes[0]
    )
    board.close()


def test_a_signature_lost_on_the_way_is_noticed(
    bundle: Path, keys: Keys, tmp_path: Path, programs: Path
) -> None:
    sign_bundle(bundle, keys[0])
    board, opened = PipeBoard(tmp_path / "root"), open_bundle(bundle)
    flash(opened, board, options(True), Quiet())
    slots = Slots(board.files)
    admission = admit(opened, slots, SignaturePolicy())
    (tmp_path / "root" / layout.bundle_folder(opened.id) / SIGNATURE).unlink()
    with pytest.raises(IntegrityError, match="is refused"):
        check_on_board(board, slots, opened, admission)
    board.close()


@pytest.mark.parametrize("kind", ["dir", "shell"])
def test_keys_are_pinned_and_removed_over_every_road(kind: str, keys: Keys, tmp_path: Path) -> None:
    root = tmp_path / "root with ' and ü"
    board = DirectoryBoard(root) if kind == "dir" else PipeBoard(root)
    board.files.prepare()
    assert pinned_keys(board.files) == ()
    pin_keys(board.files, [key.public for key in keys])
    assert pinned_keys(board.files) == tuple(key.public for key in keys)
    pin_keys(board.files, [])
    assert pinned_keys(board.files) == ()
    (root / TRUSTED_KEYS).symlink_to(tmp_path / "one.pub")
    with pytest.raises(EdgeError, match="nothing is accepted"):
        pinned_keys(board.files)
    board.close()
