"""Keep this user's secret, which authenticates files that this user's boardfit made. Only the user
can read it. Losing it costs only time: everything made with it can be made again.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from boardfit.edge.disk.verified import cache_directory, config_directory
from boardfit.edge.errors import InputError, UnsafeInputError

NAME = "states.key"
N_BYTES = 32
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)


def user_secret(name: str = NAME) -> bytes:
    """The secret of this name, made at first use; in the cache where a service has no
    configuration. Raises UnsafeInputError for one that is a link, belongs to another user or is
    readable by others, InputError when none can be made.
    """
    reason = ""
    for folder in (config_directory(), cache_directory()):
        try:
            return _read(folder / name)
        except OSError:
            if (folder / name).is_symlink():
                raise _unusable(folder / name, "it is a link") from None
        try:
            return _make(folder, name)
        except OSError as error:
            reason = error.strerror or str(error)
    raise InputError(f"no secret can be kept in {config_directory()}: {reason}")


def _read(path: Path) -> bytes:
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, "it is not a regular file")
        if os.name == "posix" and status.st_uid != os.geteuid():
            raise _unusable(path, f"it belongs to uid {status.st_uid}")
        if os.name == "posix" and status.st_mode & 0o077:
            raise _unusable(path, f"others may read it (mode {stat.S_IMODE(status.st_mode):o})")
        data = os.read(descriptor, N_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) != N_BYTES:
        raise _unusable(path, f"it has not the {N_BYTES} bytes that it was made with")
    return data


def _make(folder: Path, name: str) -> bytes:
    """Write a new secret, whole or not at all; of two processes that do so one wins."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = folder / f".{name}.{secrets.token_hex(8)}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(N_BYTES))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(fresh, folder / name)
    finally:
        os.unlink(fresh)
    return _read(folder / name)


def _unusable(path: Path, why: str) -> UnsafeInputError:
    return UnsafeInputError(
        f"the secret {path} cannot be used: {why}", next_step=f"remove {path}: a new one is made"
    )
