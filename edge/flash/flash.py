"""Put one bundle on one board: send, verify, try, switch; on failure leave everything unchanged.

The order makes a power cut harmless. A release becomes visible under its name when every byte of it
was read back and flushed. It is tried where it lies. Only then `current` is switched, by one
rename.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import DeviceError, EdgeError, EngineError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.gate import GateVerdict, engine_bytes, install_engine, try_release
from boardfit.edge.flash.serving import ServedAt, check_can_serve, serve_release
from boardfit.edge.flash.transfer import (
    bring,
    bring_signature,
    list_folders,
    plan_transfer,
    wanted_files,
)
from boardfit.edge.flash.trust import (
    SignatureAdmission,
    SignaturePolicy,
    accepted_rules,
    admit,
    check_on_board,
    relax_rules,
)
from boardfit.edge.slots import layout
from boardfit.edge.slots.health import MAX_MEMORY, MIN_SPEED, Health
from boardfit.edge.slots.store import Slots
from boardfit.edge.slots.trust import pin_keys, write_rules
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.units import MIB, format_bytes

#: Directories, journals, the state file.
SLACK_BYTES = 4 * MIB
SCHEMA = 1


@dataclass(frozen=True)
class FlashOptions:
    """`min_speed` and `max_memory` are shares of what was planned, 0 to accept anything. Without
    `gate` hashes are verified and nothing is loaded.
    """

    wait_s: float = 0
    gate: bool = True
    min_speed: float = MIN_SPEED
    max_memory: float = MAX_MEMORY
    drop_previous: bool = False
    serve_port: int | None = None  # serve the release over HTTP
    signature: SignaturePolicy = field(default_factory=SignaturePolicy)


@dataclass
class FlashReport:
    """What a flash did, in bytes and seconds. `health` is None where nothing could be tried.
    `signed_by` and `pinned` are fingerprints: of the key that the board accepted, of those pinned
    now.
    """

    target: str
    bundle: str
    name: str
    previous: str | None = None
    n_bytes: int = 0
    n_sent: int = 0
    n_reused: int = 0
    how: dict[str, str] = field(default_factory=dict)
    send_s: float = 0.0
    total_s: float = 0.0
    switched: bool = False
    health: Health | None = None
    served: ServedAt | None = None
    signed_by: str | None = None
    pinned: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        record = dataclasses.asdict(self)
        record["health"] = self.health.to_dict() if self.health else None
        return {"kind": "boardfit-flash", "schema": SCHEMA, **record}


def flash(bundle: Bundle, board: Board, options: FlashOptions, reporter: Reporter) -> FlashReport:
    """Put an opened and verified bundle on a board and make it current. After an error the release
    that was current still is, and the same call goes on where it stopped.

    Raises UsageError when another flash holds the board, DoesNotFitError, IntegrityError when bytes
    arrive damaged or no accepted key signed the bundle, EngineError when the health gate refuses
    the release, DeviceError when answers make no sense or the connection breaks.
    """
    started_s = time.monotonic()
    slots = Slots(board.files)
    if options.serve_port is not None:
        check_can_serve(board, board.place)
    report = FlashReport(board.place, bundle.id, bundle.name, n_bytes=bundle.n_bytes)
    with slots.hold_lock(options.wait_s):
        admission = admit(bundle, slots, options.signature)
        relax_rules(slots, bundle, admission)
        report.notes += admission.notes
        slots.sweep(keep_incoming=bundle.id)
        report.previous = slots.current()
        transfer(bundle, board, slots, options, reporter, report)
        if admission.keys:
            # Nothing of the bundle has run on the board so far.
            report.notes += check_on_board(board, slots, bundle, admission)
            report.signed_by = admission.signed_by
        slots.note(bundle.id, **list_facts(bundle, admission))
        install_engine(board, bundle, reporter)
        if options.gate:
            reporter.stage("trying it")
            verdict = try_release(board, bundle, options.min_speed, options.max_memory)
            gate(slots, bundle, verdict, report)
        if report.previous != bundle.id:
            reporter.stage("switching")
            slots.activate(bundle.id)
            report.switched = True
            if options.gate:
                confirm(board, slots, bundle, report)
        if options.serve_port is not None:
            report.served = serve_release(
                board, slots, bundle, options.serve_port, report.previous, reporter
            )
        pin(slots, bundle, admission, report)
    report.total_s = time.monotonic() - started_s
    return report


def list_facts(bundle: Bundle, admission: SignatureAdmission) -> dict[str, Any]:
    """What is kept of a release beside it. The clock is the host's: a board without a battery wakes
    up in 1970.
    """
    plan, now = bundle.plan, datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = {"name": bundle.name, "recipe": plan.recipe, "device": plan.device, "flashed_at": now}
    return {**facts, **({"signed_by": admission.signed_by} if admission.signed_by else {})}


def transfer(
    bundle: Bundle,
    board: Board,
    slots: Slots,
    options: FlashOptions,
    reporter: Reporter,
    report: FlashReport,
) -> None:
    """Make `releases/<id>/bundle` whole, sending as little as possible."""
    files, wanted = slots.files, wanted_files(bundle)
    folder = layout.bundle_folder(bundle.id)
    report.how = dict.fromkeys(wanted, "there")
    present = bundle.id in slots.present()
    if present:
        reporter.stage("verifying the files on the board")
        wrong = slots.damage(folder, bundle)
        if not wrong:
            bring_signature(board, bundle, folder)
            report.n_reused, report.how = bundle.n_bytes, {}
            report.notes.append("the release was on the board already; nothing was sent")
            return
        files.claim(layout.release_folder(bundle.id))
        wanted = {name: v for name, v in wanted.items() if name in wrong or name == SIGNATURE}
        reporter.say(f"{len(wrong)} damaged files of this release are sent again")
    incoming = layout.incoming_folder(bundle.id)
    for each in (layout.INCOMING, incoming):
        files.claim(each)
    plan = plan_transfer(board, slots, bundle, wanted, f"{incoming}/bundle")
    n_new_bytes = sum(item.n_new_bytes for item in plan)
    need = n_new_bytes + SLACK_BYTES
    if board.is_running:
        need += engine_bytes(bundle)
    slots.make_room(need, (bundle.id,), drop_previous=options.drop_previous, say=reporter.say)
    reporter.stage(f"sending {format_bytes(n_new_bytes)}")
    began_s = time.monotonic()
    sent = bring(board, bundle, plan, f"{incoming}/bundle", reporter)
    report.send_s = time.monotonic() - began_s
    report.n_sent, report.how = sent.n_sent, {**report.how, **sent.how}
    report.n_reused = bundle.n_bytes - sum(n for n, _ in wanted.values()) + sent.n_reused
    files.sync([incoming])
    if present:
        # File by file over the damaged ones: at no moment is it worse than it was.
        files.remove([f"{folder}/{name}" for name in wrong if name not in wanted])
        for made in list_folders(folder, list(wanted)):
            files.make_folder(made)
        for name in wanted:
            files.rename(f"{incoming}/bundle/{name}", f"{folder}/{name}")
    else:
        files.make_folder(layout.RELEASES)
        files.rename(incoming, layout.release_folder(bundle.id))
    files.remove([layout.INCOMING])


def pin(slots: Slots, bundle: Bundle, admission: SignatureAdmission, report: FlashReport) -> None:
    """Pin the requested keys, now that a release signed by one of them is current. Record the
    release.
    """
    if admission.to_pin:
        pin_keys(slots.files, admission.to_pin)
        report.pinned = [key.fingerprint for key in admission.to_pin]
    if admission.keys:
        write_rules(slots.files, accepted_rules(slots, bundle, admission))


def gate(slots: Slots, bundle: Bundle, verdict: GateVerdict, report: FlashReport) -> None:
    """Keep what was measured; raise EngineError when the release must not be used."""
    report.health = verdict.health
    report.notes += verdict.notes
    slots.note(
        bundle.id,
        health=verdict.health.to_dict() if verdict.health else None,
        failures=verdict.failures,
    )
    if verdict.failures:
        current = slots.current()
        kept = "nothing is current on the board yet"
        if current == bundle.id:
            kept = "it was current before this flash and still is; edge rollback goes back"
        elif current:
            kept = f"release {current[:12]} stays current"  # an id keeps its small letters
        raise EngineError(
            f"{report.target}: release {bundle.id[:12]} failed its health gate: "
            + "; ".join(verdict.failures)
            + f". {kept[0].upper()}{kept[1:]}",
            next_step=verdict.next_step,
        )


def confirm(board: Board, slots: Slots, bundle: Bundle, report: FlashReport) -> None:
    """Check the release again through `current`. Switch back if it fails."""
    kind: type[EdgeError] = EngineError
    try:
        current = slots.current()
        verdict = try_release(board, bundle, 0, 0, quick=True)
        failures = verdict.failures if current == bundle.id else ["current names something else"]
    except EdgeError as error:
        failures = [str(error)]
        kind = DeviceError if isinstance(error, DeviceError) else EngineError
    if not failures:
        return
    back = report.previous
    if back is not None:
        slots.switch_back(back)
        report.switched = False
    raise kind(
        f"{report.target}: release {bundle.id[:12]} did not answer after the switch: "
        + "; ".join(failures)
        + (f". Switched back to {back[:12]}" if back else ". There is no earlier release"),
        next_step="edge rehearse BUNDLE shows what happens on such a board",
    )
