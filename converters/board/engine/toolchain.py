"""The cross toolchain: what must be installed, which compiler it is, and a run of CMake and ninja
behind a progress bar. No path of ours gets into what is compiled.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.process.child import (
    STDOUT,
    child_environment,
    decode_output,
    find_program,
    run_child,
    start_child,
)
from boardfit.edge.terminal.progress import Progress

PREFIX = "aarch64-linux-gnu"
APT_PACKAGES = ("gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu", "cmake", "ninja-build")
_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_TAIL_LINES = 60


@dataclass(frozen=True)
class Toolchain:
    """A cross toolchain: `<prefix>-gcc`, `-g++`, `-strip`, `-readelf`; and cmake and ninja.
    `version` is the compiler's own first line; it belongs to what a build's bytes depend on.
    """

    prefix: str
    version: str

    def tool(self, name: str) -> str:
        return f"{self.prefix}-{name}"


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


def configure(source: Path, build: Path, toolchain: Toolchain, flags: Sequence[str]) -> None:
    """Run CMake over `source` into `build`. Raises EngineError with the end of its output."""
    source, build = source.absolute(), build.absolute()
    build.mkdir(parents=True, exist_ok=True)
    settings = Path(__file__).with_name("toolchain.cmake").read_text()
    (build / "toolchain.cmake").write_text(settings.replace("@PREFIX@", toolchain.prefix))
    # __FILE__ in assertions would otherwise carry this machine's paths into the library.
    mapped = f"-ffile-prefix-map={source}=llama.cpp -ffile-prefix-map={build}=build"
    command = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), *flags]
    command += [f"-DCMAKE_TOOLCHAIN_FILE={build / 'toolchain.cmake'}"]
    _run([*command, f"-DCMAKE_C_FLAGS={mapped}", f"-DCMAKE_CXX_FLAGS={mapped}"], None)


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
