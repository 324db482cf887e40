"""`edge key`: make signing keys, and pin the keys that a board accepts."""

import getpass
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.profile import ProfileError
from boardfit.edge.bundle.bundle import MANIFEST, parse_manifest, read_texts
from boardfit.edge.disk.opened_file import OpenedFolder
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UsageError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.connect import connect, ssh_config_option, wait_option
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.flash.trust import KIND, explain_refusal
from boardfit.edge.slots import trust
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.options import add_options
from boardfit.edge.terminal.output import echo, shell_line
from boardfit.edge.trust.board_rules import BOARD_RULES, BoardRules
from boardfit.edge.trust.bundle_signature import SIGNATURE, accepting_key
from boardfit.edge.trust.pins import check_pins, check_rules, key_files
from boardfit.edge.trust.pins import revoked_keys as find_revoked
from boardfit.edge.trust.signing import PASSPHRASE_VARIABLE, default_key_path, public_keys
from boardfit.edge.trust.ssh_formats import PublicKey
from boardfit.edge.units import printable

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
change_options = add_options(
    click.option(
        "--force", is_flag=True, help="Proceed even if the board then refuses its current release."
    ),
    ssh_config_option,
    wait_option,
    json_option,
)


@click.group()
def key() -> None:
    """Manage keys: sign bundles, and restrict boards to signed bundles."""


@key.command("new")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="File for the private key."
)
@click.option(
    "--passphrase", is_flag=True, help="Ask for a passphrase and encrypt the file with it."
)
@click.option("--name", help="Name in the public key. [default: user@host]")
@json_option
def new_command(out: Path | None, passphrase: bool, name: str | None, as_json: bool) -> None:
    """Create an Ed25519 key pair: FILE and FILE.pub.

    Only you can read FILE, the private key. Give FILE.pub to others.
    """
    from boardfit.edge.trust.signing import new_key

    path = out or default_key_path()
    secret = None
    if passphrase:
        secret = os.environ.get(PASSPHRASE_VARIABLE) or click.prompt(
            "Passphrase", hide_input=True, confirmation_prompt=True, err=True
        )
    comment = "-".join(printable(name or f"{getpass.getuser()}@{platform.node()}").split())
    made = new_key(path, secret, comment)
    if as_json:
        echo(json.dumps({"private": str(path), "public": f"{path}.pub", **record(made)}))
        return
    echo(f"{path}  private: it signs; keep a copy where only you get at it")
    echo(f"{path}.pub  public: boards accept what it belongs to")
    echo(f"  {made.line}\n  {made.fingerprint}")
    echo(
        f"  next: {shell_line('edge', 'bundle', 'sign', 'BUNDLE', path)}, "
        f"{shell_line('edge', 'flash', '…', f'--require-signature={path}.pub')}"
    )


@key.command("show")
@click.argument("file", required=False)
@json_option
def show_command(file: str | None, as_json: bool) -> None:
    """Show the public line and fingerprint of a key FILE (private, .pub or trusted_keys)."""
    for found in public_keys(file or str(default_key_path())):
        echo(json.dumps(record(found)) if as_json else f"{found.line}\n  {found.fingerprint}")


@key.command("list")
@click.argument("target")
@ssh_config_option
@json_option
def list_command(target: str, ssh_config: Path | None, as_json: bool) -> None:
    """List the keys whose bundles the board at TARGET accepts, and what else it demands."""
    with closing(connect(parse_flash_target(target), ssh_config=ssh_config)) as board:
        show_pinned(board, [], as_json)


@key.command("pin")
@click.argument("target")
@click.argument("key_file", metavar="KEY")
@click.option("--replace", is_flag=True, help="Replace the pinned keys with these.")
@click.option("--device", help="Record which board this is; it then accepts bundles for it only.")
@change_options
def pin_command(
    target: str, key_file: str, replace: bool, device: str | None, force: bool,
    ssh_config: Path | None, wait_s: float, as_json: bool,
) -> None:  # fmt: skip
    """Make the board at TARGET accept bundles signed by KEY (a .pub file or its line).

    After the first pinned key, the board refuses unsigned bundles. More keys can be added. To
    change keys, pin the new key, flash a bundle signed with it, and unpin the old key.
    """
    wanted = public_keys(key_file)
    with changing(target, ssh_config, wait_s, as_json) as (board, slots, notes):
        if gone := [each for each in wanted if each in trust.revoked_keys(board.files)]:
            raise UsageError(
                f"{gone[0]} is revoked on {board.place}",
                next_step="pin another key; to take a revocation back: edge key revoke --undo",
            )
        kept = () if replace else trust.pinned_keys(board.files)
        notes += change_pins(slots, tuple(dict.fromkeys((*kept, *wanted))), force)
        if device is not None:
            record_device(board, device)


