"""Make and cache a virtual environment for each tool that needs its own versions.

litert-torch, transformers and the ONNX builder each want other versions of the same packages, and
all want torch, which a host that only makes GGUF never installs. `environments.toml` pins what is
known to work together. `tool_python` returns the interpreter of such an environment and makes it on
first use, in the cache folder (BOARDFIT_CACHE, or boardfit under the user's cache):

    <cache>/environments/<name>-<hash of the pins, Python version, machine>/bin/python

An environment of one's own is named by BOARDFIT_LITERT_PYTHON, BOARDFIT_ONNX_PYTHON or
BOARDFIT_UPSTREAM_PYTHON.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import DoesNotFitError, EngineMissingError, UsageError
from boardfit.edge.process.child import decode_output, python_argv, run_child
from boardfit.edge.terminal.progress import Say
from boardfit.edge.units import format_bytes, printable

ToolName = Literal["litert", "onnx", "upstream"]

#: An index with CPU-only wheels of torch; without it the user's own pip configuration decides.
TORCH_INDEX = "BOARDFIT_TORCH_INDEX"
_TAIL_LINES = 12


@dataclass(frozen=True)
class Environment:
    """One section of `environments.toml`: what is installed, in which order, how big it gets."""

    name: str
    about: str
    override: str
    first: tuple[str, ...]
    packages: tuple[str, ...]
    disk_bytes: int

    @property
    def key(self) -> str:
        """Changes with the pins, the Python version and the kind of machine."""
        system = sys.version_info[:2], platform.machine(), sys.platform
        identity = [self.first, self.packages, *system]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def load_environments() -> dict[str, Environment]:
    sections = load_toml("boardfit.converters.formats.tools", "environments.toml")
    return {
        name: Environment(
            name, **{**row, "first": tuple(row["first"]), "packages": tuple(row["packages"])}
        )
        for name, row in sections.items()
    }


def tool_python(name: ToolName, *, say: Say | None = None) -> Path:
    """The Python interpreter of the pinned environment `name`, which is made if it is not there.

    `say` is called with one line per step. Raises UsageError when the override names no program,
    DoesNotFitError when the disk is too small, EngineMissingError when the packages cannot be
    installed (no network, no wheel for this machine).
    """
    environment = load_environments()[name]
    if own := os.environ.get(environment.override):
        return _check_override(Path(own).expanduser(), environment)
    home = cache_directory() / "environments"
    directory = home / f"{name}-{environment.key}"
    if not _find_python(directory).exists():
        say = say or (lambda text: None)
        home.mkdir(parents=True, exist_ok=True)
        with one_maker(home / f".{directory.name}.lock", say):
            if not _find_python(directory).exists():
                _make(environment, directory, say)
    return _find_python(directory)


def _find_python(directory: Path) -> Path:
    return directory / "bin/python"


def _check_override(python: Path, environment: Environment) -> Path:
    if not os.access(python, os.X_OK) or python.is_dir():
        raise UsageError(
            f"{environment.override} is {printable(str(python))!r}, which is not a program",
            next_step="name the python of an environment with "
            f"{' '.join(environment.packages[:2])}, or unset it and boardfit makes one",
        )
    # Not resolved: a virtual environment's python is a link, and the link is what makes it one.
    return python.absolute()


def _make(environment: Environment, directory: Path, say: Say) -> None:
    """Make the environment beside its place and rename it in: it is whole or absent."""
    check_disk(
        f"the {environment.name} environment",
        environment.disk_bytes,
        directory.parent,
        next_step="make room, or set BOARDFIT_CACHE to a directory on a larger disk",
    )
    say(
        f"making the {environment.name} environment, once: {environment.about} "
        f"(about {format_bytes(environment.disk_bytes)} in {directory.parent})"
    )
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    started = time.monotonic()
    try:
        _run("venv", [str(partial)], environment)
        for packages, index in ((environment.first, os.environ.get(TORCH_INDEX)),
                                (environment.packages, None)):  # fmt: skip
            if not packages:
                continue
            say(f"installing {' '.join(packages)}")
            arguments = ["install", "--disable-pip-version-check", "-q", *packages]
            if index:
                arguments += ["--index-url", index]
            _run("pip", arguments, environment, _find_python(partial))
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    fsync_directory(directory.parent)
    say(f"the {environment.name} environment is ready ({time.monotonic() - started:.0f} s)")


def _run(
    module: str, arguments: Sequence[str], environment: Environment, python: Path | None = None
) -> None:
    done = run_child(python_argv(module, *arguments, python=python))
    if done.returncode:
        lines = decode_output(done.stdout + done.stderr).strip().splitlines()[-_TAIL_LINES:]
        raise EngineMissingError(
            f"cannot make the {environment.name} environment: {module} {arguments[0]} failed "
            f"({done.returncode})\n" + "\n".join("  " + printable(line) for line in lines),
            next_step="go online once and repeat, or make an environment elsewhere with "
            f"{' '.join((*environment.first, *environment.packages))} and set "
            f"{environment.override} to its python",
        )


@contextlib.contextmanager
def one_maker(lock: Path, say: Say) -> Iterator[None]:
    """Wait until no other process makes the same thing."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting: another boardfit process is making the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_memory(what: str, needed: int, free: int, *, next_step: str) -> None:
    """Raise DoesNotFitError, with the shortfall, when `what` takes more bytes than are free."""
    if needed > free:
        raise DoesNotFitError(
            f"{what} takes about {format_bytes(needed)} of memory, {format_bytes(free)} are free",
            shortfall_bytes=needed - free,
            next_step=next_step,
        )


def check_disk(what: str, needed: int, folder: Path, *, next_step: str) -> None:
    """The same for the disk that `folder` is on."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DoesNotFitError(
            f"{what} takes about {format_bytes(needed)}, {folder} has {format_bytes(free)} free",
            shortfall_bytes=needed - free,
            next_step=next_step,
        )
