"""`edge run --sandbox`: the same command line once more, in a cage.

Pins are checked here, before the cage: inside, the folders above the bundle are not all visible.
"""

import contextlib
import os
import sys
from pathlib import Path

import click

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.engines.model_file import bundle_around, model_file
from boardfit.edge.process.cage import SCRATCH, cage_command, hidden_folders
from boardfit.edge.process.child import OUR_FOLDER, python_argv, run_child, start_child
from boardfit.edge.trust.board_rules import BOARD_RULES
from boardfit.edge.trust.pins import REVOKED_KEYS, VARIABLE, key_files, rule_files

#: Set in the cage, so that the command knows that it is there.
INSIDE = "BOARDFIT_SANDBOX"
_KEPT = ("PATH", "LANG", "LANGUAGE", "TERM", "TZ", "COLUMNS", "LINES", "NO_COLOR")
_STOP_S = 30


def is_inside() -> bool:
    return os.environ.get(INSIDE) == "inside"


def run_in_cage(bundle: Path, words: list[str]) -> int:
    """Run `edge WORDS` in a cage that shows `bundle`; return its exit code. Raises as opening the
    bundle does, EngineMissingError where there is no cage, click.Abort after Ctrl-C.
    """
    env = cage_environment(bundle)
    argv = python_argv("boardfit", *words)
    caged = cage_command(argv, visible_paths(bundle, words), Path.cwd(), env)
    process = start_child(
        caged.argv, stdin=sys.stdin.fileno(), stdout=sys.stdout.fileno(),
        stderr=sys.stderr.fileno(), env=env,
    )  # fmt: skip
    try:
        code = process.wait()
    except BaseException as error:
        process.kill()
        process.wait()
        if caged.stop:  # the service outlives the program that started it
            with contextlib.suppress(OSError):
                run_child(caged.stop, timeout_s=_STOP_S)
        if isinstance(error, KeyboardInterrupt):
            raise click.Abort from None
        raise
    return code if code >= 0 else 128 - code


def visible_paths(bundle: Path, words: list[str]) -> list[Path]:
    """What the cage shows: the model, files named on the command line, key files, and Python."""
    place = bundle
    if bundle.is_dir():
        open_bundle(bundle, verify=False)
    elif around := bundle_around(bundle):
        place = around.path
    elif bundle.exists():
        model_file(bundle)
        if bundle.absolute().parent not in hidden_folders():
            place = bundle.parent  # external data lies beside a model
    named = [Path(word.partition("=")[2] if word.startswith("--") else word) for word in words]
    installed = [*sys.path, sys.prefix, sys.base_prefix, OUR_FOLDER]
    installed.append(os.path.dirname(os.path.realpath(f"{__file__}/../..")))
    found = [
        place,
        bundle,
        *(path for path in named if _is_file(path)),
        *(path for path in key_files(bundle)),
        *(path for name in (REVOKED_KEYS, BOARD_RULES) for path in rule_files(bundle, name)),
        *(Path(folder) for folder in installed if os.path.isabs(folder)),
    ]
    return [path for path in found if path.exists()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a prompt may be no path at all
        return False


def cage_environment(bundle: Path) -> dict[str, str]:
    """The environment inside: no secret of ours, an own cache, and keys if any are pinned."""
    env = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")
    }
    if files := key_files(bundle):
        env[VARIABLE] = os.environ.get(VARIABLE) or str(files[0].absolute())
    scratch = {"HOME": SCRATCH, "TMPDIR": SCRATCH, "BOARDFIT_CACHE": f"{SCRATCH}/cache"}
    return {**env, **scratch, INSIDE: "inside"}