@key.command("unpin")
@click.argument("target")
@click.argument("key_text", metavar="[KEY]", required=False)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Unpin every key; the board then accepts any bundle, signed or not.",
)
@change_options
def unpin_command(
    target: str, key_text: str | None, everything: bool, force: bool, ssh_config: Path | None,
    wait_s: float, as_json: bool,
) -> None:  # fmt: skip
    """Stop accepting bundles signed by KEY (fingerprint, .pub file or line) at TARGET."""
    if everything == (key_text is not None):
        raise UsageError("name one KEY, or --all", next_step=f"edge key list {target}")
    with changing(target, ssh_config, wait_s, as_json) as (board, slots, notes):
        if everything:
            # The way out of a key file that cannot be read, too.
            trust.pin_keys(board.files, ())
            notes += ["any bundle is accepted there now, signed or not"]
        else:
            assert key_text is not None
            pinned = trust.pinned_keys(board.files)
            gone = find_keys(key_text, pinned, board.place)
            keys = tuple(pinned_key for pinned_key in pinned if pinned_key not in gone)
            if not keys:
                raise last_key_error(board.place, target, ", or edge key unpin --all")
            notes += change_pins(slots, keys, force)


@key.command("revoke")
@click.argument("target")
@click.argument("key_text", metavar="KEY")
@click.option("--undo", is_flag=True, help="Take the revocation of KEY back.")
@change_options
def revoke_command(
    target: str, key_text: str, undo: bool, force: bool, ssh_config: Path | None,
    wait_s: float, as_json: bool,
) -> None:  # fmt: skip
    """Make signatures by KEY (fingerprint, .pub file or line) worthless at TARGET, for good.

    KEY is unpinned there. It cannot be pinned again, and no other list of keys makes it valid.
    Revoke a key that was lost or copied. A key that is merely old can be unpinned.
    """
    with changing(target, ssh_config, wait_s, as_json) as (board, slots, notes):
        revoked, pinned = (trust.revoked_keys(board.files), trust.pinned_keys(board.files))
        try:
            wanted = list(public_keys(key_text))  # perhaps never pinned there
        except EdgeError:
            wanted = find_keys(key_text, (*revoked, *pinned), board.place)
        if undo:
            trust.revoke_keys(board.files, [each for each in revoked if each not in wanted])
        else:
            notes += change_revoked(slots, target, revoked, wanted, force)


@key.command("check")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Accept this key too.")
@json_option
def check_command(bundle: Path, keys: Sequence[str], as_json: bool) -> None:
    """Check whether this machine accepts BUNDLE: its signer and the pinned keys.

    `edge flash` runs this command on the board. It checks the signature and the board's rules, but
    no hashes.
    """
    texts = read_texts(OpenedFolder(bundle))
    manifest, signature = texts[MANIFEST], texts.get(SIGNATURE)
    accepted = check_pins(bundle, manifest, signature)
    if keys:
        wanted = [found for text in keys for found in public_keys(text)]
        revoked = find_revoked(bundle)
        accepted.append(accepting_key(manifest, signature, wanted, "--key", revoked))
    if accepted:
        check_rules(bundle, parse_manifest(manifest, bundle).subject)
    if not accepted:
        raise InputError(
            "no keys are pinned on this machine for this bundle, and none were given",
            next_step="edge key pin TARGET KEY.pub, or --key KEY.pub",
        )
    if as_json:
        places = [str(path) for path in key_files(bundle)]
        signed_by = [found.fingerprint for found in accepted]
        echo(json.dumps({"kind": KIND, "ok": True, "signed_by": signed_by, "key_files": places}))
    else:
        echo(f"{bundle}: accepted, signed by {', '.join(map(str, dict.fromkeys(accepted)))}")


