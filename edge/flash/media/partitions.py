"""Partition tables of disk images, MBR or GPT: read by sfdisk, one partition made larger by it.

sfdisk and blkid are of util-linux and need no root. sfdisk repairs what it can while it reads: what
it complains of is damage here, and so is what Linux would not mount.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from boardfit.edge.errors import DoesNotFitError, EngineMissingError, InputError
from boardfit.edge.process import child
from boardfit.edge.units import MIB, format_bytes, printable

SECTOR = 512
_PROTECTIVE = "ee"
_EXTENDED = ("5", "f", "85")
#: What sfdisk reports of a sound image that is smaller or larger than it was.
_NO_DAMAGE = re.compile(r"PMBR size mismatch|not on the end of the device|Omitting empty partition")
_NO_TABLE = "recognized partition table"
#: Room for the second copy of a GPT.
_GPT_TAIL = MIB
_MBR_END = SECTOR << 32
_MAX_OUTPUT = 4 * MIB
# e2fsprogs and util-linux hide in sbin and, on a Mac, in Homebrew's cellar.
_MORE_PLACES = ("/usr/sbin", "/sbin", *(
    f"{cellar}/opt/{package}/{folder}" for cellar in ("/opt/homebrew", "/usr/local")
    for package in ("e2fsprogs", "util-linux") for folder in ("sbin", "bin")
))  # fmt: skip


def find_program(name: str, package: str) -> str:
    """Where a program for images is. Raises EngineMissingError with how to get it."""
    found = child.find_program(name, *_MORE_PLACES)
    if found is None:
        raise EngineMissingError(
            f"{name} is not installed; images are changed with {package}",
            next_step=f"apt install {'fdisk ' * (name == 'sfdisk')}{package} (on a Mac: brew "
            f"install {package})",
        )
    return found


@dataclass(frozen=True)
class Partition:
    """One partition; `number` as Linux counts (logical ones from 5), `start` and `n_bytes` in
    bytes.
    """

    number: int
    start: int
    n_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.n_bytes


@dataclass(frozen=True)
class PartitionTable:
    """`n_bytes` is the size of the whole disk; `partitions` in the order of their numbers."""

    label: Literal["dos", "gpt"]
    n_bytes: int
    partitions: tuple[Partition, ...]

    def partition(self, number: int) -> Partition:
        """Raises InputError with the numbers that there are."""
        for partition in self.partitions:
            if partition.number == number:
                return partition
        there = ", ".join(str(p.number) for p in self.partitions)
        raise InputError(
            f"there is no partition {number}; the image has {there or 'none'}",
            next_step="name one of these after #, or leave it out to take the root partition",
        )


def _broken(why: str) -> InputError:
    return InputError(
        f"its partition table is broken: {why}",
        next_step="check the image (was the download cut off?); nothing was changed",
    )


def _sfdisk(path: Path, *options: str, data: bytes = b"") -> tuple[bytes, list[str]]:
    """What sfdisk prints, and what it complains of."""
    command = [find_program("sfdisk", "util-linux"), *options, str(path.absolute())]
    done = child.run_child(command, input=data, env=child.child_environment(LC_ALL="C"))
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    words = [printable(line) for line in lines if line.strip() and not _NO_DAMAGE.search(line)]
    return done.stdout, words or [f"exit code {done.returncode}"] * (done.returncode != 0)


def read_table(path: Path) -> PartitionTable:
    """The partition table of an image or disk. Raises InputError for one without a table, and for
    any damage that is seen: checksums, overlaps, an end after the disk.
    """
    with path.open("rb") as file:
        n_bytes = file.seek(0, os.SEEK_END)
    printed, complaints = _sfdisk(path, "--json") if n_bytes else (b"", [_NO_TABLE])
    if any(_NO_TABLE in line for line in complaints):
        raise InputError(
            "there is no partition table in it",
            next_step="an image of a whole disk is needed, as the board's maker offers it",
        )
    if complaints:
        raise _broken(complaints[0])
    found = json.loads(printed[:_MAX_OUTPUT])["partitiontable"]
    if found["label"] not in ("dos", "gpt"):
        raise InputError(f"its partition table is {found['label']}; expected MBR or GPT")
    entries = found.get("partitions", [])
    if found["label"] == "dos" and any(entry["type"] == _PROTECTIVE for entry in entries):
        raise _broken("the GPT is missing, or it is one of sectors of 4096 bytes")
    sector = int(found.get("sectorsize", SECTOR))
    is_gpt = found["label"] == "gpt"
    partitions = [_parse(e, sector) for e in entries if is_gpt or e["type"] not in _EXTENDED]
    _refuse_nonsense(partitions, n_bytes)
    return PartitionTable(found["label"], n_bytes, tuple(partitions))


def _parse(entry: dict[str, Any], sector: int) -> Partition:
    number = cast("re.Match[str]", re.search(r"\d+$", entry["node"]))
    return Partition(int(number[0]), entry["start"] * sector, entry["size"] * sector)


def _refuse_nonsense(partitions: Sequence[Partition], n_bytes: int) -> None:
    ordered = sorted(partitions, key=lambda p: p.start)
    for partition in ordered:
        if not 0 < partition.start < partition.end:
            raise _broken(f"partition {partition.number} makes no sense")
        if partition.end > n_bytes:
            raise InputError(
                f"partition {partition.number} ends at {format_bytes(partition.end)}, but the "
                f"image has {format_bytes(n_bytes)}: it was cut off",
                next_step="download or copy it again",
            )
    for one, two in pairwise(ordered):
        if one.end > two.start:
            raise _broken(f"partitions {one.number} and {two.number} overlap")
    if not ordered:
        raise InputError("its partition table is empty", next_step="use an image of a system")


def grow(path: Path, table: PartitionTable, number: int, partition_bytes: int) -> PartitionTable:
    """Make one partition of an image file `partition_bytes` long, and the file as long as that
    needs. Returns the table afterwards. Identifiers (disk id, GUIDs) stay.

    Raises DoesNotFitError when another partition is in the way, InputError for a logical one.
    """
    partition = table.partition(number)
    end = partition.start + partition_bytes
    if number > 4 and table.label == "dos":
        raise InputError(
            f"partition {number} is a logical one; only a primary one is made larger",
            next_step="free space in it, or use an image with primary partitions",
        )
    behind = [p.start for p in table.partitions if p.start > partition.start]
    if behind and end > min(behind):
        short = end - min(behind)
        raise DoesNotFitError(
            f"partition {number} cannot grow: another one begins after it, "
            f"{format_bytes(short)} too early",
            shortfall_bytes=short,
            next_step="free space in it, or use an image whose root partition is the last one",
        )
    if table.label == "dos" and end > _MBR_END:
        raise DoesNotFitError(
            "an MBR partition table ends at 2 TiB", next_step="use an image with a GPT"
        )
    if table.label == "gpt":
        end = -(-(end + _GPT_TAIL) // MIB) * MIB
    if end > table.n_bytes:
        os.truncate(path, end)
    options = ("--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", "--wipe-partitions",
               "never", "-N", str(number))  # fmt: skip
    _, complaints = _sfdisk(path, *options, data=b"size=%d\n" % (partition_bytes // SECTOR))
    if complaints:
        raise _broken(complaints[0])
    after = read_table(path)
    if after.partition(number).n_bytes != partition_bytes:
        raise _broken(f"sfdisk did not make partition {number} larger")
    return after


def identify(path: Path, partition: Partition) -> str | None:
    """The file system in a partition, in blkid's words (ext4, vfat, btrfs, crypto_LUKS, …); None if
    unknown.
    """
    done = child.run_child(
        [find_program("blkid", "util-linux"), "-p", "-O", str(partition.start), "-S",
         str(partition.n_bytes), "-o", "value", "-s", "TYPE", str(path.absolute())]
    )  # fmt: skip
    return child.decode_output(done.stdout).strip() or None
