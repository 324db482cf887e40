"""One CMake configuration and one ninja run behind a progress bar; no path of ours gets in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from boardfit.converters.board.engine.toolchain import Toolchain
from boardfit.edge.errors import EngineError
from boardfit.edge.process.child import STDOUT, child_environment, decode_output, start_child
from boardfit.edge.terminal.progress import Progress

_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_TAIL_LINES = 60


def configure(source: Path, build: Path, toolchain: Toolchain, flags: Sequence[str]) -> None:
    """Run CMake over `source` into `build`. Raises EngineError with the end of its output."""
    source, build = source.absolute(), build.absolute()
    build.mkdir(parents=True, exist_ok=True)
    (build / "toolchain.cmake").write_text(toolchain.cmake_file())
    # __FILE__ in assertions would otherwise carry this machine's paths into the library.
    mapped = f"-ffile-prefix-map={source}=llama.cpp -ffile-prefix-map={build}=build"
    _run(
        [
            "cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), *flags,
            f"-DCMAKE_TOOLCHAIN_FILE={build / 'toolchain.cmake'}",
            f"-DCMAKE_C_FLAGS={mapped}", f"-DCMAKE_CXX_FLAGS={mapped}",
        ],
        None,
    )  # fmt: skip


def compile_targets(build: Path, targets: Sequence[str], jobs: int, progress: Progress) -> None:
    """Run ninja. Raises EngineError with the end of its output."""
    _run(["ninja", "-C", str(build.absolute()), f"-j{jobs}", *targets], progress)


def _run(command: list[str], progress: Progress | None) -> None:
    environment = {
        # Neither the user's compiler flags nor their locale belong in a build.
        **{k: v for k, v in child_environment().items() if not k.endswith("FLAGS")},
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "315532800",  # 1980-01-01, should anything ask for the time
        "NINJA_STATUS": "[%f/%t] ",
    }  # fmt: skip
    tail: list[str] = []
    with start_child(command, env=environment, stderr=STDOUT) as process:
        assert process.stdout
        try:
            for raw in process.stdout:
                line = decode_output(raw)
                tail = [*tail[-_TAIL_LINES:], line]
                if progress and (step := _STEP.match(line)):
                    progress(int(step[1]), int(step[2]))
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise EngineError(
            f"{command[0]} failed ({process.returncode}):\n{''.join(tail)[-4000:]}",
            next_step="the last lines above name the file; is the cross compiler complete?",
        )
