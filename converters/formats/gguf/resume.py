"""Write a file under a temporary name with a journal, resume it after a kill, and rename it.

Beside `model.gguf` lie `model.gguf.partial` (full length from the start) and
`model.gguf.partial.journal`, JSON lines:

    {"journal": 1, "fingerprint": "…"}             what is being written, from what, with what
    {"steps": 17, "sha256": "…"}                   17 tensors are on the disk, and hash to this

A line is written only after the data that it speaks of was synced. A run that finds both files
hashes what the last whole line promises; anything that does not match, and it starts over. So a
kill at any point, a torn line or a file edited in between costs time, never correctness.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from boardfit.converters.formats.gguf.header import FileLayout
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.errors import UsageError

_JOURNAL_VERSION = 1
_READ_BYTES = 4 * 1024**2
# Time between checkpoints: what a kill can cost. A checkpoint runs beside the work.
CHECKPOINT_SECONDS = 1.0


class PartialFile:
    """One artifact being written, tensor after tensor in the order of `steps`, indices in
    `layout.tensors`: outputs that share one pass share its order, regardless of that in their
    files.
    """

    def __init__(
        self,
        out: Path,
        layout: FileLayout,
        steps: Sequence[int],
        fingerprint: str,
        *,
        checkpoint_s: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.out, self.layout, self.steps = out, layout, steps
        self.path, self._journal_path = partial_path(out), journal_path(out)
        self._fingerprint, self._checkpoint_s = fingerprint, checkpoint_s
        self._in_file_order = list(steps) == list(range(len(steps)))
        self.n_done = 0
        self._hash = hashlib.sha256(layout.header)
        self._last_checkpoint = time.monotonic()
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, 0o644)
        try:
            self._lock()
            self.n_resumed = self._resume()
            self._journal = open(self._journal_path, "ab")  # noqa: SIM115 - closed in close()
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

    def _resume(self) -> int:
        """Tensors already there, verified; 0 after a clean start."""
        promised, digest = self._read_journal()
        if promised and os.fstat(self._file).st_size == self.layout.nbytes:
            found = hashlib.sha256(self._read(0, len(self.layout.header)))
            for step in range(promised):
                self._hash_tensor(found, self.steps[step])
            if found.hexdigest() == digest:
                self._hash, self.n_done = found, promised
                return promised
        self._start_over()
        return 0

    def _read_journal(self) -> tuple[int, str]:
        """The last whole line that belongs to this very job: (tensors written, their hash)."""
        try:
            lines = self._journal_path.read_bytes().splitlines()
        except FileNotFoundError:
            return 0, ""
        try:
            if json.loads(lines[0]) != self._head():
                return 0, ""
        except (ValueError, IndexError, RecursionError):
            return 0, ""
        for line in reversed(lines[1:]):
            try:
                entry = json.loads(line)
                steps, digest = entry["steps"], entry["sha256"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the line that the kill tore
            if isinstance(steps, int) and 0 < steps <= len(self.steps):
                return steps, str(digest)
        return 0, ""

    def _head(self) -> dict[str, object]:
        return {"journal": _JOURNAL_VERSION, "fingerprint": self._fingerprint}

    def _start_over(self) -> None:
        # The journal goes first: without it, what is left in the partial file means nothing.
        self._journal_path.unlink(missing_ok=True)
        os.ftruncate(self._file, 0)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file, 0, self.layout.nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        os.ftruncate(self._file, self.layout.nbytes)
        self._write_at(0, self.layout.header)
        self._journal_path.write_bytes(json.dumps(self._head()).encode() + b"\n")

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
        view = memoryview(data.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self._hash.update(view)
        self._write_at(self.layout.offsets[index] + offset, view)
        if offset + len(view) == self.layout.tensors[index].nbytes:
            self._end_tensor(step)

    def _end_tensor(self, step: int) -> None:
        index = self.steps[step]
        zeros = bytes(self.layout.padding(index))
        self._hash.update(zeros)
        end = self.layout.offsets[index] + self.layout.tensors[index].nbytes
        self._write_at(end, zeros)
        self.n_done = step + 1
        if time.monotonic() - self._last_checkpoint >= self._checkpoint_s:
            self.checkpoint()

    def _write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def checkpoint(self) -> None:
        """Start syncing what is written so far, unless the previous checkpoint still runs."""
        if self._pending is not None:
            if not self._pending.done():
                return
            self._pending.result()
        self._last_checkpoint = time.monotonic()
        line = json.dumps({"steps": self.n_done, "sha256": self._hash.hexdigest()})
        self._pending = self._syncer.submit(self._sync, line.encode() + b"\n")

    def _sync(self, line: bytes) -> None:
        os.fsync(self._file)
        self._journal.write(line)
        self._journal.flush()
        os.fsync(self._journal.fileno())

    # -- ending ----------------------------------------------------------------------------------

    def commit(self) -> str:
        """Make the file whole and give it its name; returns its sha256."""
        digest = self._hash
        if not self._in_file_order:
            digest = hashlib.sha256(self.layout.header)
            for index in range(len(self.layout.tensors)):
                self._hash_tensor(digest, index)
        self._syncer.shutdown(wait=True)
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
        self._syncer.shutdown(wait=True)
        self._journal.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def partial_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial.journal")
