"""Parse what a board answers, one function per kind of answer. Pure.

A board may lie, or its login may print lines of its own. Each function raises DeviceError that
names the board, what came and what was expected, and no other exception.
"""

import hashlib
import re
from typing import NoReturn

from boardfit.edge.errors import DeviceError
from boardfit.edge.slots.files import BoardEntry
from boardfit.edge.units import printable

_COUNT = re.compile(r"[0-9]{1,15}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Mode, names, bytes and path of `stat -c '%f %h %s %n'`.
_STAT = re.compile(r"([0-9a-f]{1,8}) ([0-9]{1,9}) ([0-9]{1,15}) (.+)")
_FREE = re.compile(r"([0-9]{1,15}) ([0-9]{1,9})\n")
MAX_PATH = 4096
#: The last line of an answer that may have any number of lines.
END = "."
MAX_NAMES = 100_000


def parse_digests(text: str, n_files: int, place: str) -> list[str | None]:
    """One sha256 a file, `-` for one that cannot be read."""
    words = _lines(text)
    if len(words) != n_files or not all(w == "-" or _SHA256.fullmatch(w) for w in words):
        _refuse(place, f"{n_files} sha256 sums", text)
    return [None if word == "-" else word for word in words]


def parse_counts(text: str, n_counts: int, place: str) -> list[int]:
    words = _lines(text)
    if len(words) != n_counts or not all(map(_COUNT.fullmatch, words)):
        _refuse(place, f"{n_counts} whole numbers", text)
    return [int(word) for word in words]


def parse_free_bytes(text: str, place: str) -> int:
    """What `stat -f -c '%a %S'` or `df -Pk` printed."""
    if found := _FREE.fullmatch(text):
        return int(found[1]) * int(found[2])
    lines = [line for line in _lines(text) if "%" in line]
    fields = lines[-1].partition("%")[0].split() if lines else []
    if len(fields) < 2 or not _COUNT.fullmatch(fields[-2]):
        _refuse(place, "free space of its disk", text)
    return int(fields[-2]) * 1024


def parse_folder(text: str, place: str) -> str:
    """The absolute path of one folder."""
    path = text.removesuffix("\n")
    if path == text or not path.startswith("/") or not path.isprintable() or len(path) > MAX_PATH:
        _refuse(place, "the path of one folder", text)
    return path


def parse_program(text: str, place: str) -> str | None:
    """The absolute path of a program; None for `-`, where there is none."""
    return None if text == "-\n" else parse_folder(text, place)


def parse_flag(text: str, place: str) -> bool:
    if text not in ("yes\n", "no\n"):
        _refuse(place, "yes or no", text)
    return text == "yes\n"


def parse_target(text: str, place: str) -> str | None:
    """Where a link or a pointer file leads, with END behind it; None where there is neither."""
    *lines, end = _lines(text) or [""]
    if end != END or len(lines) > 1 or not "".join(lines).isprintable() or len(text) > MAX_PATH:
        _refuse(place, f"the target of one link, and {END!r} behind it", text)
    return lines[0].strip() if lines else None


def parse_content(data: bytes, limit: int, place: str) -> bytes | None:
    """The bytes of a file that came behind their sha256; None for `-`, which is no file, and for
    more than `limit`.
    """
    if data == b"-\n":
        return None
    digest, _, content = data.partition(b"\n")
    if len(content) > limit:
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        _refuse(place, "a file and its sha256", data.decode("utf-8", "replace"))
    return content


def parse_entries(text: str, top: str, place: str) -> dict[str, BoardEntry]:
    """The names below `top`, from a line of `stat` for each, with END behind them. The first is
    `top` itself, unless it is not there.
    """
    *lines, end = _lines(text) or [""]
    if end != END or len(lines) > MAX_NAMES:
        _refuse(place, f"at most {MAX_NAMES} names, and {END!r} behind them", text)
    found = {}
    for number, line in enumerate(lines):
        match = _STAT.fullmatch(line)
        path = match[4] if match else ""
        if match is None or (path == top) is not (number == 0) or f"{path}/".find(f"{top}/") != 0:
            _refuse(place, f"mode, names, bytes and path of what lies in {top}", line)
        if number:
            entry = BoardEntry.from_mode(int(match[1], 16), int(match[3]), int(match[2]))
            found[path.removeprefix(f"{top}/")] = entry
    return found


def _lines(text: str) -> list[str]:
    """The lines of an answer; none for one whose end is missing."""
    return text[:-1].split("\n") if text.endswith("\n") else []


def _refuse(place: str, expected: str, got: str) -> NoReturn:
    raise DeviceError(
        f"{place} was asked for {expected} and answered {printable(got.strip(), 80)!r}",
        next_step="check that its login prints nothing of its own: `ssh … true` must be silent",
    )