@contextmanager
def changing(
    target: str, ssh_config: Path | None, wait_s: float, as_json: bool
) -> Iterator[tuple[Board, Slots, list[str]]]:
    """Hold the board's lock while its keys are changed. Then print what it accepts, with notes."""
    with closing(connect(parse_flash_target(target), ssh_config=ssh_config)) as board:
        slots, notes = Slots(board.files), list[str]()
        with slots.hold_lock(wait_s):
            yield board, slots, notes
            show_pinned(board, notes, as_json)


def change_pins(slots: Slots, keys: tuple[PublicKey, ...], force: bool) -> list[str]:
    """Pin exactly these keys; notes for the user. Raises UsageError when the board could not start
    its current release any more.
    """
    why = explain_refusal(slots, slots.current(), keys)
    if why and not force:
        raise UsageError(
            f"with only these keys the board would not start what it has: {why}",
            next_step="flash a bundle signed by one of them with edge flash … --require-signature, "
            "or --force",
        )
    trust.pin_keys(slots.files, keys)
    notes = [f"the current release will not start: {why}"] if why else []
    if explain_refusal(slots, slots.previous(), keys):
        notes.append("the previous release is signed by none of these keys: no rollback to it")
    return notes


def change_revoked(
    slots: Slots, target: str, revoked: Sequence[PublicKey], wanted: Sequence[PublicKey],
    force: bool,
) -> list[str]:  # fmt: skip
    """Revoke and unpin these keys; notes for the user. Raises UsageError for the last pinned key,
    and as `change_pins`.
    """
    pinned = trust.pinned_keys(slots.files)
    keys = tuple(each for each in pinned if each not in wanted)
    if pinned and not keys:
        raise last_key_error(slots.files.root, target)
    notes = change_pins(slots, keys, force) if keys != pinned else []
    trust.revoke_keys(slots.files, tuple(dict.fromkeys((*revoked, *wanted))))
    return notes


def last_key_error(place: str, target: str, otherwise: str = "") -> UsageError:
    return UsageError(
        f"that is the last key pinned on {place}: without it any bundle would be accepted",
        next_step=f"edge key pin {target} NEW.pub first{otherwise}",
    )


def record_device(board: Board, device: str) -> None:
    """Record which board this is, in place of what was recorded. A damaged file is replaced."""
    try:
        device = find_profile(device).id
    except ProfileError as error:
        raise InputError(str(error), next_step="edge devices list") from None
    try:
        rules = trust.board_rules(board.files)
    except IntegrityError:
        rules = BoardRules()
        board.files.remove([BOARD_RULES])
    trust.write_rules(board.files, replace(rules, devices=(device,)))


def find_keys(text: str, pinned: Sequence[PublicKey], place: str) -> list[PublicKey]:
    """The pinned keys that the user means. Raises InputError when there is none."""
    found = [key for key in pinned if key.fingerprint == text]
    if not found:
        try:
            wanted = public_keys(text)
        except EdgeError:
            wanted = ()
        found = [key for key in pinned if key in wanted]
    if not found:
        have = ", ".join(map(str, pinned)) or "none"
        raise InputError(f"{text!r:.100} is not pinned on {place}; pinned: {have}")
    return found


def record(found: PublicKey) -> dict[str, str]:
    return {"fingerprint": found.fingerprint, "line": found.line, "name": found.comment}


def show_pinned(board: Board, notes: Sequence[str], as_json: bool) -> None:
    """Print what a board demands of a bundle. Raises IntegrityError for a file of no use."""
    place, files = board.place, board.files
    keys, revoked, rules = (
        trust.pinned_keys(files),
        trust.revoked_keys(files),
        trust.board_rules(files),
    )
    if as_json:
        document = {
            "target": place,
            "pinned": [record(found) for found in keys],
            "revoked": [record(found) for found in revoked],
            "devices": list(rules.devices),
            "floors": {name: floor.number for name, floor in rules.floors.items()},
            "notes": list(notes),
        }
        echo(json.dumps(document))
        return
    for found in keys:
        echo(found)
    for found in revoked:
        echo(f"{found}  revoked")
    if keys:
        for device in rules.devices:
            echo(f"accepts bundles for {printable(device, 60)}")
        for name, floor in rules.floors.items():
            echo(f"accepts {printable(name, 60)} from release {floor.number} on")
    echo(
        f"{place}: accepts only bundles signed by {'this key' if len(keys) == 1 else 'these keys'}"
        if keys
        else f"{place}: no keys are pinned; any bundle is accepted",
        err=True,
    )
    for note in notes:
        echo(f"  note: {note}", err=True)
