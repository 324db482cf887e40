"""Files that keep weights in the layout of XNNPACK's kernels, so that they are packed once and
mapped from then on: loading is quick, and the memory can be dropped and read again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from boardfit.edge.disk.verified import cache_directory

_FOLDER = "xnnpack"


@contextlib.contextmanager
def weight_cache(wanted: bool, mark: str, engine: str, model_bytes: int) -> Iterator[Path | None]:
    """The cache file to open a model with; None where none is wanted or there is no room.

    A new file is written under a name of its own and gets the right one only when the model is
    open, so that a half-written one is never mapped. `mark` identifies the model, `engine` the
    library with its version: packed layouts belong to both, and to the CPU.
    """
    if not wanted:
        yield None
        return
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{mark[:24]}-{engine}-{cpu_mark()}")
    path = cache_directory() / _FOLDER / f"{name}.cache"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            yield path
            return
        room = shutil.disk_usage(path.parent).free > 2 * model_bytes
    except OSError:
        room = False
    if not room:
        yield None
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with contextlib.suppress(OSError):  # written or not: the model is open
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cpu_mark() -> str:
    """A short name of the instruction set that the kernels were chosen for."""
    import hashlib
    import platform

    features = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("features", "flags")):
                features = line
                break
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"
