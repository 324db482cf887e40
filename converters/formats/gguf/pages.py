"""Release mapped pages after use, so that a 20 GB checkpoint does not fill the resident set."""

from __future__ import annotations

import mmap

import numpy as np


def release(rows: np.ndarray) -> None:
    """Release the pages of these rows of a read-only mapped file.

    Does nothing for arrays that are not plain views of one: dropping the pages of anonymous or
    copy-on-write memory would lose data.
    """
    root = _find_mapping(rows)
    if root is None or not hasattr(root, "madvise") or not rows.flags.c_contiguous:
        return
    base = np.frombuffer(root, np.uint8).ctypes.data
    start = rows.ctypes.data - base
    # whole pages only; the one that the next rows begin in is still wanted
    first = start - start % mmap.PAGESIZE
    last = (start + rows.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        root.madvise(mmap.MADV_DONTNEED, first, last - first)


def _find_mapping(array: np.ndarray) -> mmap.mmap | None:
    holder: object = array
    while isinstance(holder, np.ndarray):
        if holder.flags.writeable:
            return None
        holder = holder.base
    if isinstance(holder, memoryview):
        holder = holder.obj
    return holder if isinstance(holder, mmap.mmap) else None
