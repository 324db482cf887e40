"""Write a card, read it back, and test its real size.

False cards begin again at the start (address lines are missing, so that the true size is a power of
two) or drop what lies behind. Marks at powers of two and at even distances find both in seconds
(the idea of f3probe, https://fight-flash-fraud.readthedocs.io).
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import BinaryIO

from boardfit.edge.disk.data_files import find_trouble
from boardfit.edge.errors import IntegrityError
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import MIB, format_bytes

CHUNK = 4 * MIB
_MARK = 4096
_EVENLY = 16
_FLUSH_EVERY = 16 * CHUNK
_FILLER = 8 * MIB
#: The beginning is written last: a card that was not finished has no partition table.
_FIRST = MIB
_BLKFLSBUF, _BLKRRPART = 0x1261, 0x125F
_FALSE = "the card is false or worn out: do not use it"


class DeviceMedium:
    """A block device, held alone: the kernel refuses that for what is mounted or part of something
    else, and mounts nothing of it meanwhile.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            reason = error.strerror or str(error)
            trouble = find_trouble(__file__, "card_troubles.toml", reason, path=path, reason=reason)
            assert trouble is not None  # its last row is for every reason
            raise trouble from error
        self.n_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        data = b""
        while len(data) < length:
            piece = os.pread(self._fd, length - len(data), offset + len(data))
            if not piece:
                raise OSError(errno.EIO, f"{self._path} ends at {offset + len(data)}")
            data += piece
        return data

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            n_bytes = os.pwrite(self._fd, view, offset)
            view, offset = view[n_bytes:], offset + n_bytes

    def settle(self) -> None:
        """Put everything written on the medium; what is read from now on comes from there."""
        os.fsync(self._fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._ioctl(_BLKFLSBUF)

    def reread_partitions(self) -> None:
        """Let the kernel look at the new table; it may not want to."""
        self._ioctl(_BLKRRPART)

    def _ioctl(self, request: int) -> None:
        import fcntl

        try:
            fcntl.ioctl(self._fd, request)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EBUSY, errno.EINVAL, errno.ENOTTY):
                raise

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def _explain_card_errors(place: str, at: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise IntegrityError(
            f"{place} fails while {at}: {error.strerror or error}",
            next_step="try another card or reader; see the kernel's log (dmesg)",
        ) from error


def mark_offsets(n_bytes: int) -> list[int]:
    """Return where marks are set on a card of `n_bytes`, ascending, block by block: at 0, at every
    power of two from 1 MiB on, at even distances, and at the end.
    """
    last = (n_bytes - _MARK) // _MARK * _MARK
    found = {0, last}
    power = MIB
    while power <= last:
        found.add(power)
        power *= 2
    found |= {last * i // _EVENLY // _MARK * _MARK for i in range(_EVENLY)}
    return sorted(offset for offset in found if 0 <= offset <= last)


def _mark(nonce: bytes, offset: int) -> bytes:
    seed = hashlib.sha256(nonce + offset.to_bytes(8, "little")).digest()
    return (seed + offset.to_bytes(8, "little")).ljust(64, b"\0") * (_MARK // 64)


def refuse_false_capacity(medium: DeviceMedium, place: str) -> None:
    """Set marks all over the medium and read them back. What was there is lost. Raises
    IntegrityError with the size that it has in truth, as far as that shows.
    """
    nonce = os.urandom(16)
    offsets = mark_offsets(medium.n_bytes)
    with _explain_card_errors(place, "its size is tested"):
        for offset in offsets:
            medium.write(offset, _mark(nonce, offset))
        for one, two in pairwise(offsets):
            if two - one > _FILLER + _MARK:  # between marks: more than a false card's cache keeps
                medium.write(one + _MARK, os.urandom(_FILLER))
                break
        medium.settle()
        found = {offset: medium.read(offset, _MARK) for offset in offsets}
    by_content = {_mark(nonce, offset): offset for offset in offsets}
    wrong = [offset for offset in offsets if found[offset] != _mark(nonce, offset)]
    if not wrong:
        return
    claim = f"{place} claims to hold {format_bytes(medium.n_bytes)}, but "
    wrapped = [
        by_content[found[offset]] - offset for offset in wrong if found[offset] in by_content
    ]
    if wrapped:
        raise IntegrityError(
            f"{claim}it begins again after {format_bytes(min(map(abs, wrapped)))}", next_step=_FALSE
        )
    good = [offset for offset in offsets if offset < wrong[0]]
    raise IntegrityError(
        f"{claim}it keeps nothing behind {format_bytes(wrong[0])} "
        f"(the last good mark is at {format_bytes(good[-1] if good else 0)})",
        next_step=_FALSE,
    )


def write_image(
    medium: DeviceMedium, image: BinaryIO, n_bytes: int, place: str, tell: Progress
) -> None:
    """Write an image of `n_bytes` to the medium's beginning, its first part last. Wipe the end,
    where an older GPT would have its backup. Raises IntegrityError when the card gives up.
    """
    with _explain_card_errors(place, "it is written"):
        medium.write(0, bytes(min(_FIRST, n_bytes)))
        if medium.n_bytes - n_bytes >= _FIRST:
            medium.write(medium.n_bytes - _FIRST, bytes(_FIRST))
        done = 0
        for start, end in ((_FIRST, n_bytes), (0, min(_FIRST, n_bytes))):
            image.seek(start)
            for offset in range(start, end, CHUNK):
                data = image.read(min(CHUNK, end - offset))
                medium.write(offset, data)
                done += len(data)
                if done % _FLUSH_EVERY < CHUNK:  # or the kernel's memory would be what is measured
                    medium.settle()
                tell(done, n_bytes)
            medium.settle()


def verify_image(
    medium: DeviceMedium, image: BinaryIO, n_bytes: int, place: str, tell: Progress
) -> None:
    """Compare the medium with the image, every byte read from the medium. Raises IntegrityError
    with the first place that differs.
    """
    with _explain_card_errors(place, "it is read back"):
        medium.settle()
        image.seek(0)
        for offset in range(0, n_bytes, CHUNK):
            wanted = image.read(min(CHUNK, n_bytes - offset))
            got = medium.read(offset, len(wanted))
            if got != wanted:
                at = offset + next(
                    i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b
                )
                raise IntegrityError(
                    f"{place} gives other bytes back than were written, first at byte {at} "
                    f"({format_bytes(at)})",
                    next_step=_FALSE,
                )
            tell(offset + len(wanted), n_bytes)
