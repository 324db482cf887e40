"""Check and read a folder that `edge build` made of a network: sizes and hashes before use."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.edge.bundle.bundle import refuse_duplicates
from boardfit.edge.disk.opened_file import OpenedFile, OpenedFolder
from boardfit.edge.errors import InputError, IntegrityError, UnsafeInputError
from boardfit.edge.trust.pins import refuse_unsigned
from boardfit.edge.units import printable

KIND = "boardfit-network"
SCHEMA = 1
RECORD = "network.json"
_MAX_RECORD_BYTES = 1 << 20
_NAME = re.compile(r"[^/\\\0]{1,255}")


@dataclass(frozen=True)
class NetworkFolder:
    """`file` is the network's file, opened and verified; `record` the parsed `network.json`."""

    file: OpenedFile
    record: Mapping[str, Any]

    @property
    def quality(self) -> dict[str, Any]:
        """What a result says of how far the network is from its source."""
        kept = {key: self.record[key] for key in ("recipe", "errors")}
        return {**kept, "source_sha256": self.record["source"]["sha256"]}


def is_network_folder(path: Path) -> bool:
    return path.is_dir() and (path / RECORD).is_file()


def open_network_folder(folder: Path) -> NetworkFolder:
    """Raises InputError for a record that makes no sense, UnsafeInputError for links and paths,
    IntegrityError for a file that is missing, added or changed, and where keys are pinned.
    """
    where = folder / RECORD
    refuse_unsigned(where)
    opened = OpenedFolder(folder)
    try:
        record = json.loads(
            opened.open(RECORD).read(_MAX_RECORD_BYTES), object_pairs_hook=refuse_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise InputError(f"{where}: this is not a record of a network")
    if record.get("schema") != SCHEMA:
        raise InputError(
            f"{where}: schema {record.get('schema')!r}, this boardfit reads {SCHEMA}",
            next_step="build it again",
        )
    kinds = {"network": str, "recipe": str, "source": dict, "errors": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{where}: entry {key!r} is missing or of another type")
    if not isinstance(record["source"].get("sha256"), str):
        raise InputError(f"{where}: entry 'source.sha256' is missing or not a string")
    files = record["files"]
    if record["network"] not in files:
        raise InputError(f"{where}: the network {printable(record['network'])} is not in 'files'")
    present = {path.name for path in folder.iterdir()} - {RECORD}
    if present != set(files):
        names = ", ".join(map(printable, sorted(present ^ set(files))))
        raise IntegrityError(f"{folder}: missing or added: {names}", next_step="build it again")
    checked = {name: _check_file(opened, name, entry) for name, entry in files.items()}
    return NetworkFolder(checked[record["network"]].replace(beside=checked.get), record)


def _check_file(opened: OpenedFolder, name: str, entry: Any) -> OpenedFile:
    folder = opened.path
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise UnsafeInputError(f"{folder / RECORD}: file name {printable(name)!r} is not allowed")
    if not isinstance(entry, dict) or set(entry) != {"n_bytes", "sha256"}:
        raise InputError(f"{folder / RECORD}: file {printable(name)}: n_bytes and sha256 expected")
    file = opened.open(name)
    if file.stat().st_size != entry["n_bytes"] or file.digest() != entry["sha256"]:
        raise IntegrityError(
            f"{file} is not the file that was built: size or sha256 differs",
            next_step="build it again, or copy it again",
        )
    return file.replace(sha256=entry["sha256"])
