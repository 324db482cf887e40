"""A position in a GGUF header's bytes that cannot leave them; magic, version and counts."""

import mmap
import struct
from typing import NoReturn

from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.kind import HEAD_BYTES, foreign
from boardfit.edge.units import printable

# Far above any real file, and low enough that a hostile one cannot cost a board its memory.
# The largest real headers have 2,000 tensors, 100 keys and 20 MB.
MAX_HEADER_BYTES = 128 * 1024**2
MAX_TENSORS = 65_536
MAX_KEYS = 65_536

_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # key length, key, value type, smallest value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # name length, n_dims, one dim, type, offset

_HOSTILE = "Download or convert the file again; do not load it elsewhere either."
# For what a careless tool writes: no loader is misled by it.
REWRITE = "Write the metadata again with gguf's own tools (gguf-new-metadata), or convert again."

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Reader:
    """A position in the header's bytes that cannot leave them."""

    def __init__(self, data: bytes | mmap.mmap, file_size: int, name: str) -> None:
        self.data = data
        self.end = min(len(data), file_size, MAX_HEADER_BYTES)
        self.file_size = file_size
        self.name = printable(name)
        self.pos = 0

    @property
    def n_bytes_left(self) -> int:
        return self.end - self.pos

    def refuse(self, reason: str, at: int | None = None, next_step: str = _HOSTILE) -> NoReturn:
        """Raise UnsafeInputError. The default next step is for a header that misleads a loader."""
        offset = self.pos if at is None else at
        raise UnsafeInputError(
            f"{self.name}: refused GGUF header at byte {offset}: {reason}", next_step=next_step
        )

    def skip(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes`; returns where they began."""
        start = self.pos
        if n_bytes > self.end - start:
            left = f"only {self.n_bytes_left} are left in the file (truncated or damaged)"
            if self.end < self.file_size:
                left = f"a header may have at most {MAX_HEADER_BYTES} bytes"
            self.refuse(f"{what} takes {n_bytes} bytes, but {left}")
        self.pos = start + n_bytes
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8, what))[0])

    def string(self, limit: int, what: str) -> str:
        start = self.pos
        n_bytes = self.u64(f"the length of {what}")
        if n_bytes > limit:
            self.refuse(f"{what} has {n_bytes} bytes, the limit is {limit}", start)
        begin = self.skip(n_bytes, what)
        try:
            return self.data[begin : self.pos].decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"{what} is not UTF-8 ({error.reason})"
            self.refuse(reason, begin + error.start, REWRITE)


def read_preamble(reader: Reader) -> int:
    """Check magic and version; returns the version."""
    head = bytes(reader.data[:HEAD_BYTES])
    if not head.startswith(b"GGUF"):
        kind = foreign(head)
        if kind:
            raise InputError(
                f"{reader.name}: expected a GGUF file, got {kind.name}", next_step=kind.next_step
            )
        raise InputError(
            f"{reader.name}: expected a GGUF file, which begins with {b'GGUF'!r}, got {head[:8]!r}",
            next_step="Check that this is the right file, and that its download is complete.",
        )
    reader.skip(4, "the magic")
    version = reader.u32("the version")
    if version in (2, 3):
        return version
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError(
            f"{reader.name}: a big-endian GGUF file; only little-endian ones are read",
            next_step="Convert it on its own machine with upstream's gguf_convert_endian.py.",
        )
    raise UnsupportedModelError(
        f"{reader.name}: GGUF version {version}; versions 2 and 3 are read",
        next_step="Convert the original checkpoint again with a current tool.",
    )


def read_counts(reader: Reader) -> tuple[int, int]:
    counts = []
    for what, least, limit in (
        ("tensors", _MIN_TENSOR_BYTES, MAX_TENSORS),
        ("keys", _MIN_KEY_BYTES, MAX_KEYS),
    ):
        at = reader.pos
        count = reader.u64(f"the number of {what}")
        if count * least > reader.n_bytes_left:
            reader.refuse(
                f"{count} {what} announced, but the {reader.n_bytes_left} bytes left hold at most "
                f"{reader.n_bytes_left // least}",
                at,
            )
        if count > limit:
            reader.refuse(f"{count} {what} announced, the limit is {limit}", at)
        counts.append(count)
    return counts[0], counts[1]
