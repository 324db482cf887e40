"""Find the Python, ABI and platform of a board's wheels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import UsageError

_OLDEST_PYTHON = (3, 10)
# What the engine's wheel asks for, see boardfit.converters.board.engine.symbols; nothing older is
# tried.
_OLDEST_GLIBC = (2, 34)


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
