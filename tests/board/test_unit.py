"""The systemd unit: systemd's own checks, and the limits that the plan gives."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.offline.unit import service_unit
from edge.types import Plan
from edge.units import MIB

from .conftest import require


def plan(peak_mib: int = 50) -> Plan:
    return Plan(
        engine="llama_cpp", recipe="q4_0", device="x", n_ctx=512, kv_type="f16", n_threads=4,
        n_batch=512, n_ubatch=512, use_mmap=True, repack=True, artifact_bytes=1,
        memory={"weights_mapped": peak_mib * MIB}, budget_bytes=1 << 30,
    )  # fmt: skip


def test_memory_is_the_plans_and_a_tenth() -> None:
    assert "MemoryMax=55M" in service_unit("x", plan(50))
    assert "MemoryMax=1127M" in service_unit("x", plan(1024))


@given(st.text(max_size=120))
def test_a_name_cannot_add_settings(name: str) -> None:
    lines = service_unit(name, plan()).splitlines()
    plain = service_unit("x", plan()).splitlines()
    assert len(lines) == len(plain)
    assert [a for a, b in zip(lines, plain, strict=True) if a != b][1:] == []


def test_systemd_accepts_it(tmp_path: Path) -> None:
    require("systemd-analyze")
    program = tmp_path / "opt/edgekit/current/env/bin/edge"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "edgekit.service").write_text(service_unit("a model, 50 %", plan()))
    for name in ("sysinit", "basic", "shutdown", "multi-user"):
        (units / f"{name}.target").write_text("[Unit]\nDescription=x\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", "edgekit.service"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "edgekit.service" not in done.stderr, done.stderr


def test_systemd_finds_little_exposed(tmp_path: Path) -> None:
    require("systemd-analyze")
    path = tmp_path / "edgekit.service"
    path.write_text(service_unit("x", plan()))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", path], capture_output=True, text=True
    )
    level = re.search(r"exposure level for edgekit.service: ([\d.]+)", done.stdout)
    assert level and float(level[1]) <= 1.0, done.stdout[-300:]


@pytest.mark.parametrize(
    "line", ["DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateNetwork=yes"]
)
def test_hardening(line: str) -> None:
    assert line in service_unit("x", plan()).splitlines()
