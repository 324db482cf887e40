"""The process as it is started: closed streams, a full disk, Ctrl-C at once, hostile words."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boardfit.edge.bench.store import append_lines, read_file
from boardfit.edge.cli import describe, describe_error, print_error
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import InputError
from boardfit.edge.flash.fleet import read_inventory
from boardfit.edge.flash.media.source import detect_packing
from boardfit.edge.flash.ssh import SshChannel
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.trust.signing import load_signing_key, new_key, public_keys
from tests.programs import require

EDGE = f"{sys.executable} -m boardfit"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed: str) -> None:
    good = subprocess.run(f"{EDGE} devices {closed}", shell=True, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    bad = subprocess.run(f"{EDGE} bundle show /x {closed}", shell=True, capture_output=True)
    assert bad.returncode == 3 and b"bug" not in bad.stderr


def test_ctrl_c_during_the_start_prints_no_traceback(tmp_path: Path) -> None:
    # From the moment at which our own code runs; before it, Python itself prints what it prints.
    script = (
        "import os, sys; sys.argv = ['edge', 'devices']; import boardfit.edge.supervisor as s; "
        "os.write(1, b'x'); s.main()"
    )
    for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(delay_s + 0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, err
        assert process.returncode in (0, 130, -signal.SIGINT)


def test_a_next_step_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("InputError", "x\x1b[2J", "name one: adb://\x1b]0;x\x07\nrm", as_json=False)
    assert not set(capsys.readouterr().err) & {"\x1b", "\x07"}


def test_a_full_disk_is_named_and_exits_with_4() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/m/report.html")
    assert describe(error) == "/m/report.html: No space left on device"
    code, step = describe_error(error)
    assert code == 4 and step is not None and "free some space" in step
    assert describe(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.devnull)
    with pytest.raises(NotADirectoryError) as caught:
        (Path.home() / ".cache" / "boardfit").mkdir(parents=True)
    code, step = describe_error(caught.value)
    assert code == 3 and step is not None and "/dev/null cannot be written: set HOME" in step
    assert describe_error(NotADirectoryError(errno.ENOTDIR, "x", "/dev/full/x")) == (3, None)


def fill(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_half_written_stays_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, old = tmp_path / "r.jsonl", b'{"a": 1}\n{"cut'
    results.write_bytes(old)
    monkeypatch.setattr(os, "fsync", fill)
    for write in (
        lambda: append_lines(results, b'{"b": 2}\n'),
        lambda: write_atomic(tmp_path / "page.html", b"x"),
        lambda: new_key(tmp_path / "key", None, "me"),
    ):
        with pytest.raises(OSError) as caught:
            write()
        assert str(tmp_path) in describe(caught.value)
    assert results.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_a_private_key_has_its_mode_under_any_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        new_key(tmp_path / "key", None, "me")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key.pub").stat().st_mode & 0o777 == 0o644


READERS = {
    "results": read_file,
    "public key": lambda path: public_keys(str(path)),
    "signing key": load_signing_key,
    "inventory": read_inventory,
    "image": detect_packing,
    "ssh config": lambda path: SshChannel(parse_flash_target("ssh://board/x"), path),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_or_a_device_is_refused_at_once(name: str, tmp_path: Path) -> None:
    if name == "ssh config":
        require("ssh")
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        began_s = time.monotonic()
        with pytest.raises(InputError):
            READERS[name](odd)
        assert time.monotonic() - began_s < 5


def test_a_key_file_that_is_huge_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for read in (READERS["public key"], READERS["signing key"], READERS["inventory"]):
        with pytest.raises(InputError):
            read(tmp_path / "huge")
