"""The one kind of tar that a packed bundle is: plain headers of regular files and folders.

None of the extensions is read that hostile archives abuse: pax headers that take minutes to parse,
sparse files that unpack to terabytes. Each entry costs one block of 512 bytes to check.
"""

import io
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.units import printable

BLOCK = 512
#: Python's tarfile and GNU tar fill the last record; the bytes of a packed bundle stay the same.
_RECORD = 20 * BLOCK
_GNU, _POSIX = b"ustar  \0", b"ustar\x0000"
_REGULAR, _OLD_REGULAR, _FOLDER = b"0", b"\0", b"5"
_REPACK = "pack the bundle again: edge bundle pack KIT -o KIT.tar"
_REFUSED = {
    **dict.fromkeys((b"x", b"g", b"X"), "a pax header"),
    **dict.fromkeys((b"L", b"K"), "a GNU long name"),
    **dict.fromkeys((b"S", b"D", b"M", b"N", b"V"), "a GNU extension"),
    **dict.fromkeys((b"1", b"2"), "a link"),
    **dict.fromkeys((b"3", b"4", b"6"), "a device or a pipe"),
}
_NAME_BYTES, _PREFIX_BYTES = 100, 155
_MAX_OCTAL = 8**11


class TarEntry(NamedTuple):
    """One entry: its name without a trailing slash, and the size of its content."""

    name: str
    n_bytes: int
    is_folder: bool


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with `head` (one block) is a tar of any kind."""
    return len(head) >= BLOCK and head[257:262] == b"ustar" and _has_checksum(head[:BLOCK])


def read_entries(file: BinaryIO, size: int, shown: str, most: int) -> Iterator[TarEntry]:
    """Yield the entries of a tar of `size` bytes; `file` is then at the entry's content. Raises
    InputError for what is no tar or is cut short, UnsafeInputError for an entry that is neither
    a regular file nor a folder, and for more than `most` entries.
    """
    at = count = 0
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if not block.strip(b"\0"):
            break
        if len(block) < BLOCK:
            raise _cut_short(shown)
        entry = _parse(block, f"{shown}, byte {at}")
        if entry.n_bytes > size - at - BLOCK:
            raise _cut_short(shown)
        count += 1
        if count > most:
            raise UnsafeInputError(f"{shown}: more than {most} entries", next_step=_REPACK)
        yield entry
        at += BLOCK + _padded(entry.n_bytes)
    if not count:
        raise InputError(f"{shown}: not a packed bundle: it holds no entry")
    if not block:
        raise _cut_short(shown)


def _cut_short(shown: str) -> InputError:
    return InputError(
        f"{shown}: the packed bundle is cut short", next_step="copy it again, and compare sizes"
    )


def _parse(block: bytes, where: str) -> TarEntry:
    magic = block[257:265]
    if magic not in (_GNU, _POSIX) or not _has_checksum(block):
        raise InputError(f"{where}: no header of a packed bundle", next_step=_REPACK)
    kind = block[156:157]
    if kind not in (_REGULAR, _OLD_REGULAR, _FOLDER):
        what = _REFUSED.get(kind, f"an entry of unknown type {kind!r}")
        raise UnsafeInputError(
            f"{where}: {what}, not a plain file; a packed bundle holds files and folders only",
            next_step=_REPACK,
        )
    name = _text(block[:_NAME_BYTES], where)
    prefix = _text(block[345:500], where) if magic == _POSIX else ""
    name = f"{prefix}/{name}" if prefix else name
    n_bytes = _number(block[124:136], where)
    is_folder = kind == _FOLDER
    if is_folder and n_bytes:
        raise UnsafeInputError(f"{where}: the folder {printable(name)} has content")
    return TarEntry(name.removesuffix("/") if is_folder else name, n_bytes, is_folder)


def _has_checksum(block: bytes) -> bool:
    """Whether the header's sum is that of its bytes, the sum's own eight counted as blanks."""
    digits = block[148:156].rstrip(b" \0").lstrip(b" ")
    return _is_octal(digits) and int(digits, 8) == _checksum(block)


def _checksum(block: bytes) -> int:
    return sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _is_octal(digits: bytes) -> bool:
    return 0 < len(digits) <= 12 and not digits.strip(b"01234567")


def _number(field: bytes, where: str) -> int:
    """A size: octal digits, or for 8 GiB and more a first byte of 0x80 and 11 bytes big-endian."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b" \0")
    if not _is_octal(digits):
        raise UnsafeInputError(f"{where}: the size {field!r} is no count of bytes")
    return int(digits, 8)


def _text(field: bytes, where: str) -> str:
    name = field.partition(b"\0")[0]
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise UnsafeInputError(f"{where}: the name {name!r} is not ASCII") from None


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK) * BLOCK


class TarWriter:
    """Write a tar whose bytes depend on names and contents only."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._n_bytes = file, 0

    def add(self, name: str, n_bytes: int, content: BinaryIO) -> None:
        """Write `content`. Raises InputError for a name that is too long, or a short content."""
        self._write(_header(name, n_bytes))
        left = n_bytes
        while left:
            chunk = content.read(min(left, 1 << 20))
            if not chunk:
                raise InputError(f"{printable(name)}: ends {left} bytes before its stated size")
            self._write(chunk)
            left -= len(chunk)
        self._write(bytes(_padded(n_bytes) - n_bytes))

    def close(self) -> None:
        """Write the end: two empty blocks, and as many more as fill a record."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._n_bytes % _RECORD))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._n_bytes += len(data)


def _header(name: str, n_bytes: int) -> bytes:
    prefix, last, magic = "", name, _GNU
    if len(name) > _NAME_BYTES:  # POSIX has room for folders in a second field
        cut = name.rfind("/", 0, _PREFIX_BYTES + 1)
        prefix, last, magic = name[: max(0, cut)], name[cut + 1 :], _POSIX
        if cut < 0 or len(last) > _NAME_BYTES:
            raise InputError(
                f"bundle file {printable(name)}: the name is too long for a packed bundle",
                next_step="copy the folder instead, or push it to a registry",
            )
    size = b"%011o\0" % n_bytes if n_bytes < _MAX_OCTAL else b"\x80" + n_bytes.to_bytes(11, "big")
    block = io.BytesIO(bytes(BLOCK))
    for at, field in (
        (0, last.encode("ascii")), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"),
        (124, size), (136, b"%011o\0" % 0), (148, b" " * 8), (156, _REGULAR), (257, magic),
        (345, prefix.encode("ascii")),
    ):  # fmt: skip
        block.seek(at)
        block.write(field)
    # A device's numbers are empty in GNU's header; POSIX asks for digits.
    if magic == _POSIX:
        block.seek(329)
        block.write(b"0000000\0" * 2)
    block.seek(148)
    block.write(b"%06o\0 " % _checksum(block.getvalue()))
    return block.getvalue()
