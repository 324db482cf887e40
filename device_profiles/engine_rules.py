"""Whether an engine's published builds run on a board, from its instructions, libc and Python.

The rules cover untested engines. They were checked with litert-lm-api 0.18.1, ai-edge-litert 2.3.0,
onnxruntime-genai 0.18.0 and llama-cpp-python 0.3.36.
"""

import re
from collections.abc import Iterator

from boardfit.device_profiles.profile import DeviceProfile, EngineSupport

#: Engines that the kit runs, as `DeviceProfile.engines` names them.
ENGINES = ("llama_cpp", "litert_lm", "litert", "onnxruntime_genai")
# Engine, what its wheels are, and the least glibc and Python that they, and the kit, run with. PyPI
# has no cp310 wheel of onnxruntime_genai for aarch64, and x86-64 boards come with 3.11 and later.
_WHEELS = (
    ("llama_cpp", "", (2, 17), (3, 10)),
    ("litert_lm", "manylinux_2_27, any Python 3", (2, 27), (3, 10)),
    ("litert", "wheels from Python 3.10 on", (2, 27), (3, 10)),
    ("onnxruntime_genai", "wheels cp311 and later", (2, 28), (3, 11)),
)
_RULE = "rule, not tried here"


def engine_verdicts(profile: DeviceProfile) -> tuple[EngineSupport, ...]:
    """Verdicts on engines for a board: tested ones first, then those that follow from rules."""
    tried = {entry.engine for entry in profile.engines}
    return profile.engines + tuple(e for e in _by_rule(profile) if e.engine not in tried)


def _by_rule(profile: DeviceProfile) -> Iterator[EngineSupport]:
    isa, software = profile.isa, profile.software
    is_arm = "neon" in isa
    if not is_arm and not isa & {"sse42", "avx2"}:
        return  # nothing is published for anything else
    if is_arm and "lse" not in isa:
        yield EngineSupport(
            "litert_lm", False, "google-ai-edge/LiteRT-LM#1847; tried under qemu-user, cortex-a72",
            "built with the LSE atomics of Armv8.1, which these cores lack: it aborts",
        )  # fmt: skip
    glibc, python = _version(software.libc, r"glibc (\d+)\.(\d+)"), _version(software.python)
    if glibc is None or python is None:
        return  # Android, macOS: no wheels to judge by
    for engine, what, *least in _WHEELS:
        if engine == "litert_lm" and is_arm and "lse" not in isa:
            continue
        lacks = [
            f"{name} {'.'.join(map(str, need))}"
            for name, has, need in zip(("glibc", "Python"), (glibc, python), least, strict=True)
            if has < need
        ]
        note = what or "compiled for the board's instructions, or dispatching at run time"
        if lacks:
            need = f"needs {' and '.join(lacks)}, the stock system has less"
            note = f"{what}: {need}" if what else need
        yield EngineSupport(engine, not lacks, _RULE, note)


def _version(text: str | None, pattern: str = r"(\d+)\.(\d+)") -> tuple[int, int] | None:
    found = re.search(pattern, text or "")
    return (int(found[1]), int(found[2])) if found else None
