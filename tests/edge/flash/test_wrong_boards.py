"""Boards that ask for passwords, say nothing, or are not what an engine needs: through a real sshd
and a real adb, with the board's answers made as such a board gives them.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.flash.checks import facts_script, parse_facts
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from tests.edge.flash.boards import AdbBoard, SshBoard
from tests.edge.flash.cargo import make_bundle
from tests.edge.flash.conftest import need
from tests.edge.flash.test_bad_boards import flash
from tests.programs import find, skip_or_fail

pytestmark = pytest.mark.xdist_group("flash")

ENGINE = {"machine": "aarch64", "python": "3.11", "glibc": "2.36"}
NEEDED = ("sh", "cat", "head", "od", "tr", "mkdir", "rm", "chmod", "find", "stat", "readlink",
          "printf", "env", "bash", "dash")  # fmt: skip


# ---- they ask, or say nothing --------------------------------------------------------------------


def test_a_board_that_asks_for_a_password_is_not_waited_for(
    cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    need("ssh")
    asked = tmp_path / "asked"
    askpass = tmp_path / "askpass"
    askpass.write_text(f"#!/bin/sh\n: > {asked}\necho secret\n")
    askpass.chmod(0o755)
    settings = (
        "PasswordAuthentication yes\nKbdInteractiveAuthentication yes\nPubkeyAuthentication no\n"
        "PermitRootLogin yes"
    )
    with SshBoard(tmp_path / "ssh", tmp_path / "root", cable=False, settings=settings) as board:
        env = {"SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
        code, said = flash(cargo[0], board.target, *board.options, env=env)
    assert code == 6 and "never asks for a password" in said and "next: ssh-copy-id" in said
    assert not asked.exists()


@pytest.mark.slow
def test_a_host_that_accepts_and_says_nothing(cargo: tuple[Path, Path], sshd: SshBoard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code, said = flash(cargo[0], f"ssh://127.0.0.1:{port}/tmp/x", *sshd.options)
    assert code == 6 and "cannot be reached" in said and "timed out" in said, said


def test_a_device_that_is_offline(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    need("adb")
    with AdbBoard(tmp_path / "adb", tmp_path / "root", silent=True) as board:
        code, said = flash(cargo[0], board.target, env=board.env)
    assert code == 6 and "is offline" in said and "adb reconnect" in said, said


# ---- they are not what the engine needs ----------------------------------------------------------


@pytest.fixture
def engine_bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", {"model.gguf": b"m"}, board=ENGINE)


def programs(folder: Path, **answers: str) -> str:
    """A PATH with what a small system has, and programs that answer as a board's do."""
    folder.mkdir()
    for name in NEEDED:
        if (program := find(name)) and name not in answers:
            os.symlink(program, folder / name)
    answers = {"uname": "echo aarch64", **answers}
    for name, script in answers.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


GETCONF = "case $1 in LONG_BIT) echo {bits} ;; GNU_LIBC_VERSION) echo glibc {libc} ;; esac"
FINE = GETCONF.format(bits=64, libc="2.36")


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (
            {"getconf": GETCONF.format(bits=32, libc="2.36"), "python3": "echo python 3.11"},
            "its userland is 32-bit (the kernel is not): it needs a 64-bit system",
        ),
        (
            {"getconf": GETCONF.format(bits=64, libc="2.31"), "python3": "echo python 3.11"},
            "its glibc is 2.31, the engine needs 2.36",
        ),
        ({"getconf": FINE, "python3": "echo python 3.7"}, "its Python is 3.7, the wheels are for"),
        ({"getconf": FINE}, "it has no Python: apt install python3 python3-venv"),
        ({"getconf": FINE, "python3": "exit 127"}, "it has no Python"),
        (
            {"getconf": FINE, "python3": "echo python 3.11", "uname": "echo armv7l"},
            "its processor is armv7l, the engine aarch64",
        ),
    ],
    ids=["32-bit userland", "old glibc", "old Python", "no Python", "broken Python", "32-bit"],
)
def test_a_board_whose_system_cannot_run_the_engine(
    answers: dict[str, str], why: str, engine_bundle: Path, tmp_path: Path
) -> None:
    need("ssh")
    path = programs(tmp_path / "bin", **answers)
    root = tmp_path / "root"
    with SshBoard(tmp_path / "ssh", root, path, cable=False) as board:
        code, said = flash(engine_bundle, board.target, *board.options, "--force")
    assert code == 3 and why in said and "next: edge build --with-engine" in said, said
    assert not root.exists(), "nothing was sent"


