"""Publish the state of a running process for `edge watch`: one small page in shared memory.

A page is a file of fixed size, readable by its user alone, overwritten in place at a request's ends
and at most ten times a second between. A checksum shows a half-written one. It is removed when the
process ends, or by the next process, which knows the killed one by id and start time. Publishing
never fails: where no page can be written, there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import click

from boardfit.edge.types import EngineInfo, TokenEvent
from boardfit.edge.units import printable

SCHEMA = 1
PAGE_BYTES = 4096
EVERY_NS = 100 * 10**6
MAX_TEXT = 100

State = Literal["loading", "idle", "prefill", "decode"]


@dataclass
class Page:
    """One process. `started` is its start time in the kernel's ticks, None where there is no /proc.

    `n_prompt` and `n_out` are of the latest request. The others grow over all requests, so that a
    reader gets exact rates from two looks: `n_total` tokens, `n_gaps` gaps between the tokens of
    one answer and the nanoseconds that they took. `ttft_ns` is of the latest first token.
    """

    pid: int
    started: int | None
    command: str
    model: str
    engine: str = ""
    quant: str = ""
    n_threads: int = 0
    n_ctx: int = 0
    label: str = ""
    state: State = "loading"
    n_requests: int = 0
    n_prompt: int = 0
    n_out: int = 0
    n_total: int = 0
    n_gaps: int = 0
    gaps_ns: int = 0
    ttft_ns: int = 0
    ttft_n_prompt: int = 0

    def to_bytes(self) -> bytes:
        text = json.dumps({"schema": SCHEMA, **vars(self)}, ensure_ascii=False).encode()
        return (b"%08x " % zlib.crc32(text) + text).ljust(PAGE_BYTES - 1) + b"\n"


def parse_page(text: str) -> Page | None:
    """A page as it was read; None for one that is half written, of another version or no page."""
    checksum, _, body = text.rstrip("\n ").partition(" ")
    try:
        if int(checksum, 16) != zlib.crc32(body.encode()):
            return None
        data: dict[str, Any] = json.loads(body)
        version = data.pop("schema", None)
        page = Page(**data)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    kinds = [(field.type, getattr(page, field.name)) for field in fields(Page)]
    sound = version == SCHEMA and page.state in get_args(State)
    sound = sound and all(is_count(value) for kind, value in kinds if kind == "int")
    sound = sound and all(isinstance(value, str) for kind, value in kinds if kind == "str")
    return page if sound and (page.started is None or is_count(page.started)) else None


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def own_folders() -> list[Path]:
    """Folders for the pages of this user, best first. The first two are never on an SD card."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    name = f"boardfit-{os.getuid()}" if hasattr(os, "getuid") else "boardfit"
    places = [Path(runtime) / "boardfit"] if runtime else []
    return [*places, Path("/dev/shm") / name, Path(tempfile.gettempdir()) / name]


def make_folder() -> Path | None:
    """The first folder that is there, or can be made, and is ours alone."""
    for folder in own_folders():
        if not folder.parent.is_dir():
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if is_private(folder):
                return folder
    return None


def is_private(folder: Path) -> bool:
    """Whether a folder is this user's alone; in shared memory any user may have made it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    owned = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return stat.S_ISDIR(found.st_mode) and owned and not found.st_mode & 0o022


def start_ticks(pid: int | str = "self") -> int | None:
    """When a process started, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5))."""
    try:
        return parse_start_ticks(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except OSError:
        return None


def parse_start_ticks(text: str | None) -> int | None:
    """Field 22, counted from the last bracket of the name. None for states Z and X (ended)."""
    fields = (text or "").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X") or not fields[19].isdigit():
        return None
    return int(fields[19])


class Beacon:
    """The page of this process. Nothing is written outside of `publish`."""

    def __init__(self) -> None:
        self.page = Page(os.getpid(), None, "", "")
        self.is_published = False
        self._handle = -1
        self._written_ns = 0

    @contextlib.contextmanager
    def publish(self, command: str, model: str) -> Iterator[Beacon]:
        """Keep a page in the first folder that can hold one, while the block runs."""
        self.page = Page(os.getpid(), start_ticks(), command, printable(model, MAX_TEXT))
        self.is_published = True
        path = None
        if (folder := make_folder()) is not None:
            path = folder / f"{os.getpid()}.json"
            with contextlib.suppress(OSError):
                self._create(path)
        try:
            yield self
        finally:
            self.is_published = False
            self._close()
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _create(self, path: Path) -> None:
        remove_dead_pages(path.parent)
        path.unlink(missing_ok=True)  # of an earlier process with our number
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        self._handle = os.open(path, flags, 0o600)
        self.write()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def write(self) -> None:
        if self._handle < 0:
            return
        try:
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, self.page.to_bytes())
        except OSError:  # full or removed: no watcher gets it, and the answer goes on
            self._close()
        self._written_ns = time.monotonic_ns()

    def publish_model(self, name: str, info: EngineInfo) -> None:
        page = self.page
        page.model, page.engine = printable(name, MAX_TEXT), printable(info.name, MAX_TEXT)
        page.quant, page.state = printable(info.quant, MAX_TEXT), "idle"
        page.n_threads, page.n_ctx = info.n_threads, info.n_ctx
        self.write()

    def set_label(self, label: str) -> None:
        """Name what runs now, such as a benchmark's test."""
        self.page.label = printable(label, MAX_TEXT)

    def follow(self, stream: Iterator[TokenEvent], n_prompt: int) -> Iterator[TokenEvent]:
        """Return `stream`, counted on the page; the same object while there is no page."""
        return self._count_stream(stream, n_prompt) if self.is_published else stream

    def _count_stream(self, stream: Iterator[TokenEvent], n_prompt: int) -> Iterator[TokenEvent]:
        page = self.page
        page.state, page.n_prompt, page.n_out = "prefill", n_prompt, 0
        page.n_requests += 1
        before_ns = time.monotonic_ns()
        self.write()
        try:
            for event in stream:
                if event.token_id is not None:
                    self._count(event.t_ns - before_ns)
                    before_ns = event.t_ns
                    if before_ns - self._written_ns >= EVERY_NS:
                        self.write()
                yield event
        finally:
            page.state = "idle"
            self.write()

    def _count(self, gap_ns: int) -> None:
        """One token, `gap_ns` after the one before it, or after the request."""
        page = self.page
        page.n_out += 1
        page.n_total += 1
        if page.n_out > 1:
            page.n_gaps += 1
            page.gaps_ns += max(0, gap_ns)
        else:
            page.state = "decode"
            page.ttft_ns, page.ttft_n_prompt = max(0, gap_ns), page.n_prompt


def remove_dead_pages(folder: Path) -> None:
    """Delete pages of dead processes: killed ones could not remove their own."""
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            page = parse_page(path.read_text(errors="replace"))
            if page is None or page.pid != int(path.stem):
                continue
            if page.started is not None and start_ticks(page.pid) != page.started:
                path.unlink()


#: The beacon of this process. There is one page per process, so that one object can stand for it.
STATUS = Beacon()


@contextlib.contextmanager
def publish_status(command: str) -> Iterator[None]:
    """Publish a status page while the decorated function of a click command runs."""
    params = click.get_current_context().params
    model = params.get("bundle") or params.get("model") or ""
    with STATUS.publish(command, Path(str(model)).name):
        yield
