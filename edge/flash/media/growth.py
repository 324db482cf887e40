"""Make room in an image: grow its file, its partition table and its file system together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.flash.media.ext4 import Volume
from boardfit.edge.flash.media.partitions import PartitionTable, grow
from boardfit.edge.flash.media.source import reader, require_room
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import MIB, format_bytes

ALIGNMENT = 4 * MIB
#: Of what a file system is made larger by, this much goes to its own tables and to what only the
#: administrator may use (5 %, and inode tables of 1.6 % with the usual settings).
_OVERHEAD = 1.08
_ROUNDS = 4


def make_room(
    work: BinaryIO, table: PartitionTable, volume: Volume, needed: int, n_inodes: int,
    reporter: Reporter,
) -> PartitionTable:  # fmt: skip
    """Make the file system large enough for `needed` bytes and `n_inodes` files; the table then.
    Raises DoesNotFitError when the table or this disk has no room for that.
    """
    number = volume.partition.number
    require_room(volume.path.parent, needed)  # the image's own free space is mostly holes
    for _ in range(_ROUNDS):
        block = volume.superblock()
        short = needed - block.n_free_bytes
        if short <= 0 and block.n_free_inodes >= n_inodes:
            return table
        if short <= 0:  # a few more block groups bring more inodes
            short = block.n_bytes // 8
        wanted = block.n_bytes + int(short * _OVERHEAD)
        end = -(-(volume.partition.start + wanted) // ALIGNMENT) * ALIGNMENT
        n_bytes = max(end - volume.partition.start, volume.partition.n_bytes)
        reporter.stage(f"growing partition {number} to {format_bytes(n_bytes)}")
        if n_bytes > volume.partition.n_bytes:
            table = _grow(work, volume.path.parent, table, number, n_bytes)
        volume.resize(table.partition(number))
    raise DoesNotFitError(
        f"partition {number} has {format_bytes(volume.superblock().n_free_bytes)} free after it "
        f"was made larger; {format_bytes(needed)} are needed",
        next_step="resize2fs and the file system's own settings may show why",
    )


def _grow(
    work: BinaryIO, folder: Path, table: PartitionTable, number: int, n_bytes: int
) -> PartitionTable:
    after, writes = grow(reader(work), table, number, n_bytes)
    # Resizing works on a second copy of the partition's blocks.
    require_room(folder, os.fstat(work.fileno()).st_blocks * 512)
    work.truncate(after.n_bytes)
    for offset, data in writes:
        work.seek(offset)
        work.write(data)
    work.flush()
    os.fsync(work.fileno())
    return after
