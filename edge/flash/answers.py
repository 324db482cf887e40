"""Parse what a board answers, one function per kind of answer. Pure.

A board may lie, or its login may print lines of its own. Each function raises DeviceError that
names the board, what came and what was expected. No other exception leaves it.
"""

from __future__ import annotations

import re
from typing import NoReturn

from boardfit.edge.errors import DeviceError
from boardfit.edge.slots.files import BoardEntry, Kind
from boardfit.edge.units import printable

_COUNT = re.compile(r"[0-9]{1,15}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Mode, names, bytes and path of `stat -c '%f %h %s %n'`.
_STAT = re.compile(r"([0-9a-f]{1,8}) ([0-9]{1,9}) ([0-9]{1,15}) (.+)")
_FREE = re.compile(r"([0-9]{1,15}) ([0-9]{1,9})\s*")
_KINDS: dict[int, Kind] = {0o100000: "file", 0o040000: "folder", 0o120000: "link"}
MAX_PATH = 4096
MAX_NAMES = 100_000


def parse_digests(text: str, n_files: int, place: str) -> list[str | None]:
    """One sha256 a file, `-` for one that cannot be read."""
    words = text.split()
    if len(words) != n_files or not all(w == "-" or _SHA256.fullmatch(w) for w in words):
        _refuse(place, f"{n_files} sha256 sums", text)
    return [None if word == "-" else word for word in words]


def parse_counts(text: str, n_counts: int, place: str) -> list[int]:
    """One whole number a line."""
    words = text.split()
    if len(words) != n_counts or not all(map(_COUNT.fullmatch, words)):
        _refuse(place, f"{n_counts} whole numbers", text)
    return [int(word) for word in words]


def parse_free_bytes(text: str, place: str) -> int:
    """What `stat -f -c '%a %S'` or `df -Pk` printed."""
    if found := _FREE.fullmatch(text):
        return int(found[1]) * int(found[2])
    lines = [line for line in text.splitlines() if "%" in line]
    fields = lines[-1].partition("%")[0].split() if lines else []
    if len(fields) < 2 or not _COUNT.fullmatch(fields[-2]):
        _refuse(place, "free space of its disk", text)
    return int(fields[-2]) * 1024


def parse_folder(text: str, place: str) -> str:
    """The absolute path of one folder."""
    path = text.strip()
    if not path.startswith("/") or not path.isprintable() or len(path) > MAX_PATH:
        _refuse(place, "the path of its home folder", text)
    return path


def parse_entries(text: str, top: str, place: str) -> dict[str, BoardEntry]:
    """The names below `top`, from a line of `stat` for each."""
    lines = text.splitlines()
    if len(lines) > MAX_NAMES:
        _refuse(place, f"at most {MAX_NAMES} names", text)
    found = {}
    for line in lines:
        match = _STAT.fullmatch(line)
        if match is None:
            found[line] = BoardEntry("other", 0)  # a name with a line break: never one of ours
            continue
        mode, n_names, n_bytes, name = match.groups()
        if name == top:
            continue
        kind = _KINDS.get(int(mode, 16) & 0o170000, "other")
        names = int(n_names) if kind == "file" else 1
        found[name.removeprefix(f"{top}/")] = BoardEntry(kind, int(n_bytes), names)
    return found


def _refuse(place: str, expected: str, got: str) -> NoReturn:
    raise DeviceError(
        f"{place} was asked for {expected} and answered {printable(got.strip(), 80)!r}",
        next_step="check that its login prints nothing of its own: `ssh … true` must be silent",
    )
