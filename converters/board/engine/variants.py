"""Settings for the compiler: Arm generations, CMake flags, and which of them it can build."""

from __future__ import annotations

import os
import re
from pathlib import Path

from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.process.child import run_child
from boardfit.edge.units import did_you_mean

#: The wheel with every kernel variant that the compiler can build, chosen when the board loads it.
ALL_VARIANTS = "all"


#: One Arm generation each, and what gcc is given as -march.
SINGLE_VARIANTS = {
    "armv8.0": "armv8-a",
    "armv8.2-dotprod": "armv8.2-a+dotprod",
    "armv8.2-dotprod-fp16": "armv8.2-a+dotprod+fp16",
    "armv8.6-i8mm": "armv8.6-a+dotprod+fp16+i8mm",
}

# The features by which ggml names its run-time variants, in the order in which its CMakeLists adds
# them to -march (ggml/src/ggml-cpu/CMakeLists.txt): the base that first had it, and gcc's word.
_FEATURES = {
    "DOTPROD": ("armv8.2-a", "+dotprod"),
    "FP16_VECTOR_ARITHMETIC": ("armv8.2-a", "+fp16"),
    "SVE": ("armv8.2-a", "+sve"),
    "MATMUL_INT8": ("armv8.6-a", "+i8mm"),
    "SVE2": ("armv8.6-a", "+sve2"),
    "SME": ("armv9.2-a", "+sme"),
}
_VARIANT_LINE = re.compile(r"^\s*ggml_add_cpu_backend_variant\((armv\S+?)((?:\s+\w+)*)\)\s*$")

# No -D here names a path: flags are part of the cache key and must not differ between machines.
COMMON_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=OFF",
    "-DGGML_CCACHE=OFF",
    # ggml's own thread pool. libgomp is no part of a minimal Raspberry Pi OS, and a bundle must not
    # need apt on the board.
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    # Otherwise the commit of the git checkout around the cache folder.
    "-DLLAMA_BUILD_NUMBER=0",
    "-DLLAMA_BUILD_COMMIT=unknown",
)
SHARED_FLAGS = (
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    # Wheels hold no links: three copies of each library otherwise.
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
)
ALL_FLAGS = ("-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON")
STATIC_FLAGS = (
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
)


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


# One intrinsic of each feature that ggml's kernels use: a compiler may know a flag and lack these.
_INTRINSICS = """
#include <arm_neon.h>
#ifdef __ARM_FEATURE_DOTPROD
int32x4_t dot(int32x4_t a, int8x16_t b, int8x16_t c) { return vdotq_s32(a, b, c); }
#endif
#ifdef __ARM_FEATURE_FP16_VECTOR_ARITHMETIC
float16x8_t fma(float16x8_t a, float16x8_t b, float16x8_t c) { return vfmaq_f16(a, b, c); }
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
int32x4_t mmla(int32x4_t a, int8x16_t b, int8x16_t c) { return vmmlaq_s32(a, b, c); }
#endif
#ifdef __ARM_FEATURE_SVE
#include <arm_sve.h>
svint32_t sve_dot(svint32_t a, svint8_t b, svint8_t c) { return svdot_s32(a, b, c); }
#endif
#ifdef __ARM_FEATURE_SVE_MATMUL_INT8
svint32_t sve_mmla(svint32_t a, svint8_t b, svint8_t c) { return svmmla_s32(a, b, c); }
#endif
"""


def can_compile(compiler: str, march: str) -> bool:
    """Whether `compiler` compiles the intrinsics that ggml uses with -march=`march`."""
    done = run_child(
        [compiler, f"-march={march}", "-O1", "-x", "c", "-c", "-", "-o", os.devnull],
        input=_INTRINSICS.encode(),
    )
    return done.returncode == 0


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
