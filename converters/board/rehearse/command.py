"""`edge rehearse`."""

import json
from pathlib import Path
from typing import Any

import click

from boardfit.converters.board.rehearse.rehearsal import rehearse
from boardfit.converters.board.rehearse.result import MIN_AGREEMENT, PROMPT, Options, Rehearsal
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import TerminalReporter
from boardfit.edge.units import format_bytes, format_seconds, parse_bytes, printable


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(name="rehearse")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-d", "--device", metavar="BOARD", help="Board id.  [default: the board of the plan]")
@click.option("--prompt", default=PROMPT, show_default=True, help="Question to ask the model.")
@click.option(
    "--tokens", "n_tokens", type=click.IntRange(1, 512), default=16, show_default=True,
    help="Tokens to generate and compare.",
)  # fmt: skip
@click.option(
    "--free", "free_bytes", callback=_bytes, metavar="SIZE",
    help="Memory available on the board.  [default: the profile's]",
)  # fmt: skip
@click.option(
    "--how", type=click.Choice(["binfmt", "proot", "qemu"]),
    help="Method to run arm64 programs.  [default: the first that works]",
)  # fmt: skip
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Unpacked root file system of the board.  [default: Debian's]",
)  # fmt: skip
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), default=MIN_AGREEMENT, show_default=True,
    help="Minimum share of tokens that must equal the choices of this machine.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line on stdout.")
def rehearse_command(
    bundle: Path, device: str | None, root: Path | None, as_json: bool, **options: Any
) -> None:
    """Install and run BUNDLE as its board would: emulated CPU, limited memory.

    BUNDLE must contain its engine (`edge build … --with-engine`). Nothing is sent to a board.
    """
    opened = open_bundle(bundle)
    profile = find_profile(device or opened.plan.device)
    asked = Options(root=root.absolute() if root else None, **options)
    with TerminalReporter(quiet=as_json) as reporter:
        found = rehearse(opened, profile, asked, reporter)
    echo(json.dumps(found.to_dict()) if as_json else format_rehearsal(found))
    if found.error is None:
        return
    if as_json:
        raise click.exceptions.Exit(found.error.exit_code)
    raise found.error


def format_rehearsal(found: Rehearsal) -> str:
    """What a person reads."""
    seconds = ", ".join(f"{name} {format_seconds(s)}" for name, s in found.seconds.items())
    lines = [
        f"{found.device}: {found.cpu.describe(found.board_core)} ({found.how}; emulated: {seconds})"
    ]
    if found.engine:
        kernels = f", kernels {' '.join(found.kernels)}" if found.kernels else ""
        lines.append(f"  engine     {found.engine}{kernels}")
    if found.text is not None:
        lines.append(f"  answer     {printable(found.text, limit=200)}")
    if found.agreement:
        a = found.agreement
        lines.append(
            f"  tokens     {a.equal} of {a.n} the same as here"
            + (f", {a.near} near ties" if a.near else "")
        )
    if found.memory:
        lines.append(
            f"  memory     {format_bytes(found.memory.guest)}, "
            f"{format_bytes(found.memory.guest_anonymous)} of it anonymous; planned "
            f"{format_bytes(found.planned_bytes)}, free on the board "
            f"{format_bytes(found.limit_bytes)} "
            f"({'not enforced' if found.limit_how == 'none' else found.limit_how})\n"
            f"             the emulator's own {format_bytes(found.memory.emulator)} not counted"
        )
    lines += [f"  note       {note}" for note in found.notes]
    lines.append("  ready for the board" if found.ok else "  not ready for the board")
    return "\n".join(lines)
