"""Find the root partition of an image or a card, and look into it: `edge slots list image:FILE`."""

import contextlib
from pathlib import Path

from boardfit.edge.errors import DeviceUnreachableError, InputError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.media.ext4 import Ext4Files, Volume
from boardfit.edge.flash.media.partitions import (
    Partition,
    PartitionTable,
    identify,
    read_table,
)
from boardfit.edge.flash.media.release import ROOT
from boardfit.edge.flash.media.source import detect_packing
from boardfit.edge.flash.target import FlashTarget

_ROOT_HAS = {"etc", "usr"}


def open_root(path: Path, number: int | None) -> tuple[PartitionTable, Partition]:
    """Read the table of an image and its root partition: the one named, or the only one that holds
    /etc and /usr in an ext file system. Raises InputError that lists what each partition holds.
    """
    try:
        table = read_table(path)
    except InputError as error:
        raise InputError(f"{path}: {error}", next_step=error.next_step) from None
    held = {p.number: identify(path, p) or "something unknown" for p in table.partitions}
    with_ext = [p for p in table.partitions if held[p.number].startswith("ext")]
    roots = [p for p in with_ext if _is_root(path, p)]
    shown = ", ".join(f"{n} {kind}" for n, kind in held.items())
    other_way = "only ext4 roots are changed; flash the running board over ssh instead"
    if number is not None:
        partition = table.partition(number)
        if partition not in with_ext:
            raise InputError(
                f"{path}: partition {number} holds {held[number]}, not ext4 (partitions: {shown})",
                next_step=other_way,
            )
        return table, partition
    if len(roots) != 1:
        raise InputError(
            f"{path}: {'no' if not roots else 'more than one'} partition holds an ext4 root file "
            f"system (partitions: {shown})",
            next_step="name the partition: image:FILE#2" if with_ext else other_way,
        )
    return table, roots[0]


def _is_root(path: Path, partition: Partition) -> bool:
    with contextlib.closing(Volume(path, partition)) as volume:
        volume.superblock()  # raises for a damaged one
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
            path.open("rb").close()
            _, partition = open_root(path, target.partition)
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
