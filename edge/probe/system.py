"""Where a probe reads from: this machine, a folder that looks like one, or text sent by a board. A
path or command that gives nothing is None, never "".
"""

import fnmatch
import functools
import os
import re
import selectors
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import InputError
from boardfit.edge.process.child import Popen, SubprocessError, run_child

#: No file of /proc or /sys that a probe reads is longer; the rest of one that is gets cut off.
MAX_TEXT_BYTES = 1 << 20
#: All that a board may send; a real one sends some 200 KB.
MAX_DUMP_BYTES = 16 << 20
_MAX_ENTRIES = 20_000
_COMMAND_TIMEOUT_S = 5.0
_MARK = re.compile(r"[A-Za-z0-9]{8,64}")


@functools.cache
def read_commands() -> dict[str, list[str]]:
    """Commands that a probe may run, each with its fixed arguments: those of the boards' script."""
    script = read_text_beside(__file__, "read_board.sh", mark="")
    listed = re.findall(r"^ *o (\w+) (.+)$", script, re.MULTILINE)
    return {name: shlex.split(line) for name, line in listed}


class System(Protocol):
    """A Linux or Android system as text, by absolute paths."""

    def read(self, path: str) -> str | None:
        """A small file's text; None when it is not there or not readable."""

    def glob(self, pattern: str) -> list[str]:
        """Existing paths that match a shell pattern, sorted; `*` stays within one folder."""

    def output(self, command: str) -> str | None:
        """What one of `read_commands` printed; None when it is not installed or failed."""


class LocalSystem:
    """The files below `root`. Commands run only where `root` is the real one."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, path: str) -> str | None:
        return read_text(self._root / path.lstrip("/"))

    def glob(self, pattern: str) -> list[str]:
        found = self._root.glob(pattern.strip("/"))
        return sorted(f"/{path.relative_to(self._root)}" for path in found)

    def output(self, command: str) -> str | None:
        if self._root != Path("/"):
            return None
        try:
            done = run_child(read_commands()[command], timeout_s=_COMMAND_TIMEOUT_S)
        except (OSError, SubprocessError):
            return None
        text = done.stdout[:MAX_TEXT_BYTES].decode("utf-8", "replace")
        return text if done.returncode == 0 and text.strip() else None


class CapturedSystem:
    """Text that a board has sent: path → content, and command → output."""

    def __init__(self, files: Mapping[str, str], outputs: Mapping[str, str] | None = None) -> None:
        self._files = {f"/{path.lstrip('/')}": text for path, text in files.items()}
        self._outputs = dict(outputs or {})

    def read(self, path: str) -> str | None:
        return self._files.get(f"/{path.lstrip('/')}")

    def glob(self, pattern: str) -> list[str]:
        parts = pattern.strip("/").split("/")
        matcher = [re.compile(fnmatch.translate(part)) for part in parts]
        found = set()
        for path in self._files:
            names = path.strip("/").split("/")
            if len(names) >= len(matcher) and all(
                m.match(n) for m, n in zip(matcher, names, strict=False)
            ):
                found.add("/" + "/".join(names[: len(matcher)]))
        return sorted(found)

    def output(self, command: str) -> str | None:
        return self._outputs.get(command)


def parse_dump(text: str, mark: str) -> CapturedSystem:
    """What the remote reader printed: a line `<mark> file PATH` or `<mark> output NAME` before each
    text, `<mark> end` as the last line. Raises InputError when it was cut off, or is too large.
    """
    if not _MARK.fullmatch(mark):
        raise ValueError("the mark must be 8 to 64 letters and digits")
    files: dict[str, str] = {}
    outputs: dict[str, str] = {}
    holder, name, lines, ended = files, "", list[str](), False

    def keep() -> None:
        body = "\n".join(lines)
        # The reader ends every text with a newline of its own.
        content = body.removesuffix("\n")
        if name and content.strip("\0 \n"):
            holder[name] = content[:MAX_TEXT_BYTES]

    for line in text.replace("\r\n", "\n").split("\n"):
        # A file without a newline at its end, as all of the device tree's, leaves no line start.
        before, found, after = line.partition(mark + " ")
        if not found:
            lines.append(line)
            continue
        if before:
            lines.append(before)
        keep()
        lines = []
        kind, _, name = after.partition(" ")
        ended = kind == "end"
        holder = outputs if kind == "output" else files
        if len(files) + len(outputs) > _MAX_ENTRIES:
            raise InputError(f"the board sent more than {_MAX_ENTRIES} texts")
    if not ended:
        raise InputError(
            "the board's answer was cut off before its end",
            next_step="try again; a slow link may have been closed",
        )
    return CapturedSystem(files, outputs)


def read_lines(child: Popen[bytes], seconds_left: Callable[[], float]) -> Iterator[bytes]:
    """What a child prints, line by line, until it ends or is silent for `seconds_left()`."""
    assert child.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while (left := seconds_left()) > 0 and selector.select(left):
            if not (chunk := os.read(child.stdout.fileno(), 1 << 16)):
                child.wait()
                return
            *lines, pending = (pending + chunk).split(b"\n")
            yield from lines


def read_text(path: Path) -> str | None:
    """A small system file as text, None when it is not there or not readable."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None


def read_number(system: System, path: str) -> int | None:
    """A whole number in a file of its own, as sysfs has them; None for anything else."""
    return parse_number(system.read(path))


def parse_number(text: str | None) -> int | None:
    """`-12\\n` → -12; None for anything that is not one whole number of sane length."""
    stripped = (text or "").strip()
    digits = stripped[1:] if stripped.startswith("-") else stripped
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        return None
    return int(stripped)


def parse_index_list(text: str | None) -> frozenset[int] | None:
    """A kernel list such as `0-3,6` → indices; None when it is no such list."""
    found: set[int] = set()
    stripped = (text or "").strip()
    if not stripped:
        return None
    for part in stripped.split(","):
        first, dash, last = part.partition("-")
        low, high = parse_number(first), parse_number(last if dash else first)
        if low is None or high is None or not 0 <= low <= high < 4096:
            return None
        found.update(range(low, high + 1))
    return frozenset(found)


def first_text(system: System, paths: Iterable[str]) -> str | None:
    """Text of the first of several files that is not empty, stripped."""
    for path in paths:
        text = (system.read(path) or "").strip("\0 \n\t")
        if text:
            return text
    return None
