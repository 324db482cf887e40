"""Whole rehearsals of the sample model: boards that pass, and bundles that must not. That of a Pi 4
through the command, and of a wheel for newer cores, are in tests/edge/flash/test_end_to_end.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import boardfit.converters.board.rehearse.rehearsal as rehearsal_module
from boardfit.converters.board.engine.build import TOOL_PAIR, tools_key
from boardfit.converters.board.engine.store import BuiltEngine, load_engine
from boardfit.converters.board.engine.toolchain import find_toolchain
from boardfit.converters.board.offline.parts import add_engine
from boardfit.converters.board.offline.wheelhouse import BoardPython
from boardfit.converters.board.rehearse.limits import make_cgroup, remove_cgroup
from boardfit.converters.board.rehearse.rehearsal import rehearse
from boardfit.converters.board.rehearse.result import Options
from boardfit.converters.board.rehearse.sandbox import (
    BINFMT,
    SYSTEMS,
    board_root,
    choose_system,
    has_binfmt,
)
from boardfit.converters.build.build import BuildRequest, build
from boardfit.converters.source.resolve import open_model
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.units import MIB
from tests.converters.board.conftest import EMULATION, Quiet, require, sample_bundle
from tests.programs import find

pytestmark = [pytest.mark.slow, pytest.mark.engine]

PI4, PI5, ZERO = (
    find_profile(name)
    for name in ("raspberry-pi-4b-4gb", "raspberry-pi-5-8gb", "raspberry-pi-zero-2-w")
)
# linux-user's own pattern for arm64 programs (qemu's scripts/qemu-binfmt-conf.sh).
_PATTERN = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
)


@pytest.fixture(scope="session")
def emulation() -> None:
    require(*EMULATION)


@pytest.fixture(scope="session")
def root(emulation: None) -> Path:
    return board_root()


@pytest.fixture
def binfmt(emulation: None) -> Iterator[None]:
    """The kernel starts arm64 programs by itself; registered for the test where it does not yet."""
    if has_binfmt():
        yield
        return
    if os.geteuid() != 0:
        pytest.skip("registering qemu with the kernel takes root")
    if not (BINFMT.parent / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT.parent], check=False)
    try:
        qemu = find("qemu-aarch64-static")
        (BINFMT.parent / "register").write_text(f"{_PATTERN}{qemu}:OCF")
    except OSError as error:
        pytest.skip(f"the kernel has no binfmt_misc here: {error}")
    yield
    BINFMT.write_text("-1")


# ---- boards that pass ---------------------------------------------------------------------------


def test_pi_5_through_binfmt_gets_faster_kernels(
    pi4_bundle: Bundle, root: Path, binfmt: None
) -> None:
    before = Path("/proc/mounts").read_text()
    found = rehearse(pi4_bundle, PI5, Options(how="binfmt"), Quiet())
    assert found.ok, found.problem
    assert found.cpu.cpu.name == "cortex-a76"
    assert "DOTPROD" in found.kernels
    assert Path("/proc/mounts").read_text() == before
    assert not list((root / "opt").iterdir())


def test_pi_zero_2_with_the_emulator_alone(
    pi4_bundle: Bundle, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Below a name that the board's system has too: paths must not be looked for there.
    home = Path("/root") if os.access("/root", os.W_OK) else Path.home()
    monkeypatch.setattr(rehearsal_module, "work_parent", lambda bundle: home)
    found = rehearse(pi4_bundle, ZERO, Options(how="qemu", n_tokens=6), Quiet())
    assert found.ok, found.problem
    assert found.cpu.cpu.name == "cortex-a53"
    assert any("install.sh" in note for note in found.notes)


# ---- bundles that must not ----------------------------------------------------------------------


def test_wheels_of_another_python_are_caught(rebundled: Callable[..., Bundle], root: Path) -> None:
    jetson = rebundled("jetson-orin-nano-8gb")
    with pytest.raises(UsageError, match=r"no Debian release has Python 3\.10"):
        rehearse(jetson, find_profile("jetson-orin-nano-8gb"), Options(), Quiet())
    found = rehearse(
        jetson, find_profile("jetson-orin-nano-8gb"), Options(root=root, how="proot"), Quiet()
    )
    assert found.problem and found.problem.kind == "wrong-wheel"
    assert "Python 3.10" in found.problem.message and "3.11" in found.problem.message


def test_a_missing_library_is_caught(pi4_bundle: Bundle, root: Path, tmp_path: Path) -> None:
    poor = tmp_path / "root"
    shutil.copytree(root, poor, symlinks=True, copy_function=os.link)
    for library in (poor / "usr/lib/aarch64-linux-gnu").glob("libstdc++.so*"):
        library.unlink()
    found = rehearse(pi4_bundle, PI4, Options(root=poor, how="proot"), Quiet())
    assert found.problem and found.problem.kind == "missing-library"
    assert found.problem.stage == "installing" and "libstdc++.so.6" in found.problem.message


def test_too_little_memory_by_the_engines_own_count(pi4_bundle: Bundle, root: Path) -> None:
    found = rehearse(pi4_bundle, PI4, Options(how="qemu", free_bytes=4 * MIB), Quiet())
    assert found.problem and found.problem.kind == "out-of-memory"


def test_killed_at_the_limit(
    pi4_bundle: Bundle, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = make_cgroup(64 * MIB)
    if folder is None:
        pytest.skip("no right to make cgroups")
    remove_cgroup(folder)
    monkeypatch.setattr(rehearsal_module, "EMULATOR_ALLOWANCE", 0)
    found = rehearse(pi4_bundle, PI4, Options(how="qemu", free_bytes=40 * MIB), Quiet())
    assert found.limit_how.startswith("cgroup")
    assert found.problem and found.problem.kind == "out-of-memory"
    assert "40.0 MiB" in found.problem.message


def test_a_bundle_without_an_engine(tmp_path: Path) -> None:
    plain = sample_bundle(tmp_path, PI4.id, with_engine=False)
    with pytest.raises(UsageError, match="no engine in") as caught:
        rehearse(plain, PI4)
    assert "edge engine add" in str(caught.value.next_step)


def test_nothing_to_emulate_with(
    pi4_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineMissingError, match="qemu-user") as caught:
        rehearse(pi4_bundle, PI4)
    assert "apt-get install" in str(caught.value.next_step)


# ---- bundles with an engine ---------------------------------------------------------------------


def test_the_same_build_gives_the_same_bundle(wheel: BuiltEngine, tmp_path: Path) -> None:
    first, second = (
        sample_bundle(tmp_path / name, "raspberry-pi-4b-4gb") for name in ("first", "second")
    )
    assert {f.name: f.sha256 for f in first.files} == {f.name: f.sha256 for f in second.files}
    assert first.id == second.id


def test_putting_an_engine_in_again_changes_neither_bundle(
    pi4_bundle: Bundle, rebundled: Callable[..., Bundle]
) -> None:
    again = rebundled("raspberry-pi-4b-4gb")
    assert again.manifest["board"] == pi4_bundle.manifest["board"]
    assert open_bundle(pi4_bundle.path, verify=True).id == pi4_bundle.id
    roles = {file.name: file.role for file in again.files}
    assert roles["board/install.sh"] == "launcher" and roles["board/boardfit.service"] == "unit"
    assert sum(role == "wheel" for role in roles.values()) >= 8
    table = (again.path / "licenses/third-party.txt").read_text()
    assert "numpy" in table and "BSD-3-Clause" in table


def test_a_board_that_cannot_run_it_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    request = BuildRequest(
        spec=open_model("sample"),
        devices=(find_profile("jetson-nano-4gb"),),
        output=tmp_path / "x",
        with_engine=True,
    )
    with pytest.raises(UsageError, match="glibc"):
        build(request, Quiet())
    assert not (tmp_path / "x").exists()


def test_an_unknown_engine_in_the_plan(pi4_bundle: Bundle, tmp_path: Path) -> None:
    import dataclasses

    plan = dataclasses.replace(pi4_bundle.plan, engine="abacus")
    with pytest.raises(UsageError, match="abacus"):
        add_engine(tmp_path, plan, PI4, Quiet())


def test_systems() -> None:
    for python, suite in SYSTEMS.items():
        assert choose_system(BoardPython(python, (2, 36))) == suite


@pytest.fixture
def phone_tools(cross_tools: None) -> None:
    """The pair of static programs, if this machine has compiled it before: it takes minutes."""
    keys = [tools_key(variant, find_toolchain()) for variant in TOOL_PAIR]
    if not (os.environ.get("BOARDFIT_TEST_PHONE_TOOLS") or all(map(load_engine, keys))):
        pytest.skip(
            "compiles static tools for minutes; BOARDFIT_TEST_PHONE_TOOLS=1 does it once, then "
            "they are in the cache and this runs"
        )


def test_a_phone_gets_static_tools(
    rebundled: Callable[..., Bundle], emulation: None, phone_tools: None
) -> None:
    bundle = rebundled("galaxy-s23")
    roles = {file.name: file.role for file in bundle.files}
    assert roles["tools/armv8.2-dotprod/llama-completion"] == "tool"
    assert roles["licenses/LICENSE.llama.cpp"] == "license"
    found = rehearse(bundle, find_profile("galaxy-s23"), Options(), Quiet())
    assert found.ok and found.text and "light.set" in found.text
    assert found.engine == "static llama.cpp, armv8.2-dotprod"
