"""Check whether a board accepts this bundle: on this machine before anything is sent, and on the
board, by an installed program, before anything of the bundle runs.
"""

import shlex
from dataclasses import dataclass, field, replace

from boardfit.device_profiles.catalog import THIS_MACHINE
from boardfit.edge.bundle.bundle import MANIFEST, Bundle
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import DeviceError, EdgeError, IntegrityError, UsageError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.session import Done
from boardfit.edge.slots import layout
from boardfit.edge.slots import trust as board_trust
from boardfit.edge.slots.store import Slots
from boardfit.edge.trust.board_rules import BoardRules, Floor, Subject, older_error
from boardfit.edge.trust.bundle_signature import NAMESPACE, SIGNATURE
from boardfit.edge.trust.ssh_formats import PublicKey
from boardfit.edge.units import printable

KIND = "boardfit-trust"
_CHECK_S = 120


@dataclass(frozen=True)
class SignaturePolicy:
    """The signature that the user requires, and by which keys: without any, those pinned on the
    board, or the only signer of its first bundle. `allow_older` lowers the board's floor.
    `other_board` accepts and records another board than the recorded one.
    """

    required: bool = False
    keys: tuple[PublicKey, ...] = ()
    allow_older: bool = False
    other_board: bool = False


@dataclass(frozen=True)
class SignatureAdmission:
    """The keys that a board accepts (empty: no signature is required), and the fingerprint of the
    one that signed this bundle. `to_pin` is pinned once the bundle is current. `rules` are the
    board's, with the exceptions that the user made and `notes` name.
    """

    keys: tuple[PublicKey, ...] = ()
    signed_by: str | None = None
    to_pin: tuple[PublicKey, ...] = ()
    rules: BoardRules = field(default_factory=BoardRules)
    lowered: bool = False
    notes: tuple[str, ...] = ()


def admit(bundle: Bundle, slots: Slots, policy: SignaturePolicy) -> SignatureAdmission:
    """Decide on this machine, before anything is sent.

    Raises IntegrityError when no accepted key signed the bundle, when several did and none is
    known, or when the board's rules refuse the release; UsageError when a key is asked for that the
    board does not accept.
    """
    from boardfit.edge.trust.bundle_signature import accepting_key, only_signer

    pinned = board_trust.pinned_keys(slots.files)
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
    revoked = board_trust.revoked_keys(slots.files)
    signer = accepting_key(bundle.texts[MANIFEST], bundle.signature, keys, who, revoked)
    rules, lowered, notes = admit_release(bundle.subject, slots, bool(pinned), policy)
    return SignatureAdmission(
        keys, signer.fingerprint, () if pinned else keys, rules, lowered, tuple(notes)
    )


def admit_release(
    subject: Subject, slots: Slots, is_pinned: bool, policy: SignaturePolicy
) -> tuple[BoardRules, bool, list[str]]:
    """The board's rules with the exceptions of `policy`, whether the floor is lowered, and notes.
    Raises IntegrityError when the rules refuse the release.
    """
    who, notes = slots.files.root, list[str]()
    rules = board_trust.board_rules(slots.files)
    rules.with_accepted(subject, ())  # raises now if it could not be recorded later
    if policy.other_board and rules.devices and subject.device not in rules.devices:
        rules = rules.with_device(subject.device)
        notes.append(f"from now on the board also accepts bundles for {subject.device}")
    current = slots.current()
    if current == subject.id:  # a repair
        rules.refuse(subject, who, allow_older=True)
        return rules, False, notes
    floor = rules.floor(subject.name)
    if is_pinned:
        floor = effective_floor(floor, subject.name, slots, current)
    if subject.release.number >= floor.number:
        rules.refuse(subject, who)
        return rules, False, notes
    if not policy.allow_older:
        raise older_error(subject, floor, who)
    rules.refuse(subject, who, allow_older=True)
    notes.append(
        f"the lowest release of {printable(subject.name, 60)} that the board accepts was "
        f"{floor.number} and is {subject.release.number} now (--allow-older)"
    )
    return rules, True, notes


