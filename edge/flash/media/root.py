"""Find the root partition of an image or a card, and look into it: `edge slots list image:FILE`."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from boardfit.edge.errors import DeviceUnreachableError, InputError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.media.ext4 import Ext4Files, Volume
from boardfit.edge.flash.media.filesystem import identify, read_superblock
from boardfit.edge.flash.media.partitions import Partition, PartitionTable, read_table
from boardfit.edge.flash.media.release import ROOT
from boardfit.edge.flash.media.source import detect_packing, reader
from boardfit.edge.flash.target import FlashTarget

_ROOT_HAS = {"etc", "usr"}


def open_root(path: Path, file: BinaryIO, number: int | None) -> tuple[PartitionTable, Partition]:
    """Read the table of an image and its root partition: the one named, or the only one that holds
    /etc and /usr in an ext file system. Raises InputError that lists what each partition holds.
    """
    read = reader(file)
    size = file.seek(0, os.SEEK_END)
    try:
        table = read_table(read, size)
    except InputError as error:
        raise InputError(f"{path}: {error}", next_step=error.next_step) from None
    held = {p.number: identify(read, p) for p in table.partitions}
    for partition in table.partitions:
        if (held[partition.number] or "").startswith("ext"):
            read_superblock(read, partition)
    shown = ", ".join(f"{n} {kind or 'something unknown'}" for n, kind in held.items())
    if number is not None:
        partition = table.partition(number)
        if not (held[number] or "").startswith("ext"):
            raise InputError(
                f"{path}: partition {number} holds {held[number] or 'no known file system'}, not "
                f"ext4 (partitions: {shown})",
                next_step="only ext4 roots are changed; flash the running board over ssh instead",
            )
        return table, partition
    roots = [
        p
        for p in table.partitions
        if (held[p.number] or "").startswith("ext") and _is_root(path, p)
    ]
    if len(roots) != 1:
        raise InputError(
            f"{path}: {'no' if not roots else 'more than one'} partition holds an ext4 root file "
            f"system (partitions: {shown})",
            next_step="name the partition: image:FILE#2"
            if roots or any((kind or "").startswith("ext") for kind in held.values())
            else "only ext4 roots are changed; flash the running board over ssh instead",
        )
    return table, roots[0]


def _is_root(path: Path, partition: Partition) -> bool:
    with contextlib.closing(Volume(path, partition)) as volume:
        return set(volume.listing("/") or {}) >= _ROOT_HAS


class ImageBoard(Board):
    """An image's root file system, for reading."""

    def __init__(self, target: FlashTarget) -> None:
        path = Path(target.folder)
        try:
            if target.scheme == "image" and (packing := detect_packing(path)):
                raise InputError(
                    f"{path} is packed ({packing}); only plain images are looked into",
                    next_step=f"edge flash BUNDLE image:{path} unpacks it",
                )
            with path.open("rb") as file:
                _, partition = open_root(path, file, target.partition)
        except FileNotFoundError:
            raise DeviceUnreachableError(
                f"there is no {path}", next_step="edge flash --list-cards shows the cards"
            ) from None
        except PermissionError:
            raise InputError(
                f"{path} cannot be read by this user", next_step="read it as root (sudo)"
            ) from None
        self._volume = Volume(path, partition)
        self.place = f"{target.scheme}:{path}#{partition.number}"
        self.files = Ext4Files(self._volume, ROOT, self.place)

    def close(self) -> None:
        self._volume.close()
