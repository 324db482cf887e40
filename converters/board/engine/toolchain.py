"""The cross toolchain: what must be installed, which compiler it is, and CMake's view of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.process.child import decode_output, find_program, run_child

PREFIX = "aarch64-linux-gnu"
APT_PACKAGES = ("gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu", "cmake", "ninja-build")


@dataclass(frozen=True)
class Toolchain:
    """A cross toolchain: `<prefix>-gcc`, `-g++`, `-strip`, `-readelf`; and cmake and ninja.

    `version` is the compiler's own first line; it belongs to what a build's bytes depend on.
    """

    prefix: str
    version: str

    def tool(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def cmake_file(self) -> str:
        """The toolchain file: look for programs on the host, for everything else never there."""
        return (
            "set(CMAKE_SYSTEM_NAME Linux)\n"
            "set(CMAKE_SYSTEM_PROCESSOR aarch64)\n"
            f"set(CMAKE_C_COMPILER {self.tool('gcc')})\n"
            f"set(CMAKE_CXX_COMPILER {self.tool('g++')})\n"
            f"set(CMAKE_FIND_ROOT_PATH /usr/{self.prefix})\n"
            "set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)\n"
            "set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)\n"
            "set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)\n"
            "set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)\n"
        )


def find_toolchain() -> Toolchain:
    """The installed cross toolchain; BOARDFIT_CROSS names another prefix than aarch64-linux-gnu.

    Raises EngineMissingError naming what is missing and how to install it.
    """
    prefix = os.environ.get("BOARDFIT_CROSS") or PREFIX
    if os.sep in prefix:
        prefix = os.path.abspath(prefix)
    needed = [f"{prefix}-{name}" for name in ("gcc", "g++", "strip", "readelf")]
    missing = [tool for tool in (*needed, "cmake", "ninja") if not find_program(tool)]
    if missing:
        raise EngineMissingError(
            f"compiling the engine for a board needs {', '.join(missing)}, not found here",
            next_step=f"sudo apt-get install -y {' '.join(APT_PACKAGES)}",
        )
    done = run_child([f"{prefix}-g++", "--version"])
    done.check_returncode()
    return Toolchain(prefix, decode_output(done.stdout).splitlines()[0])


def strip(toolchain: Toolchain, path: Path) -> bytes:
    """The bytes of an ELF file without symbols that loading it does not need."""
    path = path.absolute()
    stripped = path.with_name(path.name + ".stripped")
    run_child(
        [toolchain.tool("strip"), "--strip-unneeded", "-o", str(stripped), str(path)]
    ).check_returncode()
    data = stripped.read_bytes()
    stripped.unlink()
    return data
