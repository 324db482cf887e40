"""Programs of the system that tests run, and the Debian packages that bring them.

A test that needs one asks through `require`. `.ci/run` installs these packages and no others;
`tests/test_ci.py` compares the two, and finds tests that ask in another way.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

PACKAGES = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "adb": "adb",
    "bash": "bash",
    "busybox": "busybox",
    "bwrap": "bubblewrap",
    "chromium": "chromium",
    "cmake": "cmake",
    "dash": "dash",
    "debugfs": "e2fsprogs",
    "docker-registry": "docker-registry",
    "dumpe2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "findmnt": "util-linux",
    "gcc": "gcc",
    "git": "git",
    "losetup": "util-linux",
    "lsblk": "util-linux",
    "mcopy": "mtools",
    "mdir": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "mtype": "mtools",
    "ninja": "ninja-build",
    "openssl": "openssl",
    "proot": "proot",
    "qemu-aarch64-static": "qemu-user-static",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "systemd-analyze": "systemd",
    "taskset": "util-linux",
    "toybox": "toybox",
    "umount": "mount",
    "unshare": "util-linux",
    "zstd": "zstd",
}


def find(name: str) -> str | None:
    """Where a program is; also in the folders that only root has on its path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def require(*names: str) -> None:
    """Skip the test where a program is missing; in CI fail, and say what to install."""
    if problem := lacking(*names):
        skip_or_fail(problem)


def lacking(*names: str) -> str | None:
    """What is missing of these programs, and how to install it; None when all are there."""
    missing = [name for name in names if find(name) is None]
    packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
    return f"needs {', '.join(missing)}: apt-get install {packages}" if missing else None


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run; in CI every test must run."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must run this test: {reason}", pytrace=False)
    pytest.skip(reason)
