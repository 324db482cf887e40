"""One contract for a board's files: this machine's own disk, and sh on the other side of a pipe."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import boardfit.edge.flash.shell_files as shell_files
from boardfit.edge.errors import (
    DeviceUnreachableError,
    DoesNotFitError,
    EdgeError,
    InputError,
    UnsafeInputError,
    UsageError,
)
from boardfit.edge.flash.session import Channel, Done
from boardfit.edge.flash.shell_files import ShellFiles
from boardfit.edge.slots.files import BoardEntry, BoardFiles, LocalFiles
from tests.programs import find, require, skip_or_fail

TARGET = "releases/" + "a" * 64


class PipeChannel(Channel):
    """A channel to a shell of this machine; `around` are words before `sh`: another user."""

    place = "pipe"

    def __init__(self, *around: str, shell: str = "sh") -> None:
        self._around, self._shell = around, shell

    def argv(self, script: str) -> list[str]:
        return [*self._around, *self._shell.split(), "-c", script]

    def find_connection_error(self, done: Done) -> EdgeError | None:
        return None


#: What boards have: Debian, a router or Alpine, a phone (whose shell is mksh, whose tools toybox).
TOOLS = {"bash": "bash", "coreutils": "dash", "busybox": "busybox sh", "toybox": "dash"}


def channel_with(tools: str, folder: Path) -> PipeChannel:
    """A channel to a shell that finds nothing but one kind of tools."""
    require(*(name for name in (tools, TOOLS[tools].split()[0]) if name != "coreutils"))
    if tools in ("bash", "coreutils"):
        return PipeChannel(shell=TOOLS[tools])
    folder.mkdir()
    program = find(tools)
    listing = [program] if tools == "toybox" else [program, "--list"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()  # type: ignore[arg-type]
    for name in {*names, *TOOLS[tools].split()[:1]}:
        if (target := program if name in names else find(name)) and name not in ("[", "sh"):
            os.symlink(target, folder / name)
    os.symlink(find("dash") or "/bin/sh", folder / "sh")
    return PipeChannel("env", f"PATH={folder}", shell=TOOLS[tools])


TOOLS_WITHOUT_FLOCK = ("sh", "cat", "mkdir", "rm", "kill", "sleep", "timeout", "true", "head")


@pytest.fixture(params=["local", *TOOLS])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> BoardFiles:
    root = tmp_path / "a böard; with 'quotes'"
    if request.param == "local":
        made: BoardFiles = LocalFiles(root)
    else:
        made = ShellFiles(channel_with(request.param, tmp_path / "bin"), str(root))
    made.prepare()
    return made


def test_writing_and_reading(files: BoardFiles) -> None:
    data = b'{"a": "it\'s $HOME `x` \\\\ %s"}\n'
    files.write("state.json", data)
    files.write("state.json", data * 2)
    assert files.read("state.json", 1000) == data * 2
    assert files.read("state.json", 10) is None
    assert files.read("missing", 10) is None
    files.make_folder("a/b/c")
    assert files.read("a", 10) is None
    expected = {"state.json": BoardEntry("file", len(data) * 2), "a": BoardEntry("folder", 0)}
    assert files.entries("") == expected or _folders_have_sizes(files)


def _folders_have_sizes(files: BoardFiles) -> bool:
    """stat gives folders a size of their own, which nobody uses."""
    return {name: entry.kind for name, entry in files.entries("").items()} == {
        "state.json": "file",
        "a": "folder",
    }


def test_binary_files_are_read_exactly(files: BoardFiles) -> None:
    data = bytes(range(256)) * 64 + b"\n\n"
    Path(files.root, "x").write_bytes(data)
    assert files.read("x", 1 << 20) == data


def test_trees(files: BoardFiles) -> None:
    files.claim("t")
    files.make_folder("t/sub folder")
    files.write("t/one", b"1")
    files.write("t/sub folder/two ü", b"22")
    os.symlink("/etc/passwd", Path(files.root, "t/link"))
    kinds = {name: (e.kind, e.n_bytes) for name, e in files.tree("t").items() if e.kind != "folder"}
    assert kinds["one"] == ("file", 1) and kinds["sub folder/two ü"] == ("file", 2)
    assert kinds["link"][0] == "link"
    assert files.tree("t")["sub folder"].kind == "folder"
    assert files.tree("missing") == {} and files.entries("missing") == {}
    files.remove(["t", "t", "not there"])
    assert files.entries("t") == {}


def test_renaming_never_moves_into_a_folder(files: BoardFiles) -> None:
    files.write("one", b"1")
    files.make_folder("folder/sub")
    files.write("two", b"2")
    files.rename("one", "two")
    assert files.read("two", 9) == b"1" and files.read("one", 9) is None
    with pytest.raises(EdgeError):
        files.rename("two", "folder")
    assert files.read("two", 9) == b"1" and set(files.entries("folder")) == {"sub"}
    files.rename("folder", "moved")
    assert set(files.entries("moved")) == {"sub"}


def test_links_and_copies_and_digests(files: BoardFiles) -> None:
    files.write("one", b"abc")
    files.link("one", "two")
    files.link("one", "two")
    files.copy("one", "three")
    files.sync(["one", "two", ""])
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digests(["one", "two", "three", "none"]) == {
        "one": abc, "two": abc, "three": abc, "none": None,
    }  # fmt: skip
    assert Path(files.root, "one").stat().st_nlink == 2
    assert files.settle("one") == abc and files.settle("none") is None


def test_a_board_that_cannot_hash_is_named(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "sync", "dd"):
        os.symlink(find(name) or f"/bin/{name}", programs / name)
    (tmp_path / "x").write_bytes(b"abc")
    files = ShellFiles(PipeChannel("env", f"PATH={programs}"), str(tmp_path))
    for ask in (lambda: files.digests(["x"]), lambda: files.settle("x")):
        with pytest.raises(InputError, match="neither sha256sum nor openssl"):
            ask()


def test_a_disk_that_refuses_the_bytes_while_flushing_is_not_believed(tmp_path: Path) -> None:
    """Only the first fsync after a failed write tells; asking again would say that all is well."""
    programs = tmp_path / "bin"
    programs.mkdir()
    told = tmp_path / "told"
    (programs / "sync").write_text(
        f"#!/bin/sh\n[ -e {told} ] && exit 0\n: > {told}\n"
        "echo \"sync: error syncing 'x': Input/output error\" >&2\nexit 1\n"
    )
    (programs / "sync").chmod(0o755)
    (tmp_path / "x").write_bytes(b"abc")
    files = ShellFiles(PipeChannel("env", f"PATH={programs}:{os.environ['PATH']}"), str(tmp_path))
    with pytest.raises(InputError, match="Input/output error"):
        files.settle("x")


def test_what_goes_away_while_a_folder_is_read_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two senders at once: the scratch file of one, seen by the other's listing."""
    root, programs = tmp_path / "root", tmp_path / "bin"
    programs.mkdir()
    (programs / "stat").write_text(f'#!/bin/sh\nrm -f {root}/gone\nexec {find("stat")} "$@"\n')
    (programs / "stat").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    remote = ShellFiles(PipeChannel("env", f"PATH={path}"), str(root))
    remote.prepare()
    (root / "here").write_bytes(b"abc")
    for listing in (remote.entries, remote.tree):
        (root / "gone").write_bytes(b"")
        assert listing("") == {"here": BoardEntry("file", 3)}
    local, listdir, walk = LocalFiles(root), os.listdir, os.walk
    monkeypatch.setattr(os, "listdir", lambda at: [*listdir(at), "gone"])
    assert local.entries("") == {"here": BoardEntry("file", 3)}
    monkeypatch.setattr(os, "walk", lambda at: ((a, b, [*c, "gone"]) for a, b, c in walk(at)))
    assert local.tree("") == {"here": BoardEntry("file", 3)}


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "find").write_text("#!/bin/sh\necho 'find: x: Input/output error' >&2\nexit 1\n")
    (programs / "find").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    files = ShellFiles(PipeChannel("env", f"PATH={path}"), str(tmp_path))
    with pytest.raises(InputError, match="Input/output error"):
        files.tree("")


