"""Settings for the compiler: Arm generations, CMake flags, and which of them it can build."""

import os
import re
from pathlib import Path

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.process.child import run_child
from boardfit.edge.units import did_you_mean

#: The wheel with every kernel variant that the compiler can build, chosen when the board loads it.
ALL_VARIANTS = "all"


_DATA = load_toml("boardfit.converters.board.engine", "variants.toml")
SINGLE_VARIANTS: dict[str, str] = _DATA["single_variants"]
_FEATURES: dict[str, list[str]] = _DATA["features"]
COMMON_FLAGS, SHARED_FLAGS, ALL_FLAGS, STATIC_FLAGS = (
    tuple[str, ...](_DATA[f"{name}_flags"]) for name in ("common", "shared", "all", "static")
)
_VARIANT_LINE = re.compile(r"^\s*ggml_add_cpu_backend_variant\((armv\S+?)((?:\s+\w+)*)\)\s*$")


def march_flags(name: str) -> tuple[str, ...]:
    """The flags of one variant's kernels. Raises UsageError when there is no variant `name`."""
    if name not in SINGLE_VARIANTS:
        known = (ALL_VARIANTS, *SINGLE_VARIANTS)
        raise UsageError(
            f"there is no engine variant {name!r}; known: {', '.join(known)}."
            f"{did_you_mean(name, known)}"
        )
    return (f"-DGGML_CPU_ARM_ARCH={SINGLE_VARIANTS[name]}",)


def name_march(features: tuple[str, ...]) -> str:
    """The -march that ggml's CMakeLists gives a run-time variant with these features. Raises
    InputError on a feature that this version does not know.
    """
    base, tags = "armv8-a", ""
    for feature in features:
        if feature not in _FEATURES:
            raise InputError(f"unknown Arm feature {feature!r} in ggml's CMakeLists")
    for feature, (first, tag) in _FEATURES.items():
        if feature in features:
            base, tags = first, tags + tag
    return base + tags


def can_compile(compiler: str, march: str) -> bool:
    """Whether `compiler` compiles the intrinsics that ggml uses with -march=`march`."""
    source = str(Path(__file__).with_name("intrinsics.c"))
    command = [compiler, f"-march={march}", "-O1", "-c", source, "-o", os.devnull]
    return run_child(command).returncode == 0


def keep_buildable_variants(cmake_lists: Path, compiler: str) -> tuple[list[str], list[str]]:
    """Take the run-time variants that `compiler` cannot build out of ggml/src/CMakeLists.txt.
    Returns the names kept and dropped. gcc 12, for example, ends at armv9-a and so drops the two
    armv9.2 ones. Raises InputError when the file has no such lines, or none can be built.
    """
    kept: list[str] = []
    dropped: list[str] = []
    lines: list[str] = []
    for line in cmake_lists.read_text().splitlines(keepends=True):
        if match := _VARIANT_LINE.match(line):
            fits = can_compile(compiler, name_march(tuple(match[2].split())))
            (kept if fits else dropped).append(match[1])
            if not fits:
                continue
        lines.append(line)
    if not kept:
        raise InputError(f"{cmake_lists}: {compiler} can build none of the Arm variants in it")
    cmake_lists.write_text("".join(lines))
    return kept, dropped
