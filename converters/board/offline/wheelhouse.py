"""Third-party wheels for a board's Python, fetched once with pip and kept with their hashes.

    <cache>/wheelhouse/<key>/*.whl
    <cache>/wheelhouse/<key>/wheelhouse.json    name, version, licence and sha256 of each

The key stands for what was asked: requirements, Python, ABI, platform tags. What was fetched for it
stays as it is until the folder is removed, so that a second bundle gets the same wheels.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from boardfit.converters.board.engine.store import make_key
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.disk.atomic import fsync_directory, write_atomic
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import EngineMissingError, InputError, IntegrityError, UsageError
from boardfit.edge.process.child import decode_output, python_argv, run_child
from boardfit.edge.requirements import is_true_for, normalize_name
from boardfit.edge.terminal.progress import Say

_OLDEST_PYTHON = (3, 10)
# What the engine's wheel asks for, see boardfit.converters.board.engine.symbols; nothing older is
# tried.
_OLDEST_GLIBC = (2, 34)
_RECORD, _VERSIONS = "wheelhouse.json", "versions.txt"
EMPTY: Mapping[str, str] = {}


@dataclass(frozen=True)
class Wheel:
    """A wheel file and its metadata; `license` as declared there, SPDX where it is."""

    path: Path
    name: str
    version: str
    license: str
    sha256: str


def select_requirements(requirements: Sequence[str], board: BoardPython) -> list[str]:
    """Requirements that hold on the board, without their markers: pip would evaluate those against
    the Python that runs pip. Raises InputError for a marker about anything but `python_version`.
    """
    kept = []
    for text in requirements:
        requirement, _, marker = text.partition(";")
        if marker:
            try:
                if not is_true_for(marker, board.python):
                    continue
            except ValueError:
                raise InputError(f"cannot decide whether {text!r} holds on a board") from None
        kept.append(requirement.strip())
    return sorted(kept)


def fetch_wheels(
    requirements: Sequence[str],
    local: Sequence[Path],
    board: BoardPython,
    say: Say,
    pins: Mapping[str, str] = EMPTY,
) -> list[Wheel]:
    """Fetch the wheels that satisfy `requirements` on the board, from the cache or with pip, sorted
    by name; the files `local` are included. With `pins` only these versions and hashes are fetched.
    Raises EngineMissingError when pip cannot get one, IntegrityError for one that is not pinned.
    """
    own = [hashlib.sha256(path.read_bytes()).hexdigest() for path in local]
    key = make_key([requirements, own, board.python, board.platforms, *sorted(pins.items())])
    folder = cache_directory() / "wheelhouse" / key
    if found := load_wheelhouse(folder):
        return found
    say(f"fetching wheels for Python {board.python[0]}.{board.python[1]} on arm64")
    partial = folder.with_name(f".{key}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arguments = ["download", "-d", str(partial.absolute()), *pip_arguments(board)]
    arguments += [str(path.absolute()) for path in local]
    if pins:
        (partial / _VERSIONS).write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        arguments += ["-c", str((partial / _VERSIONS).absolute())]
    done = run_child(python_argv("pip", *arguments, *requirements))
    if done.returncode:
        output = decode_output(done.stderr)
        lines = [line for line in output.splitlines() if "ERROR" in line] or [output.strip()[-400:]]
        raise EngineMissingError(
            f"pip could not fetch the board's wheels: {lines[-1]}",
            next_step="check the network; bundles are offline only once their wheels are here",
        )
    wheels = [describe(path) for path in sorted(partial.glob("*.whl"))]
    if pins:
        check_pinned([wheel for wheel in wheels if wheel.sha256 not in own], pins)
    record = [{**asdict(wheel), "path": wheel.path.name} for wheel in wheels]
    write_atomic(partial / _RECORD, json.dumps(record, indent=1).encode())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    fsync_directory(folder.parent)
    return load_wheelhouse(folder) or []


def pip_arguments(board: BoardPython) -> list[str]:
    """Options with which pip chooses wheels for the board instead of this machine."""
    arguments = [
        "--quiet", "--disable-pip-version-check", "--no-input",
        "--only-binary=:all:", "--implementation", "cp",
        "--python-version", f"{board.python[0]}.{board.python[1]}",
        "--abi", board.abi, "--abi", "abi3", "--abi", "none",
    ]  # fmt: skip
    for platform in board.platforms:
        arguments += ["--platform", platform]
    return arguments


def load_pins(python: tuple[int, int]) -> dict[str, str]:
    """Requirement (`click==8.5.1`) → sha256 of its wheel; empty for a Python without pins."""
    table = load_toml("boardfit.converters.board.offline", "wheels.toml")
    own = table.get(f"{python[0]}.{python[1]}")
    return {**table["any"], **own} if own else {}


def check_pinned(wheels: Sequence[Wheel], pins: Mapping[str, str]) -> None:
    """Raise IntegrityError unless each wheel is the pinned one."""
    for wheel in wheels:
        pin = f"{normalize_name(wheel.name)}=={wheel.version}"
        if pins.get(pin) != wheel.sha256:
            expected = pins.get(pin) or "no wheel of that name and version"
            raise IntegrityError(
                f"{wheel.path.name} has the sha256 {wheel.sha256}; expected {expected}",
                next_step="use the package index that boardfit's own wheels come from; "
                "scripts/lock_wheels renews the hashes",
            )


def load_wheelhouse(folder: Path) -> list[Wheel] | None:
    """The wheels of a complete wheelhouse whose files are all as they were fetched; else None."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        wheels = [Wheel(**{**entry, "path": folder / entry["path"]}) for entry in record]
        intact = all(hashlib.sha256(w.path.read_bytes()).hexdigest() == w.sha256 for w in wheels)
    except Exception:  # a damaged file is made again
        return None
    return wheels if intact else None