def test_the_pointer_is_switched_by_a_rename(files: BoardFiles) -> None:
    assert files.pointer() is None
    files.make_folder(TARGET)
    for target in (TARGET, "releases/" + "b" * 64, TARGET):
        files.point(target)
        assert files.pointer() == target
        if Path(files.root, "current").is_symlink():
            assert os.readlink(Path(files.root, "current")) == target
    assert set(files.entries("")) == {"current", "releases"}
    assert files.entries(TARGET) == {}  # nothing was moved into the folder that it names


def test_where_links_do_not_exist_the_pointer_is_a_file(
    files: BoardFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(files, LocalFiles):

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")  # what Linux says on FAT

        monkeypatch.setattr(os, "symlink", refuse)
    else:
        monkeypatch.setattr(shell_files, "PRELUDE", shell_files.PRELUDE + "ln() { return 1; }\n")
    for target in (TARGET, "releases/" + "b" * 64):
        files.point(target)
        assert Path(files.root, "current").is_file()
        assert files.pointer() == target


def test_space_is_counted(files: BoardFiles) -> None:
    files.make_folder("t")
    Path(files.root, "t/x").write_bytes(os.urandom(200_000))
    used = files.used_bytes(["t", "missing"])
    assert 190_000 <= used["t"] <= 300_000 and used["missing"] == 0
    assert abs(files.free_bytes() - shutil.disk_usage(files.root).free) < 200 << 20


def another(files: BoardFiles) -> BoardFiles:
    """A second flash of the same root, from the other side."""
    return LocalFiles(Path(files.root))


def test_the_lock_is_one_for_all_ways_to_a_board(files: BoardFiles) -> None:
    with files.lock(0):
        files.write("state.json", b"mine")
        with pytest.raises(UsageError, match="another flash of"), another(files).lock(0):
            pass
    with another(files).lock(0), pytest.raises(UsageError, match="waited 1 s"), files.lock(1):
        pass
    with files.lock(0):
        pass


def test_a_second_flash_waits(files: BoardFiles) -> None:
    order: list[str] = []

    def second() -> None:
        with another(files).lock(20):
            order.append("second")

    with files.lock(0):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.4)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.fixture
