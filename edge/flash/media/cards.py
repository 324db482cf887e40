"""Disks of this machine, which of them are cards or sticks, and what uses them. From `lsblk`.

Its output is taken with care: built-in readers report an SD card as neither removable nor
hot-pluggable (util-linux issue 2379), old versions write numbers as text, and a mounted file system
may lie several layers above the disk (LUKS, LVM, RAID).
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.edge.errors import EngineMissingError, InputError, UsageError
from boardfit.edge.process.child import child_environment, decode_output, run_child
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import format_bytes, printable

_COLUMNS = "NAME,PATH,TYPE,SIZE,RO,RM,HOTPLUG,TRAN,VENDOR,MODEL,SERIAL,LABEL,MOUNTPOINTS"
_NOT_A_CARD = re.compile(r"(mmcblk\d+(boot\d+|rpmb)|zram\d+|ram\d+|sr\d+|fd\d+)")
#: Mount points by which a disk is the system's.
_SYSTEM = ("/", "/boot", "/boot/efi", "/boot/firmware", "/usr", "/var", "/home", "[SWAP]")


@dataclass(frozen=True)
class Disk:
    """One whole disk. `mounts` are all mount points on it, `layers` what else holds it (LVM, RAID,
    LUKS), `labels` the names of file systems on it.
    """

    path: str
    n_bytes: int
    kind: str
    model: str
    serial: str
    removable: bool
    read_only: bool
    mounts: tuple[str, ...]
    layers: tuple[str, ...]
    labels: tuple[str, ...]
    partitions: tuple[str, ...]

    @property
    def is_system(self) -> bool:
        return any(mount in _SYSTEM for mount in self.mounts)

    @property
    def is_candidate(self) -> bool:
        """Whether to offer it: a card or stick with something in it, and not in use."""
        return (
            self.removable
            and self.n_bytes > 0
            and not (self.read_only or self.mounts or self.layers)
            and self.kind == "disk"
        )

    @property
    def size_text(self) -> str:
        """The size as it has to be typed before the disk is erased."""
        return format_bytes(self.n_bytes)

    def describe(self) -> str:
        """One line for a person; its text comes from the device and is made printable."""
        holds = ", ".join(self.labels) or "no labels"
        what = " ".join(filter(None, [self.model, self.serial])) or "no model name"
        return f"{self.path}  {self.size_text:>9}  {printable(what, 40)}  ({printable(holds, 60)})"


def list_disks() -> list[Disk]:
    """All disks of this machine. Raises EngineMissingError where there is no lsblk (a Mac)."""
    if not sys.platform.startswith("linux"):
        raise EngineMissingError(
            "cards are found and written on Linux only",
            next_step="edge flash BUNDLE image:FILE makes the image; Raspberry Pi Imager or dd "
            "writes it",
        )
    command = ["lsblk", "-J", "-b", "-o", _COLUMNS]
    try:
        done = run_child(command, env=child_environment(LC_ALL="C"))
    except FileNotFoundError:
        raise EngineMissingError(
            "lsblk is not installed; it lists what may be erased",
            next_step="apt install util-linux",
        ) from None
    if done.returncode:  # MOUNTPOINTS is of util-linux 2.37
        output = decode_output(done.stderr).strip()
        raise InputError(f"lsblk does not list the disks: {printable(output)}")
    return parse_lsblk(decode_output(done.stdout), card_type)


def list_cards() -> None:
    """Print the cards and sticks that may be erased, one a line."""
    cards = [disk for disk in list_disks() if disk.is_candidate]
    for disk in cards:
        echo(disk.describe())
    if not cards:
        echo("no card or USB stick that is not in use (a mounted one is not shown)", err=True)


def card_type(name: str) -> str | None:
    """`SD` for a card in a reader of its own, `MMC` for one that is soldered; None if unknown."""
    try:
        return Path(f"/sys/block/{name}/device/type").read_text().strip()
    except OSError:
        return None


def parse_lsblk(text: str, card_type: Callable[[str], str | None]) -> list[Disk]:
    """What `lsblk -J -b` printed. Raises InputError when that is no such list."""
    try:
        listed = json.loads(text)["blockdevices"]
        return [
            disk
            for entry in listed
            if not _NOT_A_CARD.fullmatch(str(entry.get("name")))
            for disk in [_disk(entry, card_type)]
            if disk.kind in ("disk", "loop")
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError("lsblk printed something that is not a list of disks") from None


def _disk(entry: dict[str, Any], card_type: Callable[[str], str | None]) -> Disk:
    below = list(_walk_children(entry))
    name = str(entry["name"])
    removable = (
        _is_true(entry.get("rm"))
        or _is_true(entry.get("hotplug"))
        or entry.get("tran") == "usb"
        or (name.startswith("mmcblk") and card_type(name) == "SD")
    )
    mounts = [m for e in (entry, *below) for m in _mounts(e)]
    return Disk(
        path=str(entry.get("path") or f"/dev/{name}"),
        n_bytes=int(entry.get("size") or 0),
        kind=str(entry.get("type")),
        model=" ".join(str(entry.get(k) or "").strip() for k in ("vendor", "model")).strip(),
        serial=str(entry.get("serial") or "").strip(),
        removable=removable,
        read_only=_is_true(entry.get("ro")),
        mounts=tuple(dict.fromkeys(mounts)),
        layers=tuple(
            f"{e.get('type')} {e.get('name')}" for e in below if e.get("type") not in ("part", None)
        ),
        labels=tuple(str(e["label"]) for e in (entry, *below) if e.get("label")),
        partitions=tuple(
            str(e.get("path") or f"/dev/{e.get('name')}") for e in below if e.get("type") == "part"
        ),
    )


def _walk_children(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for child in entry.get("children") or ():
        yield child
        yield from _walk_children(child)


def _mounts(entry: dict[str, Any]) -> list[str]:
    found = entry.get("mountpoints") or [entry.get("mountpoint")]
    return [str(mount) for mount in found if mount]


def _is_true(value: Any) -> bool:
    return value is True or value in ("1", 1)


def find_disk(device: str, disks: list[Disk]) -> Disk:
    """The disk that a path names, links such as /dev/disk/by-id followed. Raises UsageError for a
    partition, InputError for what is no disk.
    """
    real = os.path.realpath(device)
    for disk in disks:
        if disk.path in (device, real):
            return disk
        if real in disk.partitions:
            raise UsageError(
                f"{device} is a partition; a card is written whole", next_step=f"card:{disk.path}"
            )
    there = "is no disk" if os.path.exists(device) else "does not exist"
    raise InputError(f"{device} {there}", next_step="edge flash --list-cards shows the cards")


def refuse_disk(disk: Disk, *, force: bool) -> None:
    """Raise UsageError unless this disk may be erased. `force` lets through what is not removable;
    nothing lets through a disk that is in use.
    """
    if disk.is_system:
        raise UsageError(
            f"{disk.path} holds the running system (mounted at {disk.mounts[0]}); it is not erased",
            next_step="edge flash --list-cards shows the cards",
        )
    if disk.mounts:
        raise UsageError(
            f"{disk.path} is in use: mounted at {printable(disk.mounts[0])}",
            next_step=f"umount {printable(disk.mounts[0])}",
        )
    if disk.layers:
        raise UsageError(
            f"{disk.path} is in use: {printable(disk.layers[0])} lies on it",
            next_step="close it first (cryptsetup close, vgchange -an, mdadm --stop)",
        )
    if disk.read_only:
        raise UsageError(
            f"{disk.path} is write-protected", next_step="move the switch at the card's side"
        )
    if disk.n_bytes == 0:
        raise UsageError(f"there is no card in {disk.path}", next_step="put one in")
    if not disk.removable and not force:
        raise UsageError(
            f"{disk.path} ({disk.size_text}, {printable(disk.model) or 'no model name'}) is no "
            "removable disk",
            next_step="edge flash --list-cards shows the cards; --force if it really is this one",
        )
