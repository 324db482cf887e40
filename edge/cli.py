"""The `edge` command: a table of commands, each imported only when it is called.

`edge --help` reads the table alone (`commands.json`). Commands of the host stand in it as well: a
board can name what they need. Errors are printed here only, and become exit codes.
"""

import errno
import importlib.util
import json
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import click

from boardfit.edge.errors import EdgeError, UsageError
from boardfit.edge.process.search_path import safe_search_path
from boardfit.edge.units import did_you_mean, printable


class Command(NamedTuple):
    """A click command, its line in `--help`, and the pip extra that brings what it imports (None:
    the base installation suffices). `on_board` is run where the host's side is not installed.
    """

    target: str  # "module:attribute"
    help: str
    extra: str | None = None
    on_board: str | None = None


#: Every command, in the order of `--help`: the way a model travels, then the tools.
COMMANDS = {
    name: Command(**row)
    for name, row in json.loads(pkgutil.get_data(__package__, "commands.json") or "").items()
}


class TableGroup(click.Group):
    """A click group whose commands come from the table and are imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise UsageError(
                f"there is no command {cmd_name!r}.{did_you_mean(cmd_name, COMMANDS)}",
                next_step=f"commands: {known}",
            )
        return import_command(cmd_name, COMMANDS[cmd_name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def import_command(name: str, entry: Command) -> click.Command:
    """Import one command. Raises EngineMissingError when its extra, or the host's side, lacks."""
    target = entry.target
    if entry.on_board and importlib.util.find_spec("boardfit.converters") is None:
        target = entry.on_board
    module, _, attribute = target.partition(":")
    try:
        command: click.Command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        from boardfit.edge.requirements import explain_missing

        raise explain_missing(error, f"`edge {name}`", entry.extra) from None
    return command


@click.group(
    cls=TableGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: edge devices, edge plan MODEL, edge build MODEL --device BOARD -o OUT.",
)
@click.version_option(package_name="boardfit", prog_name="edge")
def edge() -> None:
    """Build language models for boards: plan, build, flash, chat, measure. Offline."""


@contextmanager
def errors_to_exit_code(as_json: bool) -> Iterator[None]:
    """Print an error as one line (and as JSON for machines) and leave with its exit code."""
    try:
        yield
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(130)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of foreign code is no Exception
        if os.environ.get("BOARDFIT_TRACEBACK"):
            raise
        code, next_step = describe_error(error)
        print_error(type(error).__name__, describe(error), next_step, as_json=as_json)
        sys.exit(code)


def print_error(kind: str, message: str, next_step: str | None, *, as_json: bool) -> None:
    """Print an error and the next step on stderr; with `as_json` on stdout too, for machines."""
    message = printable(message, limit=2000)
    next_step = next_step and printable(next_step, limit=2000)
    if as_json:
        click.echo(json.dumps({"error": kind, "message": message, "next_step": next_step}))
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    if next_step:
        click.echo(f"  next: {next_step}", err=True)


def describe(error: BaseException) -> str:
    """The error in words. The system's own errors get the file first, and no number."""
    if isinstance(error, OSError) and not isinstance(error, EdgeError) and error.strerror:
        is_path = isinstance(error.filename, (str, bytes))
        where = f"{os.fsdecode(error.filename)}: " if is_path else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def describe_error(error: BaseException) -> tuple[int, str | None]:
    from boardfit.device_profiles.profile import ProfileError

    if isinstance(error, EdgeError):
        return error.exit_code, error.next_step
    if isinstance(error, ProfileError):
        return 3, None
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return 4, "free some space on that disk, or choose another, then run it again"
        return 3, _home_advice(error.filename)
    return 1, "this is a bug of boardfit; BOARDFIT_TRACEBACK=1 shows where, please report it"


def _home_advice(filename: object) -> str | None:
    """The next step where the user's home cannot be written, as for a service without one."""
    home = os.path.expanduser("~")
    if not isinstance(filename, str) or not filename.startswith(home):
        return None
    if os.path.isdir(home) and os.access(home, os.W_OK):
        return None
    return (
        f"the home folder {home} cannot be written: set HOME to one that can, or XDG_DATA_HOME, "
        "XDG_STATE_HOME and BOARDFIT_CACHE"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `edge` command. Never returns: exits with 0 or an error's code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ["PATH"] = safe_search_path()  # libraries start programs too
    os.environ["GGML_NO_BACKTRACE"] = "1"  # ggml would start a debugger on this process
    with errors_to_exit_code(as_json="--json" in arguments):
        # Without standalone mode click returns an exit code that a command raised. Click handles a
        # closed reader (`edge … | head`): it exits with 1, silently.
        code = edge.main(args=arguments, prog_name="edge", standalone_mode=False)
    sys.exit(code if isinstance(code, int) else 0)