def piped(tmp_path: Path) -> Callable[..., ShellFiles]:
    def make(*around: str) -> ShellFiles:
        return ShellFiles(PipeChannel(*around), str(tmp_path / "root"))

    return make


def test_a_lock_whose_owner_falls_silent_is_given_up(
    piped: Callable[..., ShellFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_files, "LOCK_SILENCE_S", 1)
    monkeypatch.setattr(shell_files, "HEARTBEAT_S", 1000)
    first, second = piped(), piped()
    first.prepare()
    with first.lock(0):
        with pytest.raises(UsageError):
            second._try_lock() or (_ for _ in ()).throw(UsageError("held"))
        with second.lock(10):
            pass
        with pytest.raises(DeviceUnreachableError, match="was lost"):
            first.write("state.json", b"too late")


def test_a_board_without_flock_locks_too(piped: Callable[..., ShellFiles], tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in [
        "sh",
        "cat",
        "mkdir",
        "rm",
        "rmdir",
        "kill",
        "sleep",
        "timeout",
        "true",
        "mv",
        "sync",
        "stat",
        "find",
        "head",
    ]:
        os.symlink(find(name) or f"/bin/{name}", programs / name)
    first, second = piped("env", f"PATH={programs}"), piped("env", f"PATH={programs}")
    first.prepare()
    with first.lock(0), pytest.raises(UsageError, match="another flash"), second.lock(0):
        pass
    with second.lock(0):
        pass
    stale = tmp_path / "root/.lock.d"
    stale.mkdir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (stale / "owner").write_text(f"{dead_process()} {boot}\n")
    with first.lock(0):
        pass
    assert not stale.exists()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 256 KiB. Needs root, as CI has it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        skip_or_fail("mounting needs root")
    yield folder  # type: ignore[misc]
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["local", "shell"])
def test_a_full_disk_is_named(small_disk: Path, kind: str) -> None:
    files = make_files(kind, small_disk)
    (small_disk / "fill").write_bytes(bytes(240_000))
    with pytest.raises(DoesNotFitError, match="is full"):
        files.write("state.json", b"x" * 60_000)
    assert files.read("state.json", 99) is None
    (small_disk / "fill").unlink()
    files.write("state.json", b"fine")


@pytest.mark.parametrize("kind", ["local", "shell"])
def test_a_read_only_disk_is_named(small_disk: Path, kind: str) -> None:
    files = make_files(kind, small_disk)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(InputError, match="read-only"):
        files.write("state.json", b"x")
    with pytest.raises(InputError, match="read-only"):
        files.point(TARGET)


def make_files(kind: str, root: Path) -> BoardFiles:
    return LocalFiles(root) if kind == "local" else ShellFiles(PipeChannel(), str(root))


def test_wrong_permissions_are_named(tmp_path: Path) -> None:
    require("setpriv")
    if os.geteuid() != 0:
        skip_or_fail("becoming another user needs root")
    root = tmp_path / "root"
    root.mkdir()
    for folder in (root, *root.parents):
        if folder.owner() == "root" and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    files = ShellFiles(PipeChannel(*as_nobody), str(root))
    with pytest.raises(InputError, match="cannot be written by this user"):
        files.write("state.json", b"x")
    with pytest.raises(InputError, match="cannot be written by this user"), files.lock(0):
        pass


def test_a_script_and_its_answer() -> None:
    channel = PipeChannel()
    done = channel.run("echo out; echo err >&2; cat; exit 7")
    assert (done.rc, done.out, done.err) == (7, b"out\n", "err\n")
    assert channel.run("printf %s 'no line end'").out == b"no line end"
    big = channel.run("head -c 3000000 /dev/zero; head -c 200000 /dev/zero >&2")
    assert len(big.out) == 3_000_000 and len(big.err) == 200_000
    assert channel.run("set -e; false; echo not reached").rc == 1
    assert channel.run("exit 0").rc == 0
    with pytest.raises(DeviceUnreachableError, match="did not answer within"):
        channel.run("sleep 30", timeout_s=0.3)


def test_a_shell_that_dies_is_lost() -> None:
    channel = PipeChannel()
    with pytest.raises(DeviceUnreachableError, match="was lost"):
        channel.run("kill -9 $$")
    large = channel.run(f"printf %s {'x' * 500_000}")
    assert len(large.out) == 500_000


# ---- what another user of the board, or who made the card, has put there ----


def make_photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "photo").write_bytes(b"mine")
    (folder / "parts").mkdir()
    (folder / "parts/photo").write_bytes(b"mine")
    return folder


