"""`edge flash` and `edge rollback`."""

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.errors import UsageError
from boardfit.edge.flash.checks import check_board
from boardfit.edge.flash.connect import connect, ssh_config_option, wait_option
from boardfit.edge.flash.flash import FlashOptions, FlashReport, flash
from boardfit.edge.flash.gate import rehearse
from boardfit.edge.flash.media.options import MediaOptions, media_options
from boardfit.edge.flash.target import MEDIA, SHAPES, parse_flash_target
from boardfit.edge.flash.trust import SignaturePolicy
from boardfit.edge.slots.health import MAX_MEMORY, MIN_SPEED
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.option_groups import GroupedCommand
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import ProgressLine, TerminalReporter
from boardfit.edge.trust.ssh_formats import ALGORITHM
from boardfit.edge.units import format_bytes, format_seconds, printable


@click.command(
    "flash", cls=GroupedCommand, short_help="Put a bundle on a board, image, card or folder."
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("target", required=False)
@click.option(
    "--inventory", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Flash every board in this TOML file instead of one TARGET.",
)  # fmt: skip
@click.option(
    "--force", is_flag=True,
    help="Flash a board other than the planned one, or a disk that is not removable.",
)  # fmt: skip
@click.option("--no-rehearse", is_flag=True, help="Skip the trial under emulation.")
@click.option(
    "--no-gate", is_flag=True, help="Verify hashes only; do not load the model on the board."
)
@click.option(
    "--min-speed", type=click.FloatRange(0, 1), default=MIN_SPEED, show_default=True,
    help="Minimum share of the planned tokens/s that the health gate accepts.",
)  # fmt: skip
@click.option(
    "--max-memory", type=click.FloatRange(0), default=MAX_MEMORY, show_default=True,
    help="Maximum share of the planned memory that the health gate accepts. 0: no limit.",
)  # fmt: skip
@click.option(
    "--serve", "serve_port", is_flag=False, flag_value=8080, type=click.IntRange(1, 65535),
    metavar="[PORT]", help="Serve the release over HTTP, as a service of systemd. [port: 8080]",
)  # fmt: skip
@click.option(
    "--drop-previous", is_flag=True,
    help="Delete the release to roll back to, if space needs it.",
)  # fmt: skip
@click.option(
    "--require-signature", is_flag=False, flag_value="", metavar="[KEY]",
    help="Require a signature by KEY and pin it. Without KEY, pin the signer of the board's first"
         " bundle.",
)  # fmt: skip
@click.option(
    "--allow-older", is_flag=True,
    help="Accept a signed release that is older than one that the board has accepted.",
)  # fmt: skip
@click.option(
    "--via", type=click.Choice(["auto", "rsync", "stream"]), default="auto",
    help="Method to send files over ssh. [default: rsync where it saves bytes, else a stream]",
)  # fmt: skip
@ssh_config_option
@wait_option
@media_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def flash_command(
    bundle: Path, target: str | None, inventory: Path | None, force: bool, no_rehearse: bool,
    no_gate: bool, min_speed: float, max_memory: float, serve_port: int | None,
    drop_previous: bool, require_signature: str | None, allow_older: bool, wait_s: float,
    via: str, ssh_config: Path | None, media: MediaOptions, as_json: bool,
) -> None:  # fmt: skip
    """Put BUNDLE on the board at TARGET and make it current.

    TARGET: dir:/path (a mounted card), ssh://user@host[:port]/path, adb://serial/path,
    image:file.img[.xz][#partition] (an operating system's image), card:/dev/sdX.

    The board receives the new release beside the old one, verifies it and tries it. Only then does
    it become current. The board always keeps a complete release. An interrupted flash resumes.
    `edge rollback TARGET` restores the previous release.
    """
    if (target is None) == (inventory is None):
        raise UsageError(f"give one TARGET ({SHAPES}) or --inventory FILE")
    options = FlashOptions(
        wait_s=wait_s,
        gate=not no_gate,
        min_speed=min_speed,
        max_memory=max_memory,
        drop_previous=drop_previous,
        serve_port=serve_port,
        signature=replace(
            signature_policy(require_signature), allow_older=allow_older, other_board=force
        ),
    )
    place = None if target is None else parse_flash_target(target)
    media.check(place.scheme if place else "many boards")
    with closing(ProgressLine("verifying the bundle")) as bar:
        opened = open_bundle(bundle, progress=bar)
    reporter = TerminalReporter(quiet=as_json, is_timed=False, in_bytes=True)
    rehearsed = None if no_rehearse else rehearse(opened, reporter)
    if inventory is not None:
        from boardfit.edge.flash.fleet import flash_fleet

        flags = {
            "--force": force, "--no-gate": no_gate, "--drop-previous": drop_previous,
            "--allow-older": allow_older,
        }  # fmt: skip
        passed = [
            *(name for name, is_on in flags.items() if is_on),
            *([f"--serve={serve_port}"] if serve_port else []),
            *(["--ssh-config", str(ssh_config.absolute())] if ssh_config else []),
            *signature_option(require_signature),
            *("--min-speed", str(min_speed), "--max-memory", str(max_memory)),
            *("--wait", str(wait_s), "--via", via),
        ]
        flash_fleet(opened, inventory, passed, as_json=as_json)
        return
    assert place is not None
    if place.scheme in MEDIA:
        if serve_port is not None:
            raise UsageError(
                f"--serve starts a service on a running board, and {place.scheme}: is none",
                next_step="flash it over ssh://, or install what edge serve BUNDLE --unit prints",
            )
        from boardfit.edge.flash.media.card import flash_media

        with reporter:
            report = flash_media(opened, place, options, media, reporter, force=force)
        notes = []
    else:
        board = connect(place, ssh_config=ssh_config, via=via)
        with closing(board), reporter:
            notes = check_board(board, opened, force=force)
            report = flash(opened, board, options, reporter)
    report.notes[:0] = [*notes, *([rehearsed] if rehearsed else [])]
    if as_json:
        echo(json.dumps(report.to_dict()))
        return
    for line in describe(report):
        echo(line)


def signature_policy(asked: str | None) -> SignaturePolicy:
    """What `--require-signature [KEY]` asks for. Raises UsageError when it swallowed the BUNDLE."""
    if asked is None or not asked:
        return SignaturePolicy(required=asked is not None)
    if Path(asked).is_dir():
        raise UsageError(
            f"--require-signature takes a key, and {asked} is a folder",
            next_step="put it at the end of the line, or write --require-signature=KEY.pub",
        )
    from boardfit.edge.trust.signing import public_keys

    return SignaturePolicy(required=True, keys=public_keys(asked))


def signature_option(asked: str | None) -> list[str]:
    """`--require-signature` for a child, which has another current folder."""
    if asked is None:
        return []
    is_path = asked and not asked.startswith(f"{ALGORITHM} ")
    return [f"--require-signature={os.path.abspath(asked) if is_path else asked}"]


def describe(report: FlashReport) -> list[str]:
    """A flash in a few lines for a person."""
    what = "is current" if report.switched else "was current already"
    rate = report.n_sent / report.send_s if report.send_s > 0 else 0
    lines = [
        f"{report.target}: {printable(report.name)} ({report.bundle[:12]}) {what}",
        f"  sent     {format_bytes(report.n_sent)} in {format_seconds(report.send_s)} "
        f"({format_bytes(int(rate))}/s), {format_bytes(report.n_reused)} were there",
    ]
    if health := report.health:
        speed = "–" if health.decode_tps is None else f"{health.decode_tps:.1f} tokens/s"
        lines.append(
            f"  health   {speed}, {format_bytes(health.peak_rss_bytes)}, answers "
            f"“{printable(health.text.strip(), 60)}”"
        )
    if report.signed_by:
        pinned = "; the board accepts nothing else from now on" if report.pinned else ""
        lines.append(f"  signed   {report.signed_by}{pinned}")
    if served := report.served:
        lines.append(f"  served   on port {served.port}; token {served.token}")
    if report.previous and report.switched:
        lines.append(f"  before   {report.previous[:12]}; edge rollback TARGET goes back to it")
    return lines + [f"  note     {note}" for note in report.notes]


@click.command("rollback", short_help="Restore the previous release of a board.")
@click.argument("target")
@click.option("--to", metavar="ID", help="Roll back to this release (the beginning of its id).")
@ssh_config_option
@wait_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rollback_command(
    target: str, to: str | None, wait_s: float, ssh_config: Path | None, as_json: bool
) -> None:
    """Verify the previous release on the board at TARGET and make it current again."""
    with closing(connect(parse_flash_target(target), ssh_config=ssh_config)) as board:
        slots = Slots(board.files)
        with slots.hold_lock(wait_s):
            before, after = slots.rollback(to)
    if as_json:
        echo(json.dumps({"target": board.place, "before": before, "current": after}))
        return
    echo(f"{board.place}: {after[:12]} is current again")
    if before is not None and before != after:
        echo(f"  before   {before[:12]}; edge rollback TARGET --to {before[:12]} undoes this")
