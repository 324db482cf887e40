"""A Debian root for arm64, made once and kept: the system that a board would have.

mmdebstrap unpacks the packages without running any of their scripts, so making one needs no
emulation, takes seconds, and needs the network this once.

    <cache>/roots/<suite>-arm64-<key>/
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.board.engine.store import building, make_key
from boardfit.converters.board.offline.wheelhouse import BoardPython
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.process.child import decode_output, find_program, run_child
from boardfit.edge.terminal.progress import Say

#: What a minimal board image has; the engine must need nothing else.
PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "findutils", "grep",
    "gzip", "libc-bin", "libstdc++6", "procps", "python3", "sed", "tar", "util-linux",
)  # fmt: skip
_MERGED_USR = Path("/usr/share/mmdebstrap/hooks/merged-usr")
_MADE = ".boardfit-root"


@dataclass(frozen=True)
class DebianSystem:
    """A Debian release: what its python3 and libc6 are."""

    suite: str
    python: tuple[int, int]
    glibc: tuple[int, int]


SYSTEMS = (DebianSystem("bookworm", (3, 11), (2, 36)), DebianSystem("trixie", (3, 13), (2, 41)))


def choose_system(board: BoardPython) -> DebianSystem:
    """The release with the board's Python, on a glibc no newer than the newest of ours. Raises
    UsageError for a board whose Python no Debian release has (Ubuntu, Jetson).
    """
    for system in SYSTEMS:
        if system.python == board.python:
            return system
    known = ", ".join(f"{s.suite} with Python {s.python[0]}.{s.python[1]}" for s in SYSTEMS)
    raise UsageError(
        f"no Debian release has Python {board.python[0]}.{board.python[1]}, as the board does "
        f"(known: {known})",
        next_step="unpack the board's own root file system somewhere and name it: --root DIR",
    )


def board_root(
    suite: str = "bookworm",
    *,
    packages: Sequence[str] = (),
    say: Say = lambda text: None,
) -> Path:
    """The cached root of a Debian release for arm64, with `packages` besides the minimal ones.

    Made now if it is not there: 10 s and 130 MB with a near mirror. BOARDFIT_DEBIAN_MIRROR names
    another mirror than deb.debian.org. Treat it as read-only: it is shared.

    Raises EngineMissingError when mmdebstrap is missing, or the mirror cannot be reached.
    """
    wanted = sorted({*PACKAGES, *packages})
    mirror = os.environ.get("BOARDFIT_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    key = make_key([suite, wanted, 1])
    root = cache_directory() / "roots" / f"{suite}-arm64-{key}"
    if (root / _MADE).exists():
        return root
    if not find_program("mmdebstrap"):
        raise EngineMissingError(
            "making the board's system needs mmdebstrap",
            next_step="sudo apt-get install -y mmdebstrap qemu-user-static",
        )
    with building(f"root-{key}", say):
        if (root / _MADE).exists():
            return root
        say(f"unpacking Debian {suite} for arm64 (once)")
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = root.with_name(f".{root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = ["mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract",
                   f"--include={','.join(wanted)}"]  # fmt: skip
        if _MERGED_USR.is_dir():  # releases up to 12 leave the merge of /bin and /usr/bin to us
            command.append(f"--hook-dir={_MERGED_USR}")
        done = run_child([*command, suite, str(partial.absolute()), mirror])
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            output = decode_output(done.stderr)
            lines = [line for line in output.splitlines() if line.startswith("E:")]
            raise EngineMissingError(
                f"could not make the board's system: {'; '.join(lines[-3:]) or output[-300:]}",
                next_step="check the network, or name a Debian mirror in BOARDFIT_DEBIAN_MIRROR",
            )
        finish_root(partial)
        shutil.rmtree(root, ignore_errors=True)
        partial.rename(root)
        fsync_directory(root.parent)
    return root


def finish_root(root: Path) -> None:
    """What package scripts would have done and our runs rely on: users, mount points."""
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for name in ("proc", "sys", "dev", "tmp", "run", "root", "opt", "mnt"):
        (root / name).mkdir(exist_ok=True)
    (root / _MADE).touch()