def are_untouched(folder: Path) -> bool:
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    return names == ["parts", "parts/photo", "photo"] and all(
        (folder / name).read_bytes() == b"mine" for name in ("photo", "parts/photo")
    )


CHANGES: dict[str, Callable[[BoardFiles], None]] = {
    "write": lambda files: files.write("planted/photo", b"ours"),
    "make_folder": lambda files: files.make_folder("planted/deeper"),
    "claim": lambda files: files.claim("planted"),
    "claim below": lambda files: files.claim("planted/parts"),
    "rename into": lambda files: files.rename("ours", "planted/photo"),
    "rename out": lambda files: files.rename("planted/photo", "ours"),
    "remove below": lambda files: files.remove(["planted/photo", "planted/parts"]),
    "link into": lambda files: files.link("ours", "planted/photo"),
    "link out": lambda files: files.link("planted/photo", "ours"),
    "copy into": lambda files: files.copy("ours", "planted/new"),
    "entries": lambda files: files.entries("planted") and None,
    "tree": lambda files: files.tree("planted") and None,
    "read": lambda files: files.read("planted/photo", 99) and None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_link_on_a_board_is_followed(files: BoardFiles, tmp_path: Path, change: str) -> None:
    photos = make_photos(tmp_path / "photos")
    files.write("ours", b"ours")
    os.symlink(photos, Path(files.root, "planted"))
    with pytest.raises(UnsafeInputError, match="is a link") as caught:
        CHANGES[change](files)
    assert caught.value.next_step and are_untouched(photos)
    assert Path(files.root, "ours").read_bytes() == b"ours"


def test_a_link_at_a_name_of_ours_is_not_written_through(files: BoardFiles, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    for name in ("state.json", ".lock", "part", "model"):
        os.symlink(photos / "photo", Path(files.root, name))
    os.symlink(photos, Path(files.root, ".lock.d"))
    for attempt in (
        lambda: files.write("state.json", b"ours"),
        lambda: files.lock(0).__enter__(),
        lambda: files.link("model", "part"),
        lambda: files.copy("model", "elsewhere"),
    ):
        with contextlib.suppress(EdgeError):
            attempt()
    assert files.digests(["model"]) == {"model": None}
    files.remove(["model", ".lock.d"])
    assert are_untouched(photos) and not os.path.lexists(Path(files.root, "model"))


def test_only_folders_of_ours_are_removed_from_a_board(files: BoardFiles, tmp_path: Path) -> None:
    photos = make_photos(Path(files.root, "incoming"))
    for attempt in (
        lambda: files.remove(["incoming"]), lambda: files.remove(["incoming/parts"]),
        lambda: files.claim("incoming"), lambda: files.rename("ours", "incoming"),
    ):  # fmt: skip
        files.make_folder("ours")
        with pytest.raises(EdgeError, match=r"did not make|not empty"):
            attempt()
        assert are_untouched(photos)
    files.claim("empty")
    files.claim("empty")
    files.make_folder("empty/deep/er")
    files.remove(["empty/deep", "empty"])
    files.make_folder("unmarked")  # as a power cut leaves it
    files.claim("unmarked")
    files.remove(["unmarked"])
    assert {"empty", "unmarked"} & set(files.entries("")) == set()


def test_a_root_that_is_a_link_is_refused(files: BoardFiles, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    Path(files.root).rmdir()
    os.symlink(photos, files.root)
    for attempt in (files.prepare, lambda: files.write("x", b""), lambda: files.entries("")):
        with pytest.raises(UnsafeInputError, match="is a link"):
            attempt()
    with pytest.raises(EdgeError), files.lock(0):
        pass
    assert are_untouched(photos)