@pytest.fixture
def mounts() -> Iterator[list[Path]]:
    """Folders in which a test has mounted something."""
    made: list[Path] = []
    yield made
    for folder in reversed(made):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(folder: Path, options: str, mounts: list[Path]) -> None:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        skip_or_fail("mounting needs root")
    mounts.append(folder)


def test_a_folder_in_which_nothing_can_be_run(
    engine_bundle: Path, tmp_path: Path, mounts: list[Path]
) -> None:
    need("ssh")
    mount(tmp_path / "card", "noexec", mounts)
    path = programs(tmp_path / "bin", getconf=FINE, python3="echo python 3.11")
    root = tmp_path / "card/not there yet"
    with SshBoard(tmp_path / "ssh", root, path, cable=False) as board:
        target = board.target.replace(" ", "%20")
        code, said = flash(engine_bundle, target, *board.options, "--force")
    assert code == 3 and "(mounted noexec): choose another" in said, said
    assert not root.exists()


def test_a_system_with_musl_is_seen(tmp_path: Path, mounts: list[Path]) -> None:
    """Its loader lies in /lib, shown there in a namespace of its own; getconf knows no glibc."""
    mount(tmp_path / "over", "mode=755", mounts)
    for name in ("upper", "work"):
        (tmp_path / "over" / name).mkdir()
    (tmp_path / "over/upper/ld-musl-aarch64.so.1").touch()
    path = programs(tmp_path / "bin", getconf='[ "$1" = LONG_BIT ] && echo 64')
    lib = Path("/lib").resolve()
    overlay = f"lowerdir={lib},upperdir={tmp_path}/over/upper,workdir={tmp_path}/over/work"
    script = facts_script(str(tmp_path))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c",
         f'mount -t overlay -o "{overlay}" overlay {lib} || exit 77\nPATH={path}; eval "$1"',
         "sh", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
    facts = parse_facts(done.stdout)
    assert facts.musl and facts.glibc is None and facts.bits == 64, done


# ---- their disks and users -----------------------------------------------------------------------


def test_a_read_only_board_keeps_what_it_has(
    cargo: tuple[Path, Path], sshd: SshBoard, tmp_path: Path, mounts: list[Path]
) -> None:
    mount(tmp_path / "card", "size=8m", mounts)
    sshd.root = tmp_path / "card/models"
    code, said = flash(cargo[0], sshd.target, *sshd.options, "--no-gate", "--force")
    assert code == 0, said
    before = Slots(LocalFiles(sshd.root)).current()
    subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "card")], check=True)
    code, said = flash(cargo[1], sshd.target, *sshd.options, "--no-gate", "--force")
    assert code == 3 and "read-only" in said and "remount,rw" in said, said
    slots = Slots(LocalFiles(sshd.root))
    assert slots.current() == before
    slots.verify(before or "")


def test_something_in_the_way_is_named(
    cargo: tuple[Path, Path], sshd: SshBoard, tmp_path: Path
) -> None:
    sshd.root = tmp_path / "file"
    sshd.root.write_text("somebody's notes")
    code, said = flash(cargo[0], sshd.target, *sshd.options, "--no-gate", "--force")
    assert code == 3 and "in the way" in said and "choose another folder" in said, said
    assert sshd.root.read_text() == "somebody's notes"


def test_a_board_without_a_clock(cargo: tuple[Path, Path], sshd: SshBoard, tmp_path: Path) -> None:
    """It wakes up in 1970: what was written before is newer than now, or of the same second."""
    sshd.root = tmp_path / "1970"
    for bundle in cargo:
        code, said = flash(bundle, sshd.target, *sshd.options, "--no-gate", "--force")
        assert code == 0, said
        for path in (sshd.root, *sshd.root.rglob("*")):
            os.utime(path, (0, 0), follow_symlinks=False)
    a, b = (open_bundle(path).id for path in cargo)
    slots = Slots(LocalFiles(sshd.root))
    assert (slots.current(), slots.previous()) == (b, a)
    with slots.hold_lock():
        assert slots.rollback() == (b, a)
    assert slots.current() == a
