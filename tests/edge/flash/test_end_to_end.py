"""The whole way: plan, build with the engine, rehearse, flash over a real sshd and a real adb into
an arm64 system with the board's core, chat there, bench there, and the report here. And an engine
for newer cores, which must not become current.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.board.offline.parts import bundle_with_engine
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.layout import bundle_folder, env_folder
from boardfit.edge.slots.store import Slots
from boardfit.edge.units import MIB
from tests.edge.flash.boards import AdbBoard, SshBoard, edge_command
from tests.edge.flash.conftest import need
from tests.edge.flash.emulated import EmulatedBoard, behind_adb, behind_ssh, emulate
from tests.edge.flash.test_transfer import Quiet
from tests.programs import require

PI_4, PI_5 = "raspberry-pi-4b-4gb", "raspberry-pi-5-8gb"
CORES = {PI_4: "cortex-a72", PI_5: "cortex-a76"}
# Read before any test gives itself an empty cache: compiling the engine takes minutes.
REAL_CACHE = cache_directory()
#: Under emulation only the emulator's speed can be measured. Everything else of the gate holds.
NO_SPEED = ("--min-speed", "0")

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.xdist_group("flash")]
Place = AdbBoard | SshBoard


def edge(*arguments: object, place: Place | None = None, check: int | None = 0) -> str:
    """Run `edge` here; its standard output. A failed one's message is in it with --json."""
    began_s = time.monotonic()
    env = {**os.environ, "BOARDFIT_CACHE": str(REAL_CACHE), **(place.env if place else {})}
    done = subprocess.run(
        edge_command(*map(str, arguments), *(place.options if place else [])), env=env,
        capture_output=True, text=True, timeout=1800, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"edge {arguments[0]}: {time.monotonic() - began_s:.1f} s")
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done.stdout


