"""Sign bundles."""

from __future__ import annotations

import os
from pathlib import Path

from boardfit.edge.bundle.bundle import MANIFEST, open_bundle, read_limited
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.trust import bundle_signature
from boardfit.edge.trust.bundle_signature import MAX_SIGNATURE_BYTES, SIGNATURE
from boardfit.edge.trust.signing import SigningKey
from boardfit.edge.trust.ssh_formats import PublicKey, Signature, parse_signatures


def sign_bundle(directory: Path, key: SigningKey) -> PublicKey:
    """Add this key's signature to a bundle, after checking every byte that it vouches for. Those of
    others stay.

    Raises as `open_bundle` does; IntegrityError when a signature that is there does not hold.
    """
    opened = open_bundle(directory, verify=True, check_signature=False)
    add_signature(directory, opened.texts[MANIFEST], key)
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
