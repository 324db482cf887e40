"""Find the system libraries and versions that a compiled library needs; they decide its tag.

A wheel's platform tag promises the oldest glibc that it loads on. We compute it from the symbol
versions in the libraries instead of believing the build machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.errors import EngineError
from boardfit.edge.process.child import decode_output, run_child

_VERSION = re.compile(r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([0-9]+(?:\.[0-9]+)*)\b")
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+?)\]")

Versions = Mapping[str, tuple[int, ...]]

#: The newest symbol versions on systems that boards run: glibc's own number, and what the libstdc++
#: of the release's newest gcc exports (https://gcc.gnu.org/onlinedocs/libstdc++/manual/abi.html).
SYSTEMS: Mapping[str, Versions] = {
    "Debian 12": {"GLIBC": (2, 36), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)},
    "Debian 13": {"GLIBC": (2, 41), "GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15), "GCC": (14, 0, 0)},
    "Ubuntu 22.04": {
        "GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0),
    },
    "Ubuntu 24.04": {
        "GLIBC": (2, 39), "GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15), "GCC": (14, 0, 0),
    },
}  # fmt: skip
# What every board has; anything else would have to be in the wheel.
_SYSTEM_LIBRARIES = frozenset(
    ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0",
     "ld-linux-aarch64.so.1")
)  # fmt: skip


@dataclass(frozen=True)
class Symbols:
    """What a set of libraries needs: the newest version per symbol family, and library names."""

    versions: Versions
    libraries: frozenset[str]

    @property
    def glibc(self) -> tuple[int, ...]:
        # 2.17 is where arm64 began: no glibc for it is older.
        return max(self.versions.get("GLIBC", (2, 17)), (2, 17))

    @property
    def platform_tag(self) -> str:
        """`manylinux_2_34_aarch64`: PEP 600's name for the oldest glibc that will do."""
        return f"manylinux_{self.glibc[0]}_{self.glibc[1]}_aarch64"

    def missing_on(self, system: str) -> list[str]:
        """What `system` (a key of SYSTEMS) does not have, as `GLIBC_2.38` …; empty: it loads."""
        has = SYSTEMS[system]
        return [
            f"{family}_{'.'.join(map(str, version))}"
            for family, version in sorted(self.versions.items())
            if version > has.get(family, ())
        ]


def read_symbols(readelf: str, libraries: Iterable[Path]) -> Symbols:
    """Symbol versions and libraries that ELF files need, read with binutils' readelf.

    Raises EngineError when one of them is not an ELF file for arm64, or needs a library that is
    neither one of them nor on every board.
    """
    paths = list(libraries)
    versions: dict[str, tuple[int, ...]] = {}
    needed: set[str] = set()
    for path in paths:
        done = run_child(
            [readelf, "--wide", "--file-header", "--dynamic", "--version-info",
             str(path.absolute())]
        )  # fmt: skip
        listed, why = decode_output(done.stdout), decode_output(done.stderr).strip()
        if done.returncode or "AArch64" not in listed:
            raise EngineError(f"{path.name} is not an ELF library for arm64: {why}")
        needed.update(_NEEDED.findall(listed))
        for family, text in _VERSION.findall(listed):
            version = tuple(int(part) for part in text.split("."))
            versions[family] = max(versions.get(family, ()), version)
    if strange := sorted(needed - _SYSTEM_LIBRARIES - {path.name for path in paths}):
        raise EngineError(f"the engine would need {', '.join(strange)} on the board")
    return Symbols(versions, frozenset(needed))
