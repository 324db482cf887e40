"""Mapping model files, and telling one from another without reading all of it."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Protocol

from boardfit.edge.errors import InputError
from boardfit.edge.files.kind import open_regular

# Spread over the data: fine-tunes of one model have equal names, sizes and headers.
_SAMPLES, _SAMPLE_BYTES = 32, 4096


class Digest(Protocol):
    """A hash object of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


def update_with_file(digest: Digest, name: str, mapped: mmap.mmap, data_offset: int) -> None:
    """Feed the file's name, size, header and 32 samples of 4 KiB, evenly spread over its data."""
    digest.update(f"{name}\0{len(mapped)}\0".encode())
    digest.update(mapped[:data_offset])
    last = max(data_offset, len(mapped) - _SAMPLE_BYTES)
    for i in range(_SAMPLES):
        start = data_offset + (last - data_offset) * i // (_SAMPLES - 1)
        digest.update(mapped[start : start + _SAMPLE_BYTES])


def map_file(path: Path, expected_size: int, *, below: Path | None = None) -> mmap.mmap:
    """A read-only map of a whole file. Raises InputError where it cannot be, or has changed."""
    file, _ = open_regular(path, below=below)
    try:
        with file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be mapped: {error}") from None
    if len(mapped) != expected_size:
        raise InputError(f"{path}: changed while it was being read")
    return mapped
