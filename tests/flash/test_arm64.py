"""The whole way into an arm64 system with a Pi 4's core: adb and sshd on this machine, emulation
behind them. The bundle brings its engine; it is installed there, tried there, and answers there.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from converters.build import BuildRequest, build
from converters.quality.building import QualityOptions
from converters.rehearse.cpu import choose_cpu, known_models
from converters.rehearse.prepare import weakest_core, write_fakes
from converters.rehearse.root import board_root
from converters.rehearse.sandbox import Sandbox, find_qemu, open_sandbox, qemu_models
from converters.source.resolve import open_model
from device_profiles.catalog import find_profile
from edge.slots.files import LocalFiles
from edge.slots.store import Slots
from edge.verified import cache_directory

from .boards import AdbBoard, SshBoard, edge_command
from .conftest import need, need_programs

BOARD = "raspberry-pi-4b-4gb"
# Read before any test gives itself an empty cache: compiling the engine takes minutes.
REAL_CACHE = cache_directory()

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.xdist_group("flash")]


class Quiet:
    def stage(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class EmulatedBoard:
    """`runner` are the words before a command that make it run inside; `home` is a folder that both
    sides see, `inside` what it is called there, `device_root` what adb's files lie below.
    """

    runner: list[str]
    home: Path
    inside: Path
    device_root: Path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with its engine, for a Pi 4."""
    need_programs("aarch64-linux-gnu-g++", "cmake", "ninja")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(REAL_CACHE))
        request = BuildRequest(
            open_model("sample"), (find_profile(BOARD),),
            tmp_path_factory.mktemp("arm64") / "bundle", with_engine=True,
            quality=QualityOptions(enabled=False),
        )  # fmt: skip
        return build(request, Quiet())[0].bundle.path  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> EmulatedBoard:
    need_programs("qemu-aarch64-static", "proot", "mmdebstrap")
    work = tmp_path_factory.mktemp("board")
    device = find_profile(BOARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(REAL_CACHE))
        root = board_root()
    cpu = choose_cpu(device, known_models(qemu_models(find_qemu()))).cpu
    assert cpu.name == weakest_core(device) == "cortex-a72"
    write_fakes(work / "fakes", cpu, device, device.free_ram_bytes)
    (work / "home").mkdir()
    # proot: needs no rights, and nothing else on this machine can take its way away.
    sandbox: Sandbox = open_sandbox(root, work, work / "fakes", cpu.name, "proot")
    words = [f"{k}={v}" for k, v in sandbox.environment().items()]
    runner = ["env", "-i", *words, *sandbox.command([])]
    return EmulatedBoard(runner, work, Path(sandbox.inside(work)), Path("/"))


@pytest.fixture(params=["adb", "ssh"])
def pi(
    request: pytest.FixtureRequest, emulated: EmulatedBoard, tmp_path: Path
) -> Iterator[AdbBoard | SshBoard]:
    need(request.param)
    root = emulated.inside / f"{request.param} böard"
    if request.param == "adb":
        with AdbBoard(
            tmp_path / "adb", root, device_root=emulated.device_root, runner=emulated.runner
        ) as board:
            yield board
        return
    login = tmp_path / "login"
    words = shlex.join(emulated.runner)
    login.write_text(f'#!/bin/sh\nexec {words} /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    login.chmod(0o755)
    with SshBoard(tmp_path / "ssh", root, cable=False, login=login) as sshd:
        yield sshd


def edge(board: AdbBoard | SshBoard, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        edge_command(*arguments, *board.options), env={**os.environ, **board.env},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def test_flash_install_try_and_answer(pi: AdbBoard | SshBoard, bundle: Path) -> None:
    # Speed and memory under an emulator are the emulator's; the board is the one planned for, so
    # that nothing has to be forced.
    done = edge(
        pi, "flash", str(bundle), pi.target, "--no-rehearse", "--min-speed", "0", "--max-memory",
        "0", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["switched"] and "light" in report["health"]["text"]
    assert report["health"]["engine"].startswith("llama_cpp")
    slots = Slots(LocalFiles(pi.root))
    assert slots.current() == report["bundle"]
    slots.verify(report["bundle"])