def on_board(place: Place, command: str) -> str:
    """Run a command on the board, through what the flash came through."""
    if isinstance(place, AdbBoard):
        done = place.adb("-s", place.serial, "shell", "-T", command)
    else:
        done = subprocess.run(
            ["ssh", "-F", str(place.config), "-p", str(place.port), "127.0.0.1", command],
            capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample with its engine, for both boards, from one reading of the model."""
    require("aarch64-linux-gnu-g++", "cmake", "ninja")
    folder = tmp_path_factory.mktemp("built") / "bundles"
    edge("build", "sample", "--device", f"{PI_4},{PI_5}", "--ctx", 256, "--with-engine",
         "--no-quality", "-o", folder)  # fmt: skip
    return {device: folder / device for device in (PI_4, PI_5)}


@pytest.fixture(scope="module")
def pi_4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmulatedBoard, Place]]:
    """A Pi 4 behind ssh."""
    need("ssh")
    board = emulated(PI_4, tmp_path_factory.mktemp("pi4"))
    with behind_ssh(board, tmp_path_factory.mktemp("ssh")) as place:
        yield board, place


@pytest.fixture(scope="module")
def pi_5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmulatedBoard, Place]]:
    """A Pi 5 behind adb."""
    need("adb")
    board = emulated(PI_5, tmp_path_factory.mktemp("pi5"))
    with behind_adb(board, tmp_path_factory.mktemp("adb")) as place:
        yield board, place


def emulated(device: str, folder: Path) -> EmulatedBoard:
    require("qemu-aarch64-static", "proot", "mmdebstrap", "taskset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOARDFIT_CACHE", str(REAL_CACHE))
        return emulate(device, folder / "board")


def check_rehearsal(found: dict[str, Any]) -> None:
    """On a Pi 4's core, with its kernels, and with the host's answers."""
    assert found["ok"] and found["cpu"]["name"] == "cortex-a72" and found["cpu"]["exact"]
    assert "NEON" in found["kernels"] and "DOTPROD" not in found["kernels"]
    assert "light.set" in found["text"]
    assert found["agreement"]["n"] == 16 and found["agreement"]["share"] >= 0.9
    memory = found["memory"]
    assert 10 * MIB < memory["guest_anonymous"] < memory["guest"] < 100 * MIB
    assert memory["emulator"] > 10 * MIB
    # The board's own steps: 8 s of them emulated on a quiet machine.
    assert found["seconds"]["installing"] < 300


@pytest.mark.parametrize("device", [PI_4, PI_5])
def test_from_the_plan_to_the_report(
    device: str, bundles: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    board, place = request.getfixturevalue("pi_4" if device == PI_4 else "pi_5")
    assert board.core == CORES[device]
    bundle = open_bundle(bundles[device])
    planned = json.loads(edge("plan", "sample", "--device", device, "--ctx", 256, "--json"))
    for key in ("engine", "recipe", "device", "n_ctx", "kv_type", "n_threads"):
        assert planned["plan"][key] == bundle.plan.to_dict()[key]

    if device == PI_4:
        check_rehearsal(json.loads(edge("rehearse", bundle.path, "--json").splitlines()[-1]))
    else:
        text = edge("rehearse", bundle.path)
        assert "cortex-a76" in text and "16 of 16 the same" in text, text
        assert "ready for the board" in text
    said = edge(
        "flash", bundle.path, place.target, *NO_SPEED, "--no-rehearse", "--json", place=place
    )
    report = json.loads(said.splitlines()[-1])
    assert report["switched"]
    health = report["health"]
    assert "light" in health["text"] and health["engine"].startswith("llama_cpp")
    # Within the plan's 110 %, the emulator's own memory left out, and said so.
    assert 10 * MIB < health["peak_rss_bytes"] < bundle.plan.peak_bytes * 1.1
    assert health["emulator_bytes"] > 10 * MIB
    assert any("an emulator plays this board" in note for note in report["notes"])
    slots = Slots(LocalFiles(place.root))
    assert slots.current() == bundle.id
    slots.verify(bundle.id)

    command = shlex.quote(f"{place.root}/{env_folder(bundle.id)}/bin/edge")
    there = shlex.quote(f"{place.root}/{bundle_folder(bundle.id)}")
    answer = on_board(
        place, f"uname -m; echo 'turn on the lamp in the kitchen' | {command} chat {there}"
    )
    assert answer.startswith("aarch64") and "light.set" in answer, answer

    results = tmp_path / "results.jsonl"
    said = edge("slots", "bench", place.target, "--quick", "--repeats", 1, "--gen", 4, "--threads",
                1, "-o", results, place=place)  # fmt: skip
    assert "prefill 128" in said and "decode 4 at depth 0" in said
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert {record["artifact"]["bundle_id"] for record in records} == {bundle.id}
    assert all(record["machine"]["arch"] == "aarch64" for record in records)
    page = edge("report", results)
    assert "edgekit-assistant" in page and "decode 4 at depth 0" in page
    edge("report", results, "--verify")


def test_an_engine_for_newer_cores_never_becomes_current(
    bundles: dict[str, Path], pi_4: tuple[EmulatedBoard, Place], tmp_path: Path
) -> None:
    _, place = pi_4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOARDFIT_CACHE", str(REAL_CACHE))
        wrong = bundle_with_engine(
            bundles[PI_4], tmp_path / "wrong", find_profile(PI_4), Quiet(),
            variant="armv8.2-dotprod",
        )  # fmt: skip
    slots = Slots(LocalFiles(place.root))
    if slots.current() is None:
        edge("flash", bundles[PI_4], place.target, *NO_SPEED, "--no-rehearse", place=place)
    good = slots.current()

    # The flash rehearses by itself.
    said = edge("flash", wrong.path, place.target, *NO_SPEED, "--json", place=place, check=5)
    assert "illegal instruction on cortex-a72" in said
    assert slots.present() == [good], "the rehearsal comes before the board is touched"

    said = edge(
        "flash", wrong.path, place.target, *NO_SPEED, "--no-rehearse", "--json", place=place,
        check=5,
    )  # fmt: skip
    assert "SIGILL" in said and "instructions that this processor lacks" in said
    assert slots.current() == good
    edge("slots", "verify", place.target, place=place)
