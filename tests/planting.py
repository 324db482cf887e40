"""What a stranger may put at the names that a command touches, and a tracer that finds the names.

`names_touched` runs a command and collects every name below a folder that it lists, opens, makes,
renames, links or removes, by Python's audit events. So a new name is tried without being told of.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from boardfit.edge.cli import main
from boardfit.edge.disk.rooted import MARKER

#: Names that nobody can know beforehand: of `boardfit.edge.disk.rooted.fresh_name` and `tempfile`.
_FRESH = re.compile(r"(^|/)(\.boardfit-new-[0-9a-f]{16}|\.[^/]+\.[a-z0-9_]{8}\.partial)(/|$)")
#: audit event → (position of a path, position of its folder's descriptor) for every path in it.
_EVENTS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),),
    "os.listdir": ((0, None),),
    "os.scandir": ((0, None),),
    "os.truncate": ((0, None),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
}
_listeners: list[Callable[[str], None]] = []


def _resolved(path: object, folder: object) -> str | None:
    """The absolute path of a name in a folder that is open as a descriptor, links not followed."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None
    at = isinstance(folder, int) and folder >= 0
    base = os.readlink(f"/proc/self/fd/{folder}") if at else os.getcwd()
    return os.path.normpath(os.path.join(base, os.fsdecode(path)))


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _listeners or event not in _EVENTS:
        return
    for at, folder in _EVENTS[event]:
        with contextlib.suppress(OSError):
            path = _resolved(arguments[at], None if folder is None else arguments[folder])
            if path is not None:
                _listeners[-1](path)


sys.addaudithook(_hook)  # for good; it does nothing without a listener
_open = os.open


def _open_and_tell(
    path: str | os.PathLike[str], flags: int, mode: int = 0o777, *, dir_fd: int | None = None
) -> int:
    """`os.open`, whose event does not say in which folder it opens."""
    if _listeners and dir_fd is not None and (full := _resolved(path, dir_fd)):
        _listeners[-1](full)
    return _open(path, flags, mode, dir_fd=dir_fd)


@contextlib.contextmanager
def tracing(area: Path) -> Iterator[set[str]]:
    """Collect names below `area` that are touched in the block, relative to it."""
    top, found = f"{os.path.realpath(area)}/", set[str]()

    def listen(path: str) -> None:
        if path.startswith(top) and not _FRESH.search(path):
            found.add(path.removeprefix(top))

    supported = os.open in os.supports_dir_fd
    _listeners.append(listen)
    os.open = _open_and_tell  # type: ignore[assignment]
    os.supports_dir_fd |= {_open_and_tell} if supported else set()  # type: ignore[misc]
    try:
        yield found
    finally:
        os.open = _open  # type: ignore[assignment]
        _listeners.pop()


# ---- what is planted --------------------------------------------------------------------------

PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "a link to a folder": lambda path, home: path.symlink_to(home),
    "a link to a file": lambda path, home: path.symlink_to(home / "photo"),
    "a link to nothing": lambda path, home: path.symlink_to(home / "made"),
    "a second name": lambda path, home: os.link(home / "photo", path),
    "a pipe": lambda path, _: os.mkfifo(path),
}


def make_home(folder: Path) -> Path:
    """What a stranger is after: a folder full of the user's files."""
    for name in ("photo", "sub/photo", "owner", "image", "bundle/model.gguf", "parts/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"the user's {name}".encode())
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder, and what files hold."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def plant(area: Path, name: str, home: Path, what: str) -> None:
    """Put something at a name, in folders that bear our mark: a stranger can make that, too."""
    path = area / name
    for folder in reversed(path.relative_to(area).parents):
        if not os.path.lexists(area / folder):
            (area / folder).mkdir()
            (area / folder / MARKER).touch()
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    PLANTS[what](path, home)


# ---- commands ---------------------------------------------------------------------------------


def run_edge(*words: str | Path) -> tuple[int, str]:
    """Run a command in this process: its exit code, and what it wrote to stderr. A command that
    waits for ever (at a pipe) is ended.
    """

    def give_up(*_: object) -> None:
        raise TimeoutError(f"edge {' '.join(map(str, words))} hangs")

    err, out = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            main([str(word) for word in words])
    except SystemExit as left:
        code = left.code
        return (code if isinstance(code, int) else int(bool(code))), err.getvalue()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    raise AssertionError("the command line always leaves")


@dataclass
class Scenario:
    """A command over a folder that a stranger prepared. `words` makes its command line for a
    folder; `must_touch` are names that the tracer has to find, so that it cannot find nothing.
    Names below `together` are planted at once: each run is long.
    """

    template: Path
    words: Callable[[Path], list[str | Path]]
    must_touch: tuple[str, ...]
    together: str | None = None
    spare: tuple[str, ...] = ()  # the user's own inputs, which lie there too
    codes: set[int] = field(default_factory=set)

    def names(self, folder: Path) -> list[str]:
        area = self._laid_out(folder)
        with tracing(area) as found:
            code, err = run_edge(*self.words(area))
        assert code == 0, err
        missing = set(self.must_touch) - found
        assert not missing, (missing, sorted(found))
        return sorted(found)

    def groups(self, folder: Path) -> list[list[str]]:
        """Names that are planted at once."""
        names = [name for name in self.names(folder) if name not in self.spare]
        within = [n for n in names if self.together and n.startswith(f"{self.together}/")]
        # A name within another planted one cannot be planted beside it.
        leaves = [n for n in within if not any(m.startswith(f"{n}/") for m in within)]
        return [[n] for n in names if n not in leaves] + ([leaves] if leaves else [])

    def try_plant(self, folder: Path, names: list[str], what: str) -> None:
        """Plant, run, and see that nothing of the user's was touched."""
        area, home = self._laid_out(folder), make_home(folder / "home")
        before = contents(home)
        for name in names:
            plant(area, name, home, what)
        code, err = run_edge(*self.words(area))
        told = (names, what, code, err)
        assert contents(home) == before, told
        assert code in (0, 2, 3, 5, 7), told  # 5: no release is current
        assert "Traceback" not in err and "bug of boardfit" not in err, told
        if code:
            lines = [line for line in err.splitlines() if line.lower().startswith("error:")]
            assert len(lines) == 1, told
        self.codes.add(code)

    def _laid_out(self, folder: Path) -> Path:
        area = folder / "area"
        shutil.copytree(self.template, area, symlinks=True)
        return area


def try_everything(scenario: Scenario, folder: Path) -> None:
    """Plant everything at every name that the command touches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # hundreds of runs, and no power cut
        groups = scenario.groups(folder / "traced")
        for i, names in enumerate(groups):
            for what in PLANTS:
                place = folder / f"{i}-{what.replace(' ', '-')}"
                scenario.try_plant(place, names, what)
                shutil.rmtree(place)
