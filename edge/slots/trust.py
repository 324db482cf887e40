"""Keys pinned on a board, and the releases that they accept, over any `BoardFiles`.

Where `ROOT/trusted_keys` exists nothing else is switched to or rolled back to; on the board itself
`boardfit.edge.bundle.bundle` reads the same file on every start.
"""

import hashlib
from collections.abc import Sequence

from boardfit.edge.bundle.bundle import MANIFEST, MAX_MANIFEST_BYTES
from boardfit.edge.errors import IntegrityError
from boardfit.edge.slots.files import BoardFiles
from boardfit.edge.slots.layout import bundle_folder
from boardfit.edge.trust.board_rules import (
    BOARD_RULES,
    MAX_RULES_BYTES,
    BoardRules,
    Subject,
    parse_rules,
)
from boardfit.edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE, accepting_key
from boardfit.edge.trust.pins import (
    MAX_KEYS_BYTES,
    REVOKED_KEYS,
    TRUSTED_KEYS,
    format_revoked_keys,
    format_trusted_keys,
    parse_trusted_keys,
)
from boardfit.edge.trust.ssh_formats import PublicKey


def pinned_keys(files: BoardFiles) -> tuple[PublicKey, ...]:
    """The keys that this board accepts; empty where none are pinned. Raises IntegrityError when the
    file is there and cannot be used.
    """
    return _read_keys(files, TRUSTED_KEYS)


def revoked_keys(files: BoardFiles) -> tuple[PublicKey, ...]:
    """The keys that this board accepts in no case. Raises as `pinned_keys`."""
    return _read_keys(files, REVOKED_KEYS)


def _read_keys(files: BoardFiles, name: str) -> tuple[PublicKey, ...]:
    if name not in files.entries(""):
        return ()
    # A link, a folder or a huge file reads as None, and as a damaged file then.
    data = files.read(name, MAX_KEYS_BYTES)
    return parse_trusted_keys(data or b"", f"{files.root}/{name}")


def revoke_keys(files: BoardFiles, keys: Sequence[PublicKey]) -> None:
    """Revoke exactly these keys."""
    _write_keys(files, REVOKED_KEYS, format_revoked_keys(keys) if keys else None)


def pin_keys(files: BoardFiles, keys: Sequence[PublicKey]) -> None:
    """Accept only what these keys sign from now on; without any, everything again."""
    _write_keys(files, TRUSTED_KEYS, format_trusted_keys(keys) if keys else None)


def _write_keys(files: BoardFiles, name: str, data: bytes | None) -> None:
    if data is not None:
        files.write(name, data)
    else:
        files.remove([name])
        files.sync([""])


def board_rules(files: BoardFiles) -> BoardRules:
    """What this board demands of a release. Raises IntegrityError when the file cannot be used."""
    if BOARD_RULES not in files.entries(""):
        return BoardRules()
    data = files.read(BOARD_RULES, MAX_RULES_BYTES)
    return parse_rules(data or b"", f"{files.root}/{BOARD_RULES}")


def write_rules(files: BoardFiles, rules: BoardRules) -> None:
    if rules != board_rules(files):
        files.write(BOARD_RULES, rules.to_bytes())


def refuse_release(files: BoardFiles, subject: Subject) -> None:
    """Raise IntegrityError where keys are pinned, and the board's rules refuse this release."""
    if pinned_keys(files):
        board_rules(files).refuse(subject, files.root)


def read_manifest(files: BoardFiles, release_id: str) -> bytes:
    """A release's manifest. Raises IntegrityError when it is not the one that the id stands for."""
    text = files.read(f"{bundle_folder(release_id)}/{MANIFEST}", MAX_MANIFEST_BYTES)
    if text is None or hashlib.sha256(text).hexdigest() != release_id:
        raise IntegrityError(
            f"release {release_id[:12]} on {files.root}: {MANIFEST} "
            + ("is missing" if text is None else "was edited or damaged"),
            next_step="flash the bundle again: only what is damaged is sent",
        )
    return text


def release_signer(
    files: BoardFiles, release_id: str, keys: Sequence[PublicKey]
) -> PublicKey | None:
    """The one of `keys` that signed a release, read from the board; None when there are no keys.
    Raises IntegrityError when none did, or the manifest is not the one that the id stands for.
    """
    if not keys:
        return None
    manifest = read_manifest(files, release_id)
    signature = files.read(f"{bundle_folder(release_id)}/{SIGNATURE}", MAX_SIGNATURE_BYTES)
    try:
        return accepting_key(manifest, signature, keys, files.root, revoked_keys(files))
    except IntegrityError as error:
        raise IntegrityError(
            f"release {release_id[:12]} is refused: {error}", next_step=error.next_step
        ) from None
