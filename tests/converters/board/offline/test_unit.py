"""The systemd unit: systemd's own checks, and the limits that the plan gives."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.errors import InputError
from boardfit.edge.flash.service_units import install_unit, service_unit
from boardfit.edge.types import Plan
from boardfit.edge.units import MIB
from tests.converters.board.conftest import require


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


ID = "0123456789abcdef" * 4
UNITS = {
    "service": ("boardfit.service", service_unit("a model, 50 %", plan()), 0.7),
    "installer": ("boardfit-install.service", install_unit(ID, 1000, 1000), 2.0),
    "installer of root": ("boardfit-install.service", install_unit(ID, 0, 0), 2.0),
}


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_it(name: str, tmp_path: Path) -> None:
    require("systemd-analyze")
    file, text, _ = UNITS[name]
    release = tmp_path / f"opt/boardfit/releases/{ID}"
    programs = [release / "env/bin/edge", release / "bundle/board/install.sh", tmp_path / "bin/sh"]
    for program in programs:
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    (tmp_path / "opt/boardfit/current").symlink_to(f"releases/{ID}")
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / file).write_text(text)
    for target in ("sysinit", "basic", "shutdown", "multi-user"):
        (units / f"{target}.target").write_text("[Unit]\nDescription=x\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", file], capture_output=True, text=True
    )
    assert done.returncode == 0 and file not in done.stderr, done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_little_exposed(name: str, tmp_path: Path) -> None:
    require("systemd-analyze")
    file, text, most = UNITS[name]
    (tmp_path / file).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", tmp_path / file],
        capture_output=True, text=True,
    )  # fmt: skip
    level = re.search(rf"exposure level for {file}: ([\d.]+)", done.stdout)
    assert level and float(level[1]) <= most, done.stdout[-300:]


def test_the_installer_may_write_beside_its_bundle_only() -> None:
    lines = install_unit(ID, 1000, 1000).splitlines()
    release = f"/opt/boardfit/releases/{ID}"
    assert "ProtectSystem=strict" in lines
    assert [line for line in lines if line.startswith("ReadWritePaths")] == [
        f"ReadWritePaths={release}"
    ]
    assert f"ReadOnlyPaths={release}/bundle" in lines
    with pytest.raises(ValueError, match="not a bundle id"):
        install_unit("../../etc", 0, 0)


@pytest.mark.parametrize("peak", ["1\nExecStart=/bin/evil", None, 0, -1, 1.5, True, 1 << 60])
def test_planned_memory_is_a_number(peak: object) -> None:
    strange = dataclasses.replace(plan(), loading_bytes=peak, running_bytes=peak)  # type: ignore[arg-type]
    strange = dataclasses.replace(strange, memory={"kv_cache": peak})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="expected a number of bytes"):
        service_unit("x", strange)


@given(st.text(max_size=120))
def test_a_name_cannot_join_lines(name: str) -> None:
    text = service_unit(name, plan())
    assert not any(line.endswith("\\") for line in text.splitlines()) and "%" not in text


@pytest.mark.parametrize(
    "line", ["DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateNetwork=yes"]
)
def test_hardening(line: str) -> None:
    assert line in service_unit("x", plan()).splitlines()
