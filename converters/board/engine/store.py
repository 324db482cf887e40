"""Where built engines are kept: one folder per version, variant, flags and compiler.

    <cache>/board-engine/<key>/engine.json     what it is
    <cache>/board-engine/<key>/<file>…         the wheel, or the static tools

A folder is complete or absent: builds go into a folder beside it and are renamed.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.disk.atomic import fsync_directory, write_atomic
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import IntegrityError
from boardfit.edge.terminal.progress import Say

_RECORD = "engine.json"


@dataclass(frozen=True)
class BuiltEngine:
    """One built engine. `files` maps a file's name to its sha256; `kernels` names the kernel
    libraries in it; `glibc` is the oldest that it loads on (None: static); `seconds` is what the
    build took.
    """

    kind: str  # "wheel" or "tools"
    version: str
    variant: str
    key: str
    folder: Path
    files: Mapping[str, str]
    kernels: tuple[str, ...]
    compiler: str
    seconds: float
    glibc: str | None = None
    tag: str | None = None

    @property
    def path(self) -> Path:
        """The wheel, or the first tool."""
        return self.folder / next(iter(self.files))

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.files]

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def to_dict(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "folder": str(self.folder), "n_bytes": self.n_bytes}


def store_directory() -> Path:
    return cache_directory() / "board-engine"


def make_key(identity: object) -> str:
    """A short name for everything that a build's bytes depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def load_engine(key: str) -> BuiltEngine | None:
    """The engine stored under `key`, its bytes checked; None when there is none. Raises
    IntegrityError when a stored file is not what was built.
    """
    folder = store_directory() / key
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        engine = BuiltEngine(
            **{**record, "folder": folder, "key": key, "kernels": tuple(record["kernels"])}
        )
    except Exception:  # a damaged file is made again
        return None
    for name, digest in engine.files.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise IntegrityError(
                f"{path} is not the file that was built",
                next_step=f"rm -r {folder}, then build again",
            )
    return engine


def save_engine(engine: BuiltEngine, partial: Path) -> BuiltEngine:
    """Publish the folder `partial`, which holds the files of `engine`, under the engine's key."""
    record = {**dataclasses.asdict(engine)}
    del record["folder"], record["key"]
    write_atomic(partial / _RECORD, json.dumps(record, indent=1).encode())
    final = store_directory() / engine.key
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    fsync_directory(final.parent)
    return dataclasses.replace(engine, folder=final)


def find_engines() -> list[BuiltEngine]:
    """Everything in the store, wheels first, then by variant."""
    engines = []
    for record in sorted(store_directory().glob(f"*/{_RECORD}")):
        if engine := load_engine(record.parent.name):
            engines.append(engine)
    return sorted(engines, key=lambda e: (e.kind != "wheel", e.version, e.variant))


@contextlib.contextmanager
def building(key: str, say: Say) -> Iterator[Path]:
    """The only builder of `key`: gives the work folder; a second builder waits for the first."""
    store = store_directory()
    store.mkdir(parents=True, exist_ok=True)
    with (store / f".{key}.lock").open("w") as lock:
        try:
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("waiting for another build of the same engine")
                fcntl.flock(lock, fcntl.LOCK_EX)
        except ImportError:
            pass  # Windows has no cross toolchain for this anyway
        work = store / f".{key}.work"
        work.mkdir(exist_ok=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