def describe(path: Path) -> Wheel:
    """Name, version and licence from a wheel's own metadata. Raises InputError when it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            text = archive.read(name).decode("utf-8", "replace")
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise InputError(f"{path.name} is not a wheel: {error!r}") from None
    metadata = email.parser.Parser().parsestr(text, headersonly=True)
    classifiers = [c for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    declared = metadata["License-Expression"] or (metadata["License"] or "").splitlines()[:1]
    license = declared if isinstance(declared, str) else "".join(declared)
    if not license and classifiers:
        license = classifiers[0].rpartition(":: ")[2]
    return Wheel(
        path=path,
        name=str(metadata["Name"]),
        version=str(metadata["Version"]),
        license=license[:80] or "see the wheel",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@dataclass(frozen=True)
class BoardPython:
    """CPython `python` (major, minor) on glibc `glibc`, 64-bit Arm."""

    python: tuple[int, int]
    glibc: tuple[int, int]

    @property
    def abi(self) -> str:
        return f"cp{self.python[0]}{self.python[1]}"

    @property
    def platforms(self) -> tuple[str, ...]:
        """Every platform tag that loads there. pip does not take an older tag for a newer system
        when platforms are named, so that all of them have to be.
        """
        newest = self.glibc[1]
        numbered = tuple(f"manylinux_2_{minor}_aarch64" for minor in range(newest, 16, -1))
        return (*numbered, "manylinux2014_aarch64", "linux_aarch64")


def board_python(device: DeviceProfile, python: str | None = None) -> BoardPython:
    """What `device` has, by its profile; `python` ("3.12") overrides the profile's version. Raises
    UsageError where the bundle's Python engine cannot run: another architecture, no glibc or too
    old a one, Python older than 3.10 or unknown.
    """
    if not any("aarch64" in tag for tag in device.software.wheel_tags):
        raise UsageError(
            f"engines for boards are compiled for 64-bit Arm; {device.name} is not",
            next_step="build without --with-engine and install boardfit there with pip",
        )
    libc = re.fullmatch(r"glibc (\d+)\.(\d+)", device.software.libc or "")
    if libc is None:
        raise UsageError(
            f"{device.name} has the C library {device.software.libc or '(unknown)'}, no glibc: "
            "Python wheels cannot load there",
            next_step="phones get static tools instead: edge engine build --tools",
        )
    glibc = int(libc[1]), int(libc[2])
    if glibc < _OLDEST_GLIBC:
        raise UsageError(
            f"{device.software.os} has glibc {glibc[0]}.{glibc[1]}; the engine needs "
            f"{_OLDEST_GLIBC[0]}.{_OLDEST_GLIBC[1]} or later",
            next_step="use a newer image: Debian 12, Ubuntu 22.04 (JetPack 6)",
        )
    text = python or device.software.python or ""
    match = re.fullmatch(r"3\.(\d+)", text)
    if match is None:
        raise UsageError(
            f"which Python does {device.name} have? Got {text!r}, expected a version like 3.11",
            next_step="name it: --python 3.11",
        )
    version = (3, int(match[1]))
    if version < _OLDEST_PYTHON:
        raise UsageError(
            f"{device.name} has Python {text}; boardfit needs 3.10 or later",
            next_step="use a newer image, or name the Python that you put there: --python 3.11",
        )
    return BoardPython(version, glibc)
