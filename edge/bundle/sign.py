"""Sign bundles."""

from collections.abc import Sequence
from pathlib import Path

from boardfit.edge.bundle.bundle import MANIFEST, open_bundle, write_manifest
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import UsageError
from boardfit.edge.trust import bundle_signature
from boardfit.edge.trust.bundle_signature import SIGNATURE
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
    manifest, others = opened.texts[MANIFEST], list[Signature]()
    if opened.signature is not None:
        if release is not None:
            raise UsageError(
                f"{directory} is signed already, and its number and expiry with it",
                next_step=f"remove {directory / SIGNATURE} and sign again, as a new release",
            )
        bundle_signature.signers(manifest, opened.signature)  # raises for one that does not hold
        others = [s for s in parse_signatures(opened.signature) if s.key != key.public]
    else:
        entries = (release or new_release()).entries()
        stale = (NUMBER, RELEASED_AT, EXPIRES_AT)
        kept = {name: value for name, value in opened.manifest.items() if name not in stale}
        manifest = write_manifest(directory, {**kept, **entries})
    add_signature(directory, manifest, key, others)
    return key.public


def add_signature(
    directory: Path, manifest: bytes, key: SigningKey, others: Sequence[Signature] = ()
) -> None:
    """Write the signature of a manifest that was just made or verified, behind the others."""
    text = "".join(signature.to_armor() for signature in (*others, key.sign(manifest)))
    write_atomic(directory / SIGNATURE, text.encode())
