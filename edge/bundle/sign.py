"""Sign bundles."""

from __future__ import annotations

import os
from pathlib import Path

from boardfit.edge.bundle.bundle import MANIFEST, open_bundle, read_limited, write_manifest
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import UsageError
from boardfit.edge.trust import bundle_signature
from boardfit.edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE
from boardfit.edge.trust.release import EXPIRES_AT, NUMBER, RELEASED_AT, ReleaseTerms, new_release
from boardfit.edge.trust.signing import SigningKey
from boardfit.edge.trust.ssh_formats import PublicKey, Signature, parse_signatures


def sign_bundle(directory: Path, key: SigningKey, release: ReleaseTerms | None = None) -> PublicKey:
    """Add this key's signature to a bundle, after checking every byte that it vouches for.

    The first signature writes `release` into the manifest (default: a number from the time), so
    that the bundle gets its final id. Raises as `open_bundle`; IntegrityError when a signature that
    is there does not hold; UsageError when a `release` is given for a bundle that is signed
    already.
    """
    opened = open_bundle(directory, verify=True, check_signature=False)
    if os.path.lexists(directory / SIGNATURE):
        if release is not None:
            raise UsageError(
                f"{directory} is signed already, and its number and expiry with it",
                next_step=f"remove {directory / SIGNATURE} and sign again, as a new release",
            )
        add_signature(directory, opened.texts[MANIFEST], key)
        return key.public
    entries = (release or new_release()).entries()
    stale = (NUMBER, RELEASED_AT, EXPIRES_AT)
    kept = {name: value for name, value in opened.manifest.items() if name not in stale}
    add_signature(directory, write_manifest(directory, {**kept, **entries}), key)
    return key.public


def add_signature(directory: Path, manifest: bytes, key: SigningKey) -> None:
    """Write the signature of a manifest that was just made or verified."""
    others: list[Signature] = []
    path = directory / SIGNATURE
    if os.path.lexists(path):
        data = read_limited(path, MAX_SIGNATURE_BYTES)
        bundle_signature.signers(manifest, data)  # raises for one that does not hold
        others = [s for s in parse_signatures(data) if s.key != key.public]
    text = "".join(signature.to_armor() for signature in (*others, key.sign(manifest)))
    write_atomic(path, text.encode())