def effective_floor(floor: Floor, name: str, slots: Slots, current: str | None) -> Floor:
    """The recorded floor, or the current release of that name where it is higher: keys may have
    been pinned after it was flashed.
    """
    try:
        subject = slots.bundle(current).subject if current else None
    except EdgeError:
        return floor  # damaged; a flash repairs it
    # A rollback keeps the floor.
    if subject is not None and subject.name == name and subject.id not in floor.kept:
        return replace(floor, number=max(floor.number, subject.release.number))
    return floor


def relax_rules(slots: Slots, bundle: Bundle, admission: SignatureAdmission) -> None:
    """Write the exceptions that the user made, before the board itself judges the release."""
    if not admission.notes:
        return
    rules = admission.rules
    if admission.lowered:
        kept = rules.floor(bundle.name).kept
        rules = rules.with_accepted(bundle.subject, (*kept, *accepted_before(slots)), lower=True)
    board_trust.write_rules(slots.files, rules)


def accepted_rules(slots: Slots, bundle: Bundle, admission: SignatureAdmission) -> BoardRules:
    """The board's rules after it has accepted the release. The first device is recorded."""
    rules, subject = admission.rules, bundle.subject
    if not rules.devices and subject.device != THIS_MACHINE:
        rules = rules.with_device(subject.device)
    return rules.with_accepted(subject, accepted_before(slots), lower=admission.lowered)


def accepted_before(slots: Slots) -> list[str]:
    """The releases that were current once and are still there: a rollback may lead to them."""
    present = set(slots.present())
    return [release_id for release_id in slots.state().history if release_id in present]


def check_on_board(
    board: Board, slots: Slots, bundle: Bundle, admission: SignatureAdmission
) -> list[str]:
    """Check the release as it lies on the board; notes for the report.

    This machine reads manifest and signature back. Where the board runs programs, one that was
    there before checks too: the current release's edge, the board's own, or ssh-keygen. Raises
    IntegrityError when one refuses, DeviceError when one gives no answer.
    """
    board_trust.release_signer(board.files, bundle.id, admission.keys)
    if not board.is_running:
        return []
    folder = f"{board.files.root}/{layout.bundle_folder(bundle.id)}"
    for script in checking_scripts(board, slots, bundle, folder, admission):
        done = board.execute(script, timeout_s=_CHECK_S)
        verdict = read_verdict(done, board.place)
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
    """The same question to OpenSSH (8.1 or later, for -Y verify). It looks at the first signature
    of the file only, so that its "no" is not taken for an answer.
    """
    allowed = "".join(f'builder namespaces="{NAMESPACE}" {key.line}\n' for key in admission.keys)
    return read_text_beside(
        __file__, "ssh_keygen.sh", folder=shlex.quote(folder), allowed=shlex.quote(allowed),
        namespace=NAMESPACE, signature=SIGNATURE, manifest=MANIFEST, kind=KIND,
    )  # fmt: skip


def read_verdict(done: Done, place: str) -> str | None:
    """Return "" if it is accepted, the reason if it is refused, None if the script failed. Raises
    DeviceError for an exit code and an answer that contradict each other.
    """
    record = done.last_record()
    is_accepted = record.get("kind") == KIND and record.get("ok") is True
    is_refused = record.get("error") == "IntegrityError"
    if is_accepted and done.rc == 0:
        return ""
    if is_refused and done.rc == IntegrityError.exit_code:
        return printable(str(record.get("message")), 500)
    if is_accepted or is_refused or done.rc == 0:
        raise DeviceError(
            f"{place} was asked whether it accepts the signature, left with {done.rc} and answered "
            f"{printable(done.text.strip().rpartition(chr(10))[2], 80)!r}",
            next_step="check that its login prints nothing of its own: `ssh … true` must be silent",
        )
    return None


def explain_refusal(
    slots: Slots, release_id: str | None, keys: tuple[PublicKey, ...]
) -> str | None:
    """Why a board with these keys pinned could not start a release; None when it could."""
    if release_id is None:
        return None
    try:
        board_trust.release_signer(slots.files, release_id, keys)
    except EdgeError as error:
        return str(error)
    return None
