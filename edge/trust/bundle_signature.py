r"""Read and write `manifest.json.sig`, the signatures of a bundle.

The manifest holds the hash of every other file: a signature over it covers every byte, and adding
one changes no id. The file itself is not signed, so the order of its blocks decides nothing.
Without boardfit:

    echo "builder $(cat key.pub)" > allowed
    ssh-keygen -Y verify -f allowed -I builder -n boardfit-bundle -s manifest.json.sig \
        < manifest.json
"""

from collections.abc import Sequence

from boardfit.edge.errors import IntegrityError
from boardfit.edge.trust.ssh_formats import PublicKey, Signature, parse_signatures

SIGNATURE = "manifest.json.sig"
MAX_SIGNATURE_BYTES = 64 * 1024
#: What a signature must have been made for.
NAMESPACE = "boardfit-bundle"


def signers(manifest: bytes, signature_file: bytes | None) -> list[PublicKey]:
    """The keys that signed this manifest, each once; empty without a signature file. Raises
    IntegrityError for a damaged file, or a signature of another manifest.
    """
    signatures = parse_signatures(signature_file) if signature_file is not None else []
    for signature in signatures:
        if not signature.is_valid_for(manifest, NAMESPACE):
            raise _does_not_hold(signature)
    return list(dict.fromkeys(signature.key for signature in signatures))


def only_signer(manifest: bytes, signature_file: bytes | None, name: str) -> PublicKey:
    """The one key that signed this manifest, which is trusted on first use; errors call the
    bundle `name`. Raises IntegrityError for none, for several, and as `signers`.
    """
    found = signers(manifest, signature_file)
    if not found:
        raise IntegrityError(
            f"{name} is not signed, and a signature is required",
            next_step="edge bundle sign BUNDLE KEY (edge key new makes one)",
        )
    if len(found) > 1:
        raise IntegrityError(
            f"{name} is signed by {len(found)} keys, and any user can add one: "
            + ", ".join(map(str, found)),
            next_step="name the key that you know: --require-signature=KEY.pub",
        )
    return found[0]


def accepting_key(
    manifest: bytes,
    signature_file: bytes | None,
    keys: Sequence[PublicKey],
    who: str,
    revoked: Sequence[PublicKey] = (),
) -> PublicKey:
    """Return the first of `keys` that signed this manifest; the signature file may hold more
    blocks. `who` names what accepts only these, and none that is `revoked`.

    Raises IntegrityError that states whether the bundle is unsigned, signed by others, or edited.
    """
    wanted = ", ".join(str(key) for key in keys) or "no key at all"
    if signature_file is None:
        raise IntegrityError(
            f"the bundle is not signed; {who} accepts only what {wanted} has signed",
            next_step="edge bundle sign BUNDLE KEY, with a key that is accepted there",
        )
    signatures = parse_signatures(signature_file)
    of_ours = [signature for signature in signatures if signature.key in keys]
    signed_by = [
        key
        for key in keys
        if any(s.key == key and s.is_valid_for(manifest, NAMESPACE) for s in of_ours)
    ]
    for key in signed_by:
        if key not in revoked:
            return key
    if signed_by:
        raise IntegrityError(
            f"the bundle is signed by {signed_by[0]}, a key that is revoked for {who}",
            next_step="sign it with a key that is accepted there: edge bundle sign BUNDLE KEY",
        )
    if of_ours:
        raise _does_not_hold(of_ours[0])
    made_by = ", ".join(s.key.fingerprint for s in signatures)
    raise IntegrityError(
        f"the bundle is signed by {made_by}; {who} accepts only what {wanted} has signed",
        next_step="sign it with a key that is accepted there (edge bundle sign), or accept its key "
        "there on purpose: edge key pin TARGET KEY.pub",
    )


def _does_not_hold(signature: Signature) -> IntegrityError:
    fingerprint = signature.key.fingerprint
    if signature.namespace != NAMESPACE:
        return IntegrityError(
            f"the signature by {fingerprint} was made for {signature.namespace!r:.60}, not for a "
            f"bundle ({NAMESPACE!r})",
            next_step="edge bundle sign BUNDLE KEY",
        )
    return IntegrityError(
        f"the signature by {fingerprint} is not one of this manifest: the bundle was edited after "
        "it was signed, or the signature belongs to another",
        next_step="get the bundle again from who built it; if that is you: edge bundle sign",
    )
