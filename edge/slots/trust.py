"""Keys pinned on a board, and the releases that they accept, over any `BoardFiles`.

`ROOT/trusted_keys` lies beside the releases. Where it exists nothing else is switched to or rolled
back to; on the board itself `boardfit.edge.bundle.bundle` reads the same file on every start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from boardfit.edge.bundle.bundle import MANIFEST, MAX_MANIFEST_BYTES
from boardfit.edge.errors import IntegrityError
from boardfit.edge.slots.files import BoardFiles
from boardfit.edge.slots.layout import bundle_folder
from boardfit.edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE, accepting_key
from boardfit.edge.trust.pins import (
    MAX_KEYS_BYTES,
    TRUSTED_KEYS,
    format_trusted_keys,
    parse_trusted_keys,
)
from boardfit.edge.trust.ssh_formats import PublicKey


def pinned_keys(files: BoardFiles) -> tuple[PublicKey, ...]:
    """The keys that this board accepts; empty where none are pinned.

    Raises IntegrityError when the file is there and cannot be used.
    """
    if TRUSTED_KEYS not in files.entries(""):
        return ()
    # A link, a folder or a huge file reads as None, and as a damaged file then.
    data = files.read(TRUSTED_KEYS, MAX_KEYS_BYTES)
    return parse_trusted_keys(data or b"", f"{files.root}/{TRUSTED_KEYS}")


def pin_keys(files: BoardFiles, keys: Sequence[PublicKey]) -> None:
    """Accept only what these keys sign from now on; without any, everything again."""
    if keys:
        files.write(TRUSTED_KEYS, format_trusted_keys(keys))
    else:
        files.remove([TRUSTED_KEYS])
        files.sync([""])


def release_signer(
    files: BoardFiles, release_id: str, keys: Sequence[PublicKey]
) -> PublicKey | None:
    """The one of `keys` that signed a release, read from the board; None when there are no keys.

    Raises IntegrityError when none of them did, or the manifest is not the one that the id stands
    for.
    """
    if not keys:
        return None
    folder = bundle_folder(release_id)
    manifest = files.read(f"{folder}/{MANIFEST}", MAX_MANIFEST_BYTES)
    if manifest is None or hashlib.sha256(manifest).hexdigest() != release_id:
        raise IntegrityError(
            f"release {release_id[:12]} on {files.root}: {MANIFEST} is missing, edited or damaged",
            next_step="flash the bundle again: only what is damaged is sent",
        )
    signature = files.read(f"{folder}/{SIGNATURE}", MAX_SIGNATURE_BYTES)
    try:
        return accepting_key(manifest, signature, keys, files.root)
    except IntegrityError as error:
        raise IntegrityError(
            f"release {release_id[:12]} is refused: {error}", next_step=error.next_step
        ) from None
