"""Keys that a place accepts bundles from: `trusted_keys`, one public key per line.

    ROOT/trusted_keys                beside ROOT/releases on a board (`edge key pin`)
    /etc/edgekit/trusted_keys        the whole machine; only its administrator can change it
    $EDGEKIT_TRUSTED_KEYS            one more, for a service or a shell

Every one of these files that exists must accept a bundle before it is opened. One that cannot be
read, is damaged or is empty accepts nothing: a lock that fails stays shut. Whoever may write ROOT
may remove its file; the machine's own file is for boards where that matters.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from edge.errors import InputError, IntegrityError
from edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE, accepting_key
from edge.trust.ssh_formats import PublicKey, parse_public_key

TRUSTED_KEYS = "trusted_keys"
SYSTEM_KEYS = Path("/etc/edgekit/trusted_keys")
VARIABLE = "EDGEKIT_TRUSTED_KEYS"
MAX_KEYS_BYTES = 64 * 1024
MAX_KEYS = 64


def parse_trusted_keys(data: bytes, place: str) -> tuple[PublicKey, ...]:
    """Keys of a file, without repetitions; `#` begins a comment line.

    Raises IntegrityError for a damaged or an empty one: nothing is accepted then.
    """
    try:
        # Plain lines only: Unicode knows more separators, in which a key could hide or vanish.
        lines = [line.strip(" \t\r") for line in data.decode("utf-8").split("\n")]
        keys = [parse_public_key(line) for line in lines if line and not line.startswith("#")]
    except (UnicodeDecodeError, InputError) as error:
        raise _shut(place, str(error)) from None
    if not keys or len(keys) > MAX_KEYS:
        raise _shut(place, f"it has {len(keys)} keys, expected 1 to {MAX_KEYS}")
    return tuple(dict.fromkeys(keys))


def format_trusted_keys(keys: Sequence[PublicKey]) -> bytes:
    head = "# Only bundles signed by one of these keys are switched to or started here: edge key.\n"
    return (head + "".join(f"{key.line}\n" for key in keys)).encode()


def key_files(bundle: Path) -> list[Path]:
    """The key files that decide over the bundle at this path, whatever is in them.

    A release lies at ROOT/releases/ID/bundle or, through the link, at ROOT/current/bundle; both the
    path as given and what it leads to are looked at, so that no link leads around a key file.
    """
    places = [Path(os.path.abspath(bundle)), Path(os.path.realpath(bundle))]
    candidates = [parent / TRUSTED_KEYS for place in places for parent in place.parents[:3]]
    candidates.append(SYSTEM_KEYS)
    if own := os.environ.get(VARIABLE):
        # Named on purpose: it counts even when it is missing.
        return [*_existing(candidates), Path(own)]
    return _existing(candidates)


def check_pins(bundle: Path, manifest: bytes) -> list[PublicKey]:
    """The keys by which every key file accepts a bundle; empty where there are none. `manifest` is
    the text that was read from the bundle.

    Raises IntegrityError when one of them does not accept it.
    """
    accepted = []
    for path in key_files(bundle):
        keys = parse_trusted_keys(_read(path, MAX_KEYS_BYTES), str(path))
        signature_path = bundle / SIGNATURE
        signature = (
            _read(signature_path, MAX_SIGNATURE_BYTES) if os.path.lexists(signature_path) else None
        )
        accepted.append(accepting_key(manifest, signature, keys, str(path)))
    return accepted


def _existing(paths: Sequence[Path]) -> list[Path]:
    found = []
    for path in dict.fromkeys(paths):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # there, but not for us to see: reading it will say so
        found.append(path)
    return found


def _read(path: Path, limit: int) -> bytes:
    try:
        # Not blocking, so that a named pipe cannot hold a start up.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _shut(str(path), "it is no regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise _shut(str(path), error.strerror or str(error)) from None
    if len(data) > limit:
        raise _shut(str(path), f"it has more than {limit} bytes")
    return data


def _shut(place: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{place} says whose bundles are accepted, but cannot be used ({why}): nothing is accepted",
        next_step="pin the keys again: edge key pin TARGET KEY.pub --replace",
    )
