"""Write a file under a temporary name with a journal, resume it after a kill, and rename it.

Beside `model.gguf` lie `model.gguf.partial` (full length from the start) and
`model.gguf.partial.journal`. Its first line is the fingerprint of what is being written, from what,
with what. A line follows for each tensor: the sha256 of header and tensors up to there. A run that
finds both files hashes the tensors again, and continues behind the last whose line matches. So a
kill at any point, a torn line or a file edited in between costs time, never correctness.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from boardfit.converters.formats.gguf.header import FileLayout
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.errors import UsageError

_READ_BYTES = 4 * 1024**2


class PartialFile:
    """One artifact being written, tensor after tensor in the order of `steps`, indices in
    `layout.tensors`: outputs that share one pass share its order, regardless of that in their
    files.
    """

    def __init__(
        self, out: Path, layout: FileLayout, steps: Sequence[int], fingerprint: str
    ) -> None:
        self.out, self.layout, self.steps = out, layout, steps
        self.path, self._journal_path = partial_path(out), journal_path(out)
        self._hash = hashlib.sha256(layout.header)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, 0o644)
        try:
            self._lock()
            self.n_done = self.n_resumed = self._resume(fingerprint)
            self._journal = self._journal_path.open("ab", buffering=0)
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is writing {self.out} right now ({self.path.name} is locked)",
                next_step="Wait for it, or choose another output.",
            ) from None

    # -- starting --------------------------------------------------------------------------------

    def _resume(self, fingerprint: str) -> int:
        """Tensors already there, verified; 0 after a clean start."""
        try:
            lines = self._journal_path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        matching = [fingerprint.encode()]
        is_ours = lines[:1] == matching and os.fstat(self._file).st_size == self.layout.nbytes
        if is_ours and self._read(0, len(self.layout.header)) == self.layout.header:
            found = self._hash.copy()
            for index, line in zip(self.steps, lines[1:], strict=False):
                self._hash_tensor(found, index)
                if found.hexdigest().encode() != line:
                    break
                matching.append(line)
                self._hash = found.copy()
        # The journal goes first: without it, what is left in the partial file means nothing.
        self._journal_path.unlink(missing_ok=True)
        if len(matching) == 1:
            self._start_over()
        self._journal_path.write_bytes(b"\n".join(matching) + b"\n")
        return len(matching) - 1

    def _start_over(self) -> None:
        os.ftruncate(self._file, 0)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file, 0, self.layout.nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        os.ftruncate(self._file, self.layout.nbytes)
        self._write_at(0, self.layout.header)

    def _read(self, offset: int, n: int) -> bytes:
        data = os.pread(self._file, n, offset)
        while len(data) < n:
            more = os.pread(self._file, n - len(data), offset + len(data))
            if not more:
                return data
            data += more
        return data

    def _hash_tensor(self, digest: hashlib._Hash, index: int) -> None:
        start = self.layout.offsets[index]
        end = start + self.layout.tensors[index].nbytes + self.layout.padding(index)
        for offset in range(start, end, _READ_BYTES):
            digest.update(self._read(offset, min(_READ_BYTES, end - offset)))

    # -- writing ---------------------------------------------------------------------------------

    def write(self, step: int, offset: int, data: np.ndarray) -> None:
        """The next bytes of the tensor of `step`, at `offset` within it. Calls come in order."""
        index = self.steps[step]
        start, nbytes = self.layout.offsets[index], self.layout.tensors[index].nbytes
        view = memoryview(data.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self._hash.update(view)
        self._write_at(start + offset, view)
        if offset + len(view) == nbytes:
            zeros = bytes(self.layout.padding(index))
            self._hash.update(zeros)
            self._write_at(start + nbytes, zeros)
            self._journal.write(self._hash.hexdigest().encode() + b"\n")
            self.n_done = step + 1

    def _write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    # -- ending ----------------------------------------------------------------------------------

    def commit(self) -> str:
        """Make the file whole and give it its name; returns its sha256."""
        digest = self._hash
        if list(self.steps) != list(range(len(self.steps))):
            digest = hashlib.sha256(self.layout.header)
            for index in range(len(self.layout.tensors)):
                self._hash_tensor(digest, index)
        os.fsync(self._file)
        os.replace(self.path, self.out)
        fsync_directory(self.out.parent)
        self.close()
        self._journal_path.unlink(missing_ok=True)
        return digest.hexdigest()

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop here; what the journal promises can be continued. A second call does nothing."""
        self._journal.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def partial_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial.journal")
