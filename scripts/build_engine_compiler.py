"""Find what a C++ compiler gets wrong for the engine, by trying it, and the flags that avoid it.

`scripts/build_engine` loads this file before anything is installed. So it imports the standard
library and `boardfit.edge.process.child` only, which does the same.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from boardfit.edge.process.child import SubprocessError, run_child

#: Without AMX. Source: https://gcc.gnu.org/onlinedocs/gcc/x86-Options.html
NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
_NO_AVX512 = ("-mno-avx512f", "-mno-avx512bw", "-mno-avx512vl", "-mno-avx512dq", "-mno-avx512cd",
              "-mno-avx512vbmi", "-mno-avx512vnni", "-mno-avx512bf16")  # fmt: skip
_NO_AVX = ("-mno-avx", "-mno-avx2", "-mno-fma", "-mno-f16c", "-mno-avxvnni")


class Reduction(NamedTuple):
    """What a build leaves out: its name, the compiler's flags, CMake's options."""

    name: str
    flags: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def _arm(name: str, march: str) -> Reduction:
    return Reduction(name, options=("-DGGML_NATIVE=OFF", f"-DGGML_CPU_ARM_ARCH={march}"))


#: What a native build leaves out, step by step, until its kernels pass their proof.
REDUCTIONS: dict[str, tuple[Reduction, ...]] = {
    "x86_64": (
        Reduction("AMX", NO_AMX),
        Reduction("AMX and AVX-512", (*NO_AMX, *_NO_AVX512)),
        Reduction("AMX, AVX-512 and AVX", (*NO_AMX, *_NO_AVX512, *_NO_AVX)),
    ),
    "aarch64": (
        _arm("all beyond armv8.2 with dot products", "armv8.2-a+dotprod+fp16"),
        _arm("all beyond armv8.0", "armv8-a"),
    ),
}

# ggml's `ggml_tile_config_init` in small. What is wrong with GCC 12: its `_tile_loadconfig` informs
# the optimizer of 8 of the 64 bytes that the instruction reads, so the stores of rows and columns
# count as dead (ggml-org/llama.cpp#26954). The instruction is replaced by a call that looks at
# the 64 bytes, so that a machine without AMX can try it.
_TILE_CONFIG = """
#include <immintrin.h>
#include <stdint.h>
#include <unistd.h>
struct tilecfg {
    uint8_t palette = 0, start_row = 0, reserved[14] = {0};
    uint16_t colsb[16] = {0};
    uint8_t rows[16] = {0};
};
extern "C" __attribute__((noreturn, used)) void look_at(const tilecfg * t) {
    bool is_right = t->palette == 1 && t->rows[0] == 8 && t->colsb[0] == 64 && t->rows[4] == 16
        && t->colsb[4] == 64 && t->rows[6] == 16 && t->colsb[6] == 64;
    _exit(is_right ? 0 : 1);
}
__attribute__((noinline)) static void load() {
    static thread_local bool done = false;
    if (done) return;
    alignas(64) tilecfg t = {};
    t.palette = 1;
    t.rows[0] = 8;  t.colsb[0] = 64;
    t.rows[4] = 16; t.colsb[4] = 64;
    t.rows[6] = 16; t.colsb[6] = 64;
    _tile_loadconfig(&t);
    done = true;
}
int main() {
    load();
    return 2;
}
"""
_LOAD_TILE = re.compile(r"^\s*(?:ldtilecfg)\s+(.+?)\s*$", re.MULTILINE)
#: The address first: what lies below the stack pointer may hold the 64 bytes.
_LOOK = "\tleaq \\1, %rdi\n\tsubq $4096, %rsp\n\tandq $-64, %rsp\n\tpushq $0\n\tjmp look_at"


def find_faults(compiler: Sequence[str] | None = None) -> tuple[str, ...]:
    """Flags that leave out what `compiler` (C++; default: $CXX or g++) gets wrong on this CPU type.
    Empty when all is well, on a machine that has no such feature, and where there is no compiler.
    """
    command = list(compiler or shlex.split(os.environ.get("CXX") or "g++"))
    if platform.machine() not in ("x86_64", "AMD64") or can_build_tile_config(command) is not False:
        return ()
    return NO_AMX


def can_change_build(compiler: Sequence[str], before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether a native build with other flags can use other instructions on this machine."""
    seen = [_read_macros(compiler, flags) for flags in (before, after)]
    return None in seen or seen[0] != seen[1]


def _read_macros(compiler: Sequence[str], flags: Sequence[str]) -> bytes | None:
    """The macros that stand for what the compiler may use; None if it does not list them."""
    command = [*compiler, *flags, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    try:
        done = run_child(command)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def can_build_tile_config(compiler: Sequence[str]) -> bool | None:
    """Whether an AMX tile configuration keeps its stores; None where it cannot be tried."""
    with tempfile.TemporaryDirectory() as folder:
        source, assembly, program = (Path(folder) / name for name in ("t.cpp", "t.s", "t"))
        source.write_text(_TILE_CONFIG)
        flags = ("-O3", "-std=c++17", "-mamx-tile", "-fno-pie")
        if not _can_run([*compiler, *flags, "-S", str(source), "-o", str(assembly)], folder):
            return None
        text, n = _LOAD_TILE.subn(_LOOK, assembly.read_text())
        if not n:
            return None
        assembly.write_text(text)
        if not _can_run([*compiler, "-no-pie", str(assembly), "-o", str(program)], folder):
            return None
        return _can_run([str(program)], folder)


def _can_run(command: Sequence[str], folder: str) -> bool:
    """Whether a command ends well. It runs in a folder of its own."""
    try:
        return run_child(command, cwd=folder, timeout_s=60).returncode == 0
    except (OSError, SubprocessError):
        return False


if __name__ == "__main__":
    print(*find_faults(sys.argv[1:] or None))
