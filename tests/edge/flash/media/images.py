"""Small images of operating systems, made with the tools that make the large ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
SECTOR = 512
DISK_ID = "0x5f3c2a01"
CMDLINE = "console=serial0,115200 root=PARTUUID=5f3c2a01-02 rootfstype=ext4 rootwait\n"
PASSWD = "root:x:0:0:root:/root:/bin/bash\npi:x:1000:1000:,,,:/home/pi:/bin/bash\n"
# As Raspberry Pi OS: the boot partition at 4 MiB, the root right behind it and last.
BOOT_START, BOOT_MIB, ROOT_MIB = 8192, 16, 24
PROGRAMS = ("sfdisk", "mkfs.vfat", "mcopy", "mke2fs", "debugfs", "e2fsck", "resize2fs")


def run(*command: str | Path, **options: Any) -> str:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C"}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, env=environment, **options
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@dataclass(frozen=True)
class Made:
    """An image and where its partitions lie: number → (first byte, bytes)."""

    path: Path
    parts: dict[int, tuple[int, int]]

    def part(self, number: int, path: Path | None = None) -> bytes:
        start, n_bytes = self.parts[number]
        with (path or self.path).open("rb") as file:
            file.seek(start)
            return file.read(n_bytes)


def table_of(path: Path) -> dict[str, Any]:
    """What sfdisk reads."""
    return json.loads(run("sfdisk", "-J", path))["partitiontable"]  # type: ignore[no-any-return]


def parts_of(path: Path) -> dict[int, tuple[int, int]]:
    return {
        int(p["node"].removeprefix(str(path)).removeprefix("p")): (
            p["start"] * SECTOR, p["size"] * SECTOR,
        )
        for p in table_of(path)["partitions"]
    }  # fmt: skip


def root_folder(folder: Path, **more: bytes) -> Path:
    """What every root file system has, for what is looked at."""
    for name in ("etc/systemd/system", "usr/bin", "opt", "home/pi"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/passwd").write_text(PASSWD)
    (folder / "etc/os-release").write_text('NAME="Raspberry Pi OS"\n')
    for name, data in more.items():
        (folder / name).write_bytes(data)
    return folder


def make_image(
    path: Path,
    *,
    label: str = "dos",
    table: Sequence[str] = (),
    root: int = 2,
    mke2fs: Sequence[str] = (),
    files: dict[str, bytes] | None = None,
) -> Made:
    """A boot partition with FAT and an ext4 root, by default as on a Raspberry Pi. `table` are
    other lines for sfdisk, `root` the partition that becomes the root.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    boot_end = BOOT_START + BOOT_MIB * MIB // SECTOR
    kinds = ("c", "83") if label == "dos" else ("uefi", "linux")
    lines = table or (
        f"start={BOOT_START},size={BOOT_MIB * MIB // SECTOR},type={kinds[0]}",
        f"start={boot_end},size={ROOT_MIB * MIB // SECTOR},type={kinds[1]}",
    )
    n_bytes = boot_end * SECTOR + ROOT_MIB * MIB + (MIB if label == "gpt" else 0)
    with path.open("wb") as file:
        file.truncate(max(n_bytes, *(_end(line) for line in lines)) if table else n_bytes)
    ident = DISK_ID if label == "dos" else "5F3C2A01-0000-4000-8000-00000000ABCD"
    script = "\n".join([f"label: {label}", f"label-id: {ident}", *lines]) + "\n"
    run("sfdisk", "-q", path, input=script)
    parts = parts_of(path)
    start, size = parts[1]
    run("mkfs.vfat", "-F", "16", "-n", "BOOTFS", "--offset", str(start // SECTOR), path,
        str(size // 1024))  # fmt: skip
    boot = path.parent / f"{path.name}.boot"
    boot.mkdir()
    (boot / "cmdline.txt").write_text(CMDLINE)
    (boot / "kernel8.img").write_bytes(hashlib.sha256(b"kernel").digest() * 4096)
    run("mcopy", "-i", f"{path}@@{start}", *boot.iterdir(), "::")
    start, size = parts[root]
    folder = root_folder(path.parent / f"{path.name}.root", **(files or {}))
    run("mke2fs", "-q", "-t", "ext4", "-L", "rootfs", *mke2fs, "-d", folder, "-E",
        f"offset={start}", path, f"{size // 1024}k")  # fmt: skip
    # Boot code and what lies before the first partition belong to the board's maker.
    with path.open("r+b") as file:
        file.write(b"\xeb\x63boot code")
        file.seek(64 * SECTOR)
        file.write(b"second stage loader" * 100)
    return Made(path, parts)


def _end(line: str) -> int:
    fields = dict(part.split("=") for part in line.split(",") if "=" in part)
    return (int(fields["start"]) + int(fields["size"])) * SECTOR + MIB


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
