"""Read and check a GGUF header before any native loader, or the `gguf` package, sees the file.

Tensor data is never touched. Every number is bounded by the file's size and by limits far above any
real file: a tiny file that promises 2^60 strings is refused as fast as any other. The rules are
those of upstream's loader (`ggml/src/gguf.cpp`) and of `ggml/docs/gguf.md`, or stricter.
"""

import mmap
from pathlib import Path
from typing import Literal

from boardfit.edge.disk.opened_file import Source
from boardfit.edge.errors import InputError
from boardfit.edge.files.gguf.header import GgufArray, GgufHeader, GgufTensor
from boardfit.edge.files.gguf.metadata import check_alignment, check_vocabulary, read_metadata
from boardfit.edge.files.gguf.reader import MAX_HEADER_BYTES, Reader, read_counts, read_preamble
from boardfit.edge.files.gguf.tensors import align, check_extents, read_tensors
from boardfit.edge.files.kind import open_regular

__all__ = ["GgufArray", "GgufHeader", "GgufTensor", "parse_header", "read_header"]

ArrayMode = Literal["summary", "full"]


def read_header(
    path: Source | str, *, arrays: ArrayMode = "summary", below: Path | None = None
) -> GgufHeader:
    """Check the header of the GGUF file at `path` and return its content. `arrays="summary"`
    returns a `GgufArray` for each array, `"full"` a list.

    Raises InputError for what is not a GGUF file that we read (missing, a web page, an old version,
    truncated), UnsafeInputError for a header that contradicts itself or the file.
    """
    path = Path(path) if isinstance(path, str) else path
    file, file_size = open_regular(path, below=below)
    with file:
        # Only the part that a header may take is mapped: enough for a 32-bit system too.
        length = min(file_size, MAX_HEADER_BYTES)
        try:
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        with mapped:
            return parse_header(mapped, file_size=file_size, name=str(path), arrays=arrays)


def parse_header(
    data: bytes | mmap.mmap, *, file_size: int, name: str, arrays: ArrayMode = "summary"
) -> GgufHeader:
    """`read_header` of the beginning `data` of a file of `file_size` bytes, called `name`."""
    reader = Reader(data, file_size, name)
    version = read_preamble(reader)
    n_tensors, n_kv = read_counts(reader)
    kv, kv_types = read_metadata(reader, n_kv, full=arrays == "full")
    alignment = check_alignment(reader, kv, kv_types)
    check_vocabulary(reader, kv, kv_types)
    tensors = tuple(read_tensors(reader, n_tensors))
    data_offset = align(reader.pos, alignment) if tensors else reader.pos
    data_end = check_extents(reader, tensors, data_offset, alignment)
    trailing = max(0, file_size - align(data_end, alignment)) if tensors else 0
    return GgufHeader(
        version=version,
        alignment=alignment,
        kv=kv,
        kv_types=kv_types,
        tensors=tensors,
        data_offset=data_offset,
        file_size=file_size,
        trailing_bytes=trailing,
        notes=(f"{trailing} bytes behind the last tensor are ignored",) if trailing else (),
    )
