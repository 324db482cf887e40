"""Take a GGUF file as it stands: the same bytes where it is one whole file. A split model, or one
whose tensors are not all wanted, is written anew with the same types and bytes.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.kernels import load_kernels
from boardfit.converters.formats.gguf.recipe import GgufRecipe
from boardfit.converters.formats.gguf.stream import check_values
from boardfit.converters.formats.gguf.write import (
    GgufArtifact,
    describe_artifact,
    usable_threads,
    write_gguf,
)
from boardfit.converters.spec import ModelSpec
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.errors import InputError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.kind import open_regular
from boardfit.edge.terminal.progress import Progress

_CHUNK = 4 * 1024 * 1024


def write_as_is(
    spec: ModelSpec,
    recipe: GgufRecipe,
    out: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> GgufArtifact:
    """Bring the model into the file `out` without converting a weight. Raises InputError for NaN or
    infinity, or a file that changed since it was opened; else what `write_gguf` raises.
    """
    if not is_whole_file(spec):
        return write_gguf(spec, recipe, out, threads=threads, progress=progress, overwrite=True)
    started = time.monotonic()
    check_values(spec.tensors, load_kernels(), threads or usable_threads(), progress)
    (n_bytes,) = spec.source.files.values()
    digest = _copy(Path(spec.source.location), out, n_bytes)
    return describe_artifact(out, recipe, assign_types(spec, recipe), n_bytes, digest, started)


def is_whole_file(spec: ModelSpec) -> bool:
    """Whether one file holds the model's tensors and no other ones."""
    if len(spec.source.files) != 1:
        return False
    return len(read_header(Path(spec.source.location)).tensors) == len(spec.tensors)


def _copy(source: Path, out: Path, n_bytes: int) -> str:
    """Copy a file that is `n_bytes` long, fsynced, and return its sha256."""
    digest, beside, n_copied = hashlib.sha256(), out.with_name(out.name + ".part"), 0
    opened, _ = open_regular(source)
    with opened as file, beside.open("wb") as target:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
            n_copied += len(chunk)
        target.flush()
        os.fsync(target.fileno())
    if n_copied != n_bytes:
        beside.unlink()
        raise InputError(
            f"{source} has {n_copied} bytes now, and had {n_bytes} when it was opened",
            next_step="let no other program write to it, and build again",
        )
    beside.replace(out)
    fsync_directory(out.parent)
    return digest.hexdigest()
