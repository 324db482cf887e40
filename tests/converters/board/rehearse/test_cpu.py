"""The emulated CPU never has an instruction that the board lacks, and its files never claim one."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.board.rehearse.cpu import (
    CPUS,
    EmulatedCpu,
    choose_cpu,
    cpuinfo,
    known_models,
    write_sysfs,
)
from boardfit.device_profiles.catalog import all_profiles, find_profile
from boardfit.edge.errors import UsageError
from boardfit.edge.probe.cpu import parse_cpuinfo

# `qemu-aarch64 -cpu help` of Debian 12.
QEMU_7_2 = """Available CPUs:
  a64fx
  cortex-a35
  cortex-a53
  cortex-a57
  cortex-a72
  cortex-a76
  max
  neoverse-n1
"""
OLD = known_models(QEMU_7_2)
NEW = OLD | {"cortex-a55", "cortex-a710", "neoverse-n2", "neoverse-v1"}
ARM = [profile for profile in all_profiles().values() if "neon" in profile.isa]


def test_reads_qemus_list() -> None:
    assert {"cortex-a35", "cortex-a76", "max", "neoverse-n1"} <= OLD
    assert "Available" not in OLD


@pytest.mark.parametrize("models", [OLD, NEW], ids=["qemu-7.2", "newer"])
def test_no_board_is_promised_what_it_lacks(models: frozenset[str]) -> None:
    assert len(ARM) > 50
    for profile in ARM:
        choice = choose_cpu(profile, models)
        assert choice.cpu.isa <= profile.isa, profile.id
        assert choice.cpu.model in models
        assert choice.untried == profile.isa - choice.cpu.isa
        assert not choice.exact or choice.cpu.name in {c.core for c in profile.clusters}


@pytest.mark.parametrize(
    ("board", "name", "exact"),
    [
        ("raspberry-pi-zero-2-w", "cortex-a53", True),
        ("raspberry-pi-4b-4gb", "cortex-a72", True),
        ("raspberry-pi-5-8gb", "cortex-a76", True),
        ("jetson-orin-nano-8gb", "cortex-a76", False),
        ("jetson-nano-4gb", "cortex-a57", True),
        ("galaxy-s23", "max,sve=off,sme=off", False),
        ("jetson-agx-thor-128gb", "max,sme=off", False),
    ],
)
def test_the_nearest_core(board: str, name: str, exact: bool) -> None:
    choice = choose_cpu(find_profile(board), OLD)
    assert (choice.cpu.name, choice.exact) == (name, exact)


def test_a_newer_qemu_knows_a_nearer_core() -> None:
    board = find_profile("orange-pi-3b-4gb")
    assert choose_cpu(board, OLD).cpu.name == "cortex-a76"
    choice = choose_cpu(board, NEW)
    assert choice.cpu.name == "cortex-a55" and choice.exact


def test_not_an_arm_board() -> None:
    with pytest.raises(UsageError, match="not a 64-bit Arm"):
        choose_cpu(find_profile("n150-mini-pc-8gb"), OLD)


@pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: cpu.name)
def test_cpuinfo_claims_exactly_the_emulated_instructions(cpu: EmulatedCpu) -> None:
    cores = parse_cpuinfo(cpuinfo(cpu, 4))
    assert len(cores) == 4
    assert {core.isa for core in cores} == {cpu.isa}
    if cpu.model != "max":
        assert {core.core for core in cores} == {cpu.name}


def test_sysfs(tmp_path: Path) -> None:
    write_sysfs(tmp_path / "sys", 4)
    cpus = tmp_path / "sys/devices/system/cpu"
    assert (cpus / "possible").read_text() == "0-3\n"
    assert (cpus / "cpu3").is_dir()
