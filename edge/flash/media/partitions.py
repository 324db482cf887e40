"""Partition tables of disk images: MBR and GPT, read with suspicion, one partition made larger.

MBR and its extended chain are as Linux reads them (block/partitions/msdos.c), GPT is that of the
UEFI specification 2.10, chapter 5.3. Only sectors of 512 bytes, as every image for an SD card has.
Pure: bytes come from a `Read`, changes go out as `Write`s.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from boardfit.edge.errors import DoesNotFitError, InputError
from boardfit.edge.units import MIB, format_bytes

SECTOR = 512
#: (offset, length) → exactly that many bytes, fewer at the end of the disk.
Read = Callable[[int, int], bytes]
#: (offset, bytes)
Write = tuple[int, bytes]

_MBR_ENTRIES, _MBR_ENTRY = 446, 16
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MAX_LOGICAL = 60
_MAX_SECTORS = 1 << 32
_GPT_MAGIC = b"EFI PART"
#: magic, revision, header bytes, crc, reserved, own LBA, the other's LBA, first and last usable
#: LBA, disk GUID, LBA of the entries, their number, bytes of each, their crc.
_GPT_HEADER = struct.Struct("<8s4sII4xQQQQ16sQIII")
_GPT_MAX_ENTRIES, _GPT_MAX_ENTRY = 1024, 1024


@dataclass(frozen=True)
class Partition:
    """One partition; `number` as Linux counts (logical ones from 5), `start` and `n_bytes` in
    bytes. `kind` is the MBR type as two hex digits or the GPT type as 32.
    """

    number: int
    start: int
    n_bytes: int
    kind: str

    @property
    def end(self) -> int:
        return self.start + self.n_bytes


@dataclass(frozen=True)
class PartitionTable:
    """`n_bytes` is the size of the whole disk; `partitions` in the order of their numbers."""

    label: Literal["dos", "gpt"]
    n_bytes: int
    partitions: tuple[Partition, ...]

    def room_after(self, number: int) -> int | None:
        """Where partition `number` has to end at the latest; None when nothing comes after it."""
        start = self.partition(number).start
        return min((p.start for p in self.partitions if p.start > start), default=None)

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


@dataclass(frozen=True)
class _GptHeader:
    raw: bytes  # the header's own bytes, which may be more than the known fields
    own: int
    other: int
    first_usable: int
    last_usable: int
    entries: int
    n_entries: int
    n_entry_bytes: int
    entries_crc: int

    @property
    def n_entries_sectors(self) -> int:
        return -(-self.n_entries * self.n_entry_bytes // SECTOR)

    def to_bytes(self) -> bytes:
        """One sector with both checksums right, given that `entries_crc` is."""
        fields = list(_GPT_HEADER.unpack_from(self.raw))
        fields[3:5] = [0, self.own]
        fields[5:8] = [self.other, self.first_usable, self.last_usable]
        fields[9:13] = [self.entries, self.n_entries, self.n_entry_bytes, self.entries_crc]
        header = _GPT_HEADER.pack(*fields) + self.raw[_GPT_HEADER.size :]
        crc = zlib.crc32(header)
        return (header[:16] + struct.pack("<I", crc) + header[20:]).ljust(SECTOR, b"\0")


def _broken(why: str) -> InputError:
    return InputError(
        f"its partition table is broken: {why}",
        next_step="check the image (was the download cut off?); nothing was changed",
    )


def read_table(read: Read, n_bytes: int) -> PartitionTable:
    """The partition table of a disk of `n_bytes`. Raises InputError for a disk without one, and for
    any damage that is seen: checksums, overlaps, an end after the disk, an endless chain.
    """
    sector = read(0, SECTOR)
    if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
        raise InputError(
            "there is no partition table in it",
            next_step="an image of a whole disk is needed, as the board's maker offers it",
        )
    entries = [_mbr_entry(sector, i) for i in range(4)]
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        header = _read_gpt(read, n_bytes)[0]
        found = _gpt_partitions(header, _gpt_entries(read, header))
        label: Literal["dos", "gpt"] = "gpt"
    else:
        found, label = _mbr_partitions(read, entries), "dos"
    table = PartitionTable(label, n_bytes, tuple(found))
    _refuse_nonsense(table)
    return table


def grow(
    read: Read, table: PartitionTable, number: int, partition_bytes: int
) -> tuple[PartitionTable, list[Write]]:
    """Make one partition `partition_bytes` long. Returns the table afterwards, whose `n_bytes` is
    the size the disk must have, and what to write once it has it. Identifiers (disk id, GUIDs)
    stay.

    Raises DoesNotFitError when another partition is in the way, InputError for a logical partition
    and for a table that holds both kinds.
    """
    partition = table.partition(number)
    limit = table.room_after(number)
    if number > 4 and table.label == "dos":
        raise InputError(
            f"partition {number} is a logical one; only a primary one is made larger",
            next_step="free space in it, or use an image with primary partitions",
        )
    if limit is not None and partition.start + partition_bytes > limit:
        short = partition.start + partition_bytes - limit
        raise DoesNotFitError(
            f"partition {number} cannot grow: another one begins after it, "
            f"{format_bytes(short)} too early",
            shortfall_bytes=short,
            next_step="free space in it, or use an image whose root partition is the last one",
        )
    if partition_bytes % SECTOR or partition_bytes < partition.n_bytes:
        raise ValueError(f"not a larger whole number of sectors: {partition_bytes}")
    larger = replace(partition, n_bytes=partition_bytes)
    others = tuple(larger if p.number == number else p for p in table.partitions)
    if table.label == "dos":
        after = replace(table, partitions=others, n_bytes=max(table.n_bytes, larger.end))
        return after, [_grown_mbr_entry(read, number, larger)]
    return _grow_gpt(read, replace(table, partitions=others), larger)


def _mbr_entry(sector: bytes, index: int) -> tuple[int, int, int, int]:
    """(boot flag, type, first sector, number of sectors)"""
    flag, kind, first, count = struct.unpack_from(
        "<B3xB3xII", sector, _MBR_ENTRIES + index * _MBR_ENTRY
    )
    return flag, kind, first, count


def _mbr_partitions(read: Read, entries: Sequence[tuple[int, int, int, int]]) -> list[Partition]:
    found: list[Partition] = []
    logical: list[Partition] = []
    for number, (flag, kind, first, count) in enumerate(entries, 1):
        if kind == 0 or count == 0:
            continue
        if flag not in (0, 0x80) or first == 0:
            raise _broken(f"entry {number} makes no sense")
        if kind in _EXTENDED:
            if logical:
                raise _broken("two extended partitions")
            logical = _logical_partitions(read, first, count)
            continue
        found.append(Partition(number, first * SECTOR, count * SECTOR, f"{kind:02x}"))
    return found + logical


def _logical_partitions(read: Read, base: int, n_sectors: int) -> list[Partition]:
    """The chain in an extended partition: each link has one partition and the next link."""
    found: list[Partition] = []
    at = base
    seen: set[int] = set()
    while True:
        sector = read(at * SECTOR, SECTOR)
        if at in seen or len(seen) == _MAX_LOGICAL or not base <= at < base + n_sectors:
            raise _broken("the chain of logical partitions does not end")
        if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
            raise _broken("a link of the chain of logical partitions is missing")
        seen.add(at)
        _, kind, first, count = _mbr_entry(sector, 0)
        if kind and count:
            number = 5 + len(found)
            found.append(Partition(number, (at + first) * SECTOR, count * SECTOR, f"{kind:02x}"))
        _, kind, first, count = _mbr_entry(sector, 1)
        if kind not in _EXTENDED or count == 0:
            return found
        at = base + first


def _grown_mbr_entry(read: Read, number: int, partition: Partition) -> Write:
    first, count = partition.start // SECTOR, partition.n_bytes // SECTOR
    if first + count > _MAX_SECTORS:
        raise DoesNotFitError(
            "an MBR partition table ends at 2 TiB", next_step="use an image with a GPT"
        )
    at = _MBR_ENTRIES + (number - 1) * _MBR_ENTRY
    entry = bytearray(read(0, SECTOR)[at : at + _MBR_ENTRY])
    entry[5:8] = _chs(first + count - 1)
    entry[12:16] = struct.pack("<I", count)
    return at, bytes(entry)


def _chs(sector: int) -> bytes:
    """Cylinder, head, sector as 255 heads and 63 sectors count them; the greatest beyond 8 GB."""
    cylinder, rest = divmod(sector, 255 * 63)
    head, in_track = divmod(rest, 63)
    if cylinder > 1023:
        return b"\xfe\xff\xff"
    return bytes([head, (in_track + 1) | (cylinder >> 8) << 6, cylinder & 0xFF])


def _read_gpt(read: Read, n_bytes: int) -> tuple[_GptHeader, _GptHeader]:
    """Both headers, each checked, and agreeing with each other."""
    if read(SECTOR, 8) != _GPT_MAGIC and read(4096, 8) == _GPT_MAGIC:
        raise InputError(
            "its partition table has sectors of 4096 bytes; only 512 are understood",
            next_step="use the image for SD cards",
        )
    primary = _gpt_header(read, 1, n_bytes, "")
    backup = _gpt_header(read, primary.other, n_bytes, "backup ")
    entries = [_gpt_entries(read, header) for header in (primary, backup)]
    if backup.other != 1 or entries[0] != entries[1]:
        raise _broken("the GPT and its backup differ")
    return primary, backup


def _gpt_header(read: Read, lba: int, n_bytes: int, which: str) -> _GptHeader:
    sector = read(lba * SECTOR, SECTOR) if lba < n_bytes // SECTOR else b""
    if len(sector) < SECTOR or sector[:8] != _GPT_MAGIC:
        raise _broken(f"the {which}GPT is missing")
    fields = _GPT_HEADER.unpack_from(sector)
    _, _, header_bytes, crc, own, other, first, last, _, entries, count, size, entries_crc = fields
    if not _GPT_HEADER.size <= header_bytes <= SECTOR:
        raise _broken(f"the {which}GPT has a header of an impossible size")
    raw = sector[:header_bytes]
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:]) != crc:
        raise _broken(f"the {which}GPT has a wrong checksum")
    if own != lba or not (0 < count <= _GPT_MAX_ENTRIES and 128 <= size <= _GPT_MAX_ENTRY):
        raise _broken(f"the {which}GPT makes no sense")
    header = _GptHeader(raw, own, other, first, last, entries, count, size, entries_crc)
    if (
        entries + header.n_entries_sectors > n_bytes // SECTOR
        or zlib.crc32(_gpt_entries(read, header)) != entries_crc
    ):
        raise _broken(f"the {which}GPT has a list of partitions with a wrong checksum")
    return header


def _gpt_entries(read: Read, header: _GptHeader) -> bytes:
    return read(header.entries * SECTOR, header.n_entries * header.n_entry_bytes)


def _gpt_partitions(header: _GptHeader, entries: bytes) -> list[Partition]:
    found = []
    for index in range(header.n_entries):
        at = index * header.n_entry_bytes
        kind, _, first, last = struct.unpack_from("<16s16sQQ", entries, at)
        if kind == bytes(16):
            continue
        if not header.first_usable <= first <= last <= header.last_usable:
            raise _broken(f"partition {index + 1} lies outside the disk")
        found.append(Partition(index + 1, first * SECTOR, (last - first + 1) * SECTOR, kind.hex()))
    return found


def _grow_gpt(
    read: Read, table: PartitionTable, larger: Partition
) -> tuple[PartitionTable, list[Write]]:
    primary, backup = _read_gpt(read, table.n_bytes)
    mbr = read(0, SECTOR)
    kinds = [_mbr_entry(mbr, i)[1] for i in range(4)]
    if sum(kind != 0 for kind in kinds) != 1:
        raise InputError(
            "its partition table is a hybrid of MBR and GPT, which is not made larger",
            next_step="use an image with one kind of table",
        )
    entries = bytearray(_gpt_entries(read, primary))
    at = (larger.number - 1) * primary.n_entry_bytes + 40
    entries[at : at + 8] = struct.pack("<Q", larger.end // SECTOR - 1)
    tail = primary.n_entries_sectors + 1
    n_sectors = max(table.n_bytes // SECTOR, larger.end // SECTOR + tail)
    n_sectors = -(-n_sectors * SECTOR // MIB) * MIB // SECTOR
    crc = zlib.crc32(entries)
    last = n_sectors - 1
    usable = last - tail
    first = replace(primary, other=last, last_usable=usable, entries_crc=crc)
    second = replace(backup, own=last, last_usable=usable, entries=last - tail + 1, entries_crc=crc)
    index = kinds.index(_PROTECTIVE)
    covers = struct.pack("<I", min(n_sectors - 1, _MAX_SECTORS - 1))
    writes: list[Write] = []
    if backup.own != last:  # where the backup was, the partition will be
        writes += [
            (backup.own * SECTOR, bytes(SECTOR)),
            (backup.entries * SECTOR, bytes(primary.n_entries_sectors * SECTOR)),
        ]
    writes += [
        (second.entries * SECTOR, bytes(entries)),
        (second.own * SECTOR, second.to_bytes()),
        (primary.entries * SECTOR, bytes(entries)),
        (SECTOR, first.to_bytes()),
        (_MBR_ENTRIES + index * _MBR_ENTRY + 12, covers),
    ]
    return replace(table, n_bytes=n_sectors * SECTOR), writes


def _refuse_nonsense(table: PartitionTable) -> None:
    ordered = sorted(table.partitions, key=lambda p: p.start)
    for partition in ordered:
        if partition.end > table.n_bytes:
            raise InputError(
                f"partition {partition.number} ends at {format_bytes(partition.end)}, but the "
                f"image has {format_bytes(table.n_bytes)}: it was cut off",
                next_step="download or copy it again",
            )
    for one, two in pairwise(ordered):
        if one.end > two.start:
            raise _broken(f"partitions {one.number} and {two.number} overlap")
    if not ordered:
        raise InputError("its partition table is empty", next_step="use an image of a system")
