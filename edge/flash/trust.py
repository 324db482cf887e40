"""Check whether a board accepts this bundle.

It is checked on this machine before anything is sent. It is checked on the board by an installed
program, before anything of the bundle runs.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from boardfit.edge.bundle.bundle import MANIFEST, Bundle
from boardfit.edge.errors import EdgeError, IntegrityError, UsageError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.session import Done
from boardfit.edge.slots import layout
from boardfit.edge.slots.store import Slots
from boardfit.edge.slots.trust import pinned_keys, release_signer
from boardfit.edge.trust.bundle_signature import NAMESPACE, SIGNATURE
from boardfit.edge.trust.ssh_formats import PublicKey
from boardfit.edge.units import printable

KIND = "boardfit-trust"
_CHECK_S = 120


@dataclass(frozen=True)
class SignaturePolicy:
    """The signature that the user requires, and by which keys.

    Without keys, the keys pinned on the board count, or the only signer of its first bundle.
    """

    required: bool = False
    keys: tuple[PublicKey, ...] = ()


@dataclass(frozen=True)
class SignatureAdmission:
    """The keys that a board accepts, and the one that signed this bundle.

    `keys` are those that the board accepts (empty: no signature is required). `signed_by` is the
    fingerprint of the signer of this bundle. `to_pin` is pinned once the bundle is current.
    """

    keys: tuple[PublicKey, ...] = ()
    signed_by: str | None = None
    to_pin: tuple[PublicKey, ...] = ()


def admit(bundle: Bundle, slots: Slots, policy: SignaturePolicy) -> SignatureAdmission:
    """Decide on this machine, before anything is sent.

    Raises IntegrityError when the board's keys, or the ones asked for, did not sign the bundle, or
    when no key is known and several signed it. Raises UsageError when a key is asked for that the
    board does not accept.
    """
    from boardfit.edge.trust.bundle_signature import accepting_key, only_signer

    pinned = pinned_keys(slots.files)
    if strangers := [key for key in policy.keys if pinned and key not in pinned]:
        raise UsageError(
            f"{slots.files.root} has other keys pinned than {strangers[0]}: "
            + ", ".join(map(str, pinned)),
            next_step="edge key pin TARGET KEY.pub accepts one more on purpose",
        )
    keys = pinned if not policy.keys else policy.keys
    if not keys and not policy.required:
        return SignatureAdmission()
    if not keys:  # trust on first use, as ssh does with a host
        keys = (only_signer(bundle.texts[MANIFEST], bundle.signature, str(bundle.path)),)
    who = slots.files.root if pinned else "--require-signature"
    signer = accepting_key(bundle.texts[MANIFEST], bundle.signature, keys, who)
    return SignatureAdmission(keys, signer.fingerprint, () if pinned else keys)


def check_on_board(
    board: Board, slots: Slots, bundle: Bundle, admission: SignatureAdmission
) -> list[str]:
    """Check the release as it lies on the board; notes for the report.

    This machine reads manifest and signature back. Where the board can run programs, one that was
    there before checks too: the edge of the current release, the board's own edge, or ssh-keygen.

    Raises IntegrityError when one of them refuses.
    """
    release_signer(board.files, bundle.id, admission.keys)
    if not board.is_running:
        return []
    folder = f"{board.files.root}/{layout.bundle_folder(bundle.id)}"
    for script in checking_scripts(board, slots, bundle, folder, admission):
        done = board.execute(script, timeout_s=_CHECK_S)
        verdict = read_verdict(done)
        if verdict is None:
            continue
        if verdict:
            raise IntegrityError(f"{board.place} refuses release {bundle.id[:12]}: {verdict}")
        return []
    return [
        "the signature was checked by this machine; the board has neither an edge nor an "
        "ssh-keygen that could check it before the first start"
    ]


def checking_scripts(
    board: Board, slots: Slots, bundle: Bundle, folder: str, admission: SignatureAdmission
) -> list[str]:
    """Shell scripts, best first, each of which prints a verdict as one JSON line (or fails)."""
    edges = []
    current = slots.current()
    if current is not None and current != bundle.id:
        env = f"{board.files.root}/{layout.env_folder(current)}/bin/edge"
        edges.append(f"[ -x {shlex.quote(env)} ] && exec {shlex.quote(env)}")
    edges.append("command -v edge >/dev/null 2>&1 && exec edge")
    keys = " ".join(f"--key {shlex.quote(key.line)}" for key in admission.keys)
    scripts = [f"{edge} key check {shlex.quote(folder)} {keys} --json" for edge in edges]
    return [*scripts, ssh_keygen_script(folder, admission)]


def ssh_keygen_script(folder: str, admission: SignatureAdmission) -> str:
    """The same question to OpenSSH, which many boards have (8.1 or later, for -Y verify). It looks
    at the first signature of the file only, so that its "no" is not taken for an answer.
    """
    allowed = "".join(f'builder namespaces="{NAMESPACE}" {key.line}\n' for key in admission.keys)
    return (
        "command -v ssh-keygen >/dev/null 2>&1 || exit 9\n"
        f"cd {shlex.quote(folder)} || exit 9\n"
        "umask 077; t=$(mktemp) || exit 9; trap 'rm -f \"$t\"' EXIT\n"
        f'printf %s {shlex.quote(allowed)} > "$t"\n'
        f'ssh-keygen -Y verify -f "$t" -I builder -n {NAMESPACE} -s {SIGNATURE} '
        f"< {MANIFEST} >/dev/null || exit 9\n"
        f'echo \'{{"kind": "{KIND}", "ok": true}}\'\n'
    )


def read_verdict(done: Done) -> str | None:
    """Return "" if it is accepted, the reason if it is refused, None if the script failed."""
    lines = done.out.decode("utf-8", "replace").strip().splitlines()
    try:
        record = json.loads(lines[-1]) if lines else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if record.get("kind") == KIND and record.get("ok") is True and done.rc == 0:
        return ""
    if record.get("error") == "IntegrityError" and done.rc == IntegrityError.exit_code:
        return printable(str(record.get("message")), 500)
    return None


def explain_refusal(
    slots: Slots, release_id: str | None, keys: tuple[PublicKey, ...]
) -> str | None:
    """Why a board with these keys pinned could not start a release; None when it could."""
    if release_id is None:
        return None
    try:
        release_signer(slots.files, release_id, keys)
    except EdgeError as error:
        return str(error)
    return None
