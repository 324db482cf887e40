"""The unit of a server: systemd's own checks, the plan's memory, and the network that it allows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.serve.unit import SERVE_SERVICE, avahi_service, description, serve_unit
from tests.converters.board.offline.test_unit import plan
from tests.edge.flash.boards import edge_command
from tests.edge.flash.cargo import make_bundle
from tests.programs import require

ROOT = "/opt/boardfit"
PROGRAM = f"{ROOT}/current/env/bin/edge"


def unit(name: str = "a model, 50 %", peak_mib: int = 50) -> str:
    return serve_unit(name, plan(peak_mib), ROOT, program=PROGRAM, port=8080)


def test_memory_is_the_plans_a_tenth_and_the_servers() -> None:
    assert "MemoryMax=261M" in unit(peak_mib=50)
    assert "MemoryMax=1333M" in unit(peak_mib=1024)


@given(st.text(max_size=120))
def test_a_name_cannot_add_settings_or_elements(name: str) -> None:
    assert len(unit(name).splitlines()) == len(unit("x").splitlines())
    assert "%" not in unit(name) and not re.search("[<>&]", description(name))
    assert avahi_service(name, 80).count("<") == avahi_service("x", 80).count("<")


def test_systemd_accepts_it_and_finds_little_exposed(tmp_path: Path) -> None:
    require("systemd-analyze")
    program = tmp_path / "opt/boardfit/current/env/bin/edge"
    units = tmp_path / "etc/systemd/system"
    program.parent.mkdir(parents=True)
    units.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (units / SERVE_SERVICE).write_text(unit())
    for target in ("sysinit", "basic", "shutdown", "multi-user", "network"):
        (units / f"{target}.target").write_text("[Unit]\nDescription=x\n")
    verify = ["systemd-analyze", "verify", f"--root={tmp_path}", SERVE_SERVICE]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert done.returncode == 0 and SERVE_SERVICE not in done.stderr, done.stderr
    security = ["systemd-analyze", "security", "--offline=true", str(units / SERVE_SERVICE)]
    done = subprocess.run(security, capture_output=True, text=True)
    level = re.search(rf"exposure level for {SERVE_SERVICE}: ([\d.]+)", done.stdout)
    assert level and float(level[1]) <= 2.0, done.stdout[-400:]


@pytest.mark.parametrize(
    "line",
    ["Type=notify", "NotifyAccess=all", "IPAddressDeny=any", "DynamicUser=yes",
     "ProtectSystem=strict", "LoadCredential=serve.key:/etc/boardfit/serve.key",
     "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"],
    ids=lambda line: line.partition("=")[0],
)  # fmt: skip
def test_the_network_is_local_and_the_watchdog_fed(line: str) -> None:
    lines = unit().splitlines()
    assert line in lines and "PrivateNetwork=yes" not in lines


def test_the_command_prints_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", {"model.gguf": b"m"})
    command = edge_command("serve", str(bundle), "--unit", "--port", "8081")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exec_start = f"ExecStart={PROGRAM} serve {ROOT}/current/bundle --port 8081 --lan"
    assert exec_start in done.stdout.splitlines()
