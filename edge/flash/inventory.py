"""Boards of a fleet as data.

parallel = 8                     # at once; optional
max_failures = 1                 # after more than that nothing new is begun; optional

[boards.kitchen]
target = "ssh://pi@kitchen/opt/boardfit"
canary = true                    # flashed first, alone; without any, the first board is

[boards.hall]
target = "adb://R58A00"
bundle = "bundles/phone"         # another one than on the command line; beside this file
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import InputError
from boardfit.edge.fields import AnyObject, Flag, Schema, TableOf, Text, Whole, check_fields
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.units import printable

MAX_BOARDS = 1000
DEFAULT_PARALLEL = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS: Schema = {
    "parallel": Whole(1, 256), "max_failures": Whole(), "boards": TableOf(AnyObject(), MAX_BOARDS),
}  # fmt: skip
_BOARD_KEYS: Schema = {"target": Text(), "canary": Flag(), "bundle": Text()}


@dataclass(frozen=True)
class FleetBoard:
    """One board; `bundle` None is the one on the command line."""

    name: str
    target: str
    canary: bool = False
    bundle: Path | None = None

    @property
    def child_target(self) -> str:
        """The target for a child, which has another current folder."""
        found = parse_flash_target(self.target)
        if found.scheme not in ("dir", "image"):
            return self.target
        return str(replace(found, folder=os.path.abspath(found.folder)))


@dataclass(frozen=True)
class Inventory:
    """`max_failures` boards may fail before nothing new is begun."""

    boards: tuple[FleetBoard, ...]
    parallel: int = DEFAULT_PARALLEL
    max_failures: int = 0
    source: Path = field(default_factory=Path)

    def waves(self) -> list[list[FleetBoard]]:
        """Canaries first, then groups of at most `parallel`."""
        canaries = [board for board in self.boards if board.canary] or list(self.boards[:1])
        rest = [board for board in self.boards if board not in canaries]
        groups = [rest[i : i + self.parallel] for i in range(0, len(rest), self.parallel)]
        return [canaries, *groups]


MAX_INVENTORY_BYTES = 4 * 1024 * 1024


def read_inventory(path: Path) -> Inventory:
    """Read a fleet. Raises InputError that names the file and the entry."""
    try:
        text = OpenedFile.open(path).read(MAX_INVENTORY_BYTES).decode("utf-8")
        document = decode_toml(text)
    except (OSError, UnicodeDecodeError, TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from None
    return parse_inventory(document, path)


def parse_inventory(document: Mapping[str, Any], path: Path) -> Inventory:
    """The inventory in a parsed TOML document. Raises InputError."""
    check_fields(document, _KEYS, str(path))
    boards = document.get("boards") or {}
    if not boards:
        raise InputError(
            f"{path}: 0 boards; expected 1 to {MAX_BOARDS}",
            next_step='[boards.kitchen]\ntarget = "ssh://pi@kitchen/opt/boardfit"',
        )
    found = tuple(_board(name, entry, path) for name, entry in boards.items())
    targets = [board.target for board in found]
    if twice := next((t for t in targets if targets.count(t) > 1), None):
        raise InputError(f"{path}: two boards have the target {printable(twice)}")
    return Inventory(
        found, document.get("parallel", DEFAULT_PARALLEL), document.get("max_failures", 0), path
    )


def _board(name: str, entry: Any, path: Path) -> FleetBoard:
    where = f"{path}: boards.{printable(name, 80)}"
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: a name has letters, digits, dots, hyphens and underscores")
    check_fields(entry, _BOARD_KEYS, where, required=frozenset({"target"}))
    try:
        parse_flash_target(entry["target"])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    bundle = path.parent / entry["bundle"] if "bundle" in entry else None
    return FleetBoard(name, entry["target"], entry.get("canary", False), bundle)
