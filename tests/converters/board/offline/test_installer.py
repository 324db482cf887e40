"""board/install.sh and install.py: what they refuse, and that a refusal leaves nothing behind.

Most of it needs no arm64: the installer's own checks are called directly, on files of ours.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import boardfit.converters.board.offline
from boardfit.converters.board.engine.wheel_file import write_wheel
from boardfit.edge.disk.rooted import MARKER

BOARD = Path(boardfit.converters.board.offline.__file__).parent / "board"


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("board_install", BOARD / "install.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_bundle(folder: Path, wheels: dict[str, bytes]) -> Path:
    files = {f"wheels/{name}": data for name, data in wheels.items()}
    files |= {f"board/{name}": (BOARD / name).read_bytes() for name in ("install.sh", "install.py")}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sums = "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in files.items())
    (folder / "SHA256SUMS").write_text(sums)
    return folder


def run_installer(bundle: Path, env: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(bundle / "board/install.sh"), str(env)],
        env={"PATH": os.environ["PATH"], "BOARDFIT_PYTHON": sys.executable, **environment},
        capture_output=True, text=True,
    )  # fmt: skip


def test_no_python(tmp_path: Path) -> None:
    done = run_installer(make_bundle(tmp_path, {}), tmp_path / "env", BOARDFIT_PYTHON="python9")
    assert done.returncode == 5
    assert "there is no Python on this board" in done.stderr and "next:" in done.stderr


def test_python_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.6"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.6.9;; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = run_installer(make_bundle(tmp_path, {}), tmp_path / "env", BOARDFIT_PYTHON=str(old))
    assert done.returncode == 5
    assert "Python 3.6.9 is too old" in done.stderr


def test_wrong_arguments(tmp_path: Path) -> None:
    done = subprocess.run(["sh", str(BOARD / "install.sh")], capture_output=True, text=True)
    assert done.returncode == 5 and "one argument" in done.stderr


def test_a_bundle_without_wheels(tmp_path: Path) -> None:
    done = run_installer(make_bundle(tmp_path, {}), tmp_path / "env")
    assert done.returncode == 3 and "--with-engine" in done.stderr


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="this is such a machine")
def test_another_architecture(tmp_path: Path) -> None:
    done = run_installer(make_bundle(tmp_path, {"a-1-py3-none-any.whl": b""}), tmp_path / "env")
    assert done.returncode == 5 and "arm64, this machine is" in done.stderr
    assert not (tmp_path / "env").exists()


def test_a_32_bit_userland(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer.struct, "calcsize", lambda _: 4)
    monkeypatch.setattr(installer.platform, "machine", lambda: "aarch64")
    with pytest.raises(installer.InstallError, match="userland is 32-bit") as caught:
        installer.check_machine()
    assert "64-bit image" in caught.value.next_step


def test_musl(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer.platform, "machine", lambda: "aarch64")

    def no_such_name(name: str) -> str:
        raise ValueError(name)  # what Python on musl does

    monkeypatch.setattr(installer.os, "confstr", no_such_name)
    with pytest.raises(installer.InstallError, match="not glibc"):
        installer.check_machine()


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({}, None),
        ({"python": "{here}", "glibc": "2.17"}, None),
        ({"python": "3.99", "glibc": "2.17"}, "wheels are for Python 3.99"),
        ({"python": "{here}", "glibc": "2.99"}, "wheels need glibc 2.99"),
    ],
)
def test_another_python_or_glibc(
    installer: ModuleType, wanted: dict[str, str], why: str | None
) -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wanted = {key: value.format(here=here) for key, value in wanted.items()}
    if why is None:
        installer.check_versions(wanted)
        return
    with pytest.raises(installer.InstallError, match=why):
        installer.check_versions(wanted)


def test_a_damaged_wheel(installer: ModuleType, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, {"a-1-py3-none-any.whl": b"PK fine"})
    (bundle / "wheels/a-1-py3-none-any.whl").write_bytes(b"PK fine!")
    sums = installer.read_sums(bundle / "SHA256SUMS")
    with pytest.raises(installer.InstallError, match="damaged") as caught:
        installer.check_digests(bundle, sums)
    assert caught.value.code == 7


@pytest.mark.parametrize(
    "line", ["", "x", "0" * 64 + "  ../../etc/passwd", "0" * 64 + "  /etc/x", "0" * 63 + "  a"]
)
def test_hostile_sums(installer: ModuleType, tmp_path: Path, line: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(installer.InstallError):
        installer.read_sums(tmp_path / "SHA256SUMS")


@pytest.mark.parametrize("path", ["../evil.py", "/evil.py", "a/../../evil.py"])
def test_no_path_leaves_the_folder(installer: ModuleType, tmp_path: Path, path: str) -> None:
    wheel = tmp_path / "evil-1-py3-none-any.whl"
    wheel.write_bytes(write_wheel("evil", "1", "py3-none-any", "Name: evil\n", {path: b"x"}))
    with pytest.raises(installer.InstallError, match="holds the path"):
        installer.unpack(wheel, tmp_path / "site")
    assert not (tmp_path / "evil.py").exists()


def test_data_folders_of_a_wheel(installer: ModuleType, tmp_path: Path) -> None:
    files = {
        "thing/__init__.py": b"1",
        "thing-1.data/platlib/thing/fast.so": b"2",
        "thing-1.data/purelib/thing/slow.py": b"3",
        "thing-1.data/scripts/thing": b"4",
    }
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    wheel.write_bytes(write_wheel("thing", "1", "py3-none-any", "Name: thing\n", files))
    installer.unpack(wheel, tmp_path / "site")
    names = {p.name for p in (tmp_path / "site").rglob("*") if p.parent.name == "thing"}
    assert names == {"__init__.py", "fast.so", "slow.py"}


def test_no_room(installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "KEEP_FREE", 1 << 60)
    with pytest.raises(installer.InstallError, match="MiB free, installing needs") as caught:
        installer.check_place(tmp_path, [])
    assert caught.value.code == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_noexec_mount(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", {"a-1-py3-none-any.whl": write_wheel(
        "a", "1", "py3-none-any", "Name: a\n", {})})  # fmt: skip
    (tmp_path / "card").mkdir()
    script = (
        "import sys, pathlib; sys.argv = ['x']; sys.path.insert(0, sys.argv[0]);"
        f"exec(open({str(bundle / 'board/install.py')!r}).read().split('if __name__')[0]);"
        f"check_place(pathlib.Path({str(tmp_path / 'card')!r}), [])"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o noexec tmpfs "$0" && exec "$@"',
         str(tmp_path / "card"), sys.executable, "-c", script],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "mounted noexec" in done.stderr


def test_only_what_the_installer_made_is_removed(installer: ModuleType, tmp_path: Path) -> None:
    assert installer.OWNED == MARKER
    home = tmp_path / "home"
    home.mkdir()
    (home / "photo").write_bytes(b"mine")
    link = tmp_path / "link"
    link.symlink_to(home)
    for theirs in (home, link, home / "photo"):
        with pytest.raises(installer.InstallError, match="not made by this installer"):
            installer.check_ours(theirs)
    ours = tmp_path / "ours"
    (ours / "site/deep").mkdir(parents=True)
    (ours / installer.OWNED).touch()
    (ours / "site/link").symlink_to(home)
    (ours / "link").symlink_to(home)
    for mine in (ours, tmp_path / "free"):
        installer.check_ours(mine)
        installer.remove(mine)
    assert not ours.exists() and (home / "photo").read_bytes() == b"mine"
