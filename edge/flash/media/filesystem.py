"""Recognize what a partition holds from its first bytes, and read ext4's superblock.

Magic numbers and offsets are those of util-linux's libblkid (libblkid/src/superblocks/), the
superblock is that of the kernel's Documentation/filesystems/ext4/super.rst.
"""

import struct
from dataclasses import dataclass

from boardfit.edge.errors import InputError
from boardfit.edge.flash.media.partitions import Partition, Read

SUPERBLOCK_AT, SUPERBLOCK_BYTES = 1024, 1024
_MAGICS: tuple[tuple[str, int, bytes], ...] = (
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("xfs", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("LVM", 512, b"LABELONE"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("vfat", 82, b"FAT32   "),
    ("vfat", 54, b"FAT16   "),
    ("vfat", 54, b"FAT12   "),
)
_HAS_JOURNAL, _EXTENTS, _BITS64, _RECOVER = 0x4, 0x40, 0x80, 0x4


@dataclass(frozen=True)
class Superblock:
    """What matters of an ext superblock; sizes in bytes. `n_free_bytes` leaves out what only the
    administrator may use. `kind` is ext2, ext3 or ext4.
    """

    kind: str
    block_bytes: int
    n_bytes: int
    n_free_bytes: int
    n_free_inodes: int
    needs_recovery: bool
    label: str


def identify(read: Read, partition: Partition) -> str | None:
    """The file system in a partition (ext2 to ext4, vfat, btrfs, f2fs, …); None if unknown."""
    for name, at, magic in _MAGICS:
        if at + len(magic) <= partition.n_bytes and (
            read(partition.start + at, len(magic)) == magic
        ):
            return name
    if partition.n_bytes < SUPERBLOCK_AT + SUPERBLOCK_BYTES:
        return None
    data = read(partition.start + SUPERBLOCK_AT, SUPERBLOCK_BYTES)
    if data[56:58] != b"\x53\xef":
        return None
    compat, incompat = struct.unpack_from("<II", data, 92)
    if incompat & (_EXTENTS | _BITS64 | 0x200):
        return "ext4"
    return "ext3" if compat & _HAS_JOURNAL else "ext2"


def read_superblock(read: Read, partition: Partition) -> Superblock:
    """The superblock of an ext file system. Raises InputError when it makes no sense or describes
    more than the partition holds.
    """
    kind = identify(read, partition)
    data = read(partition.start + SUPERBLOCK_AT, SUPERBLOCK_BYTES)
    if kind is None or not kind.startswith("ext") or len(data) < SUPERBLOCK_BYTES:
        raise InputError(f"partition {partition.number} holds no ext4 file system")
    blocks, reserved, free, free_inodes = struct.unpack_from("<IIII", data, 4)
    (log_size,) = struct.unpack_from("<I", data, 24)
    (incompat,) = struct.unpack_from("<I", data, 96)
    if log_size > 6:
        raise InputError(f"partition {partition.number}: its ext4 superblock is damaged")
    if incompat & _BITS64:
        high = struct.unpack_from("<III", data, 0x150)
        blocks, reserved, free = (
            low | top << 32 for low, top in zip((blocks, reserved, free), high, strict=True)
        )
    block_bytes = 1024 << log_size
    if blocks == 0 or blocks * block_bytes > partition.n_bytes:
        raise InputError(
            f"partition {partition.number}: its ext4 file system is larger than the partition",
            next_step="the image is damaged or was cut off: get it again; nothing was changed",
        )
    return Superblock(
        kind,
        block_bytes,
        blocks * block_bytes,
        max(0, free - reserved) * block_bytes,
        free_inodes,
        bool(incompat & _RECOVER),
        data[120:136].split(b"\0")[0].decode("utf-8", "replace"),
    )
