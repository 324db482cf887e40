"""Boards that cannot be reached or are not what they should be: a sentence and a next step."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.errors import DeviceUnreachableError, UsageError
from boardfit.edge.flash.adb import AdbChannel
from boardfit.edge.flash.checks import BoardFacts, engine_problems, parse_facts, plan_differences
from boardfit.edge.flash.ssh import is_rsync, rsync_traffic
from boardfit.edge.flash.target import FlashTarget, parse_flash_target
from boardfit.edge.probe.machine import ProbeReport, read_report
from boardfit.edge.probe.remote import Target
from boardfit.edge.probe.system import CapturedSystem
from tests.edge.flash.boards import AdbBoard, SshBoard, edge_command, free_port
from tests.edge.flash.cargo import PLAN

FIXTURES = Path(__file__).parents[1] / "probe/fixtures"
servers = pytest.mark.xdist_group("flash")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("dir:/media/card", FlashTarget("dir", "/media/card")),
        ("dir:a b/ü", FlashTarget("dir", "a b/ü")),
        ("ssh://pi@h:22/opt/x", FlashTarget("ssh", "/opt/x", Target("ssh", "h", "pi", 22))),
        ("ssh://h", FlashTarget("ssh", "boardfit", Target("ssh", "h"))),
        ("ssh://h/~/my%20models/", FlashTarget("ssh", "my models", Target("ssh", "h"))),
        ("ssh://[fe80::1]/x", FlashTarget("ssh", "/x", Target("ssh", "fe80::1"))),
        ("adb://R58", FlashTarget("adb", "/data/local/tmp/boardfit", Target("adb", "R58"))),
        ("adb://10.0.0.1:5555/d", FlashTarget("adb", "/d", Target("adb", "10.0.0.1:5555"))),
        ("adb:///data/x", FlashTarget("adb", "/data/x")),
        ("adb://", FlashTarget("adb", "/data/local/tmp/boardfit")),
    ],
)
def test_targets(text: str, target: FlashTarget) -> None:
    assert parse_flash_target(text) == target
    assert parse_flash_target(str(target).replace(" ", "%20")).board == target.board


@pytest.mark.parametrize(
    "text",
    ["", "card", "/media/card", "sssh://h", "ssh:h", "ssh://", "ssh:///x", "ssh://-oProxyCommand=x",
     "ssh://pi:secret@h/x", "ssh://h/%0a", "ssh://h:99999/x", "ssh://h//", "adb://-s/x", "dir:",
     "ssh://h/x\n", "adb://a;b"],
)  # fmt: skip
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flash_target(text)
    if text == "/media/card":
        assert caught.value.next_step == "write dir:/media/card"
    if text == "sssh://h":
        assert "Did you mean 'ssh'?" in str(caught.value)


@given(st.text(max_size=60))
def test_no_text_crashes(text: str) -> None:
    for prefix in ("", "ssh://", "adb://", "dir:"):
        with contextlib.suppress(UsageError):
            parse_flash_target(prefix + text)


# ---- ssh -----------------------------------------------------------------------------------------


def flash(
    bundle: Path, target: str, *options: str, env: dict[str, str] | None = None
) -> tuple[int, str]:
    # What waits for a password waits for ever; a busy machine takes its time, too.
    done = subprocess.run(
        edge_command("flash", str(bundle), target, *options), env={**os.environ, **(env or {})},
        capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@servers
def test_nobody_listens(sshd: SshBoard, cargo: tuple[Path, Path]) -> None:
    code, said = flash(cargo[0], f"ssh://127.0.0.1:{free_port()}/tmp/x", *sshd.options)
    assert code == 6 and "refused" in said and "is sshd running there" in said


@servers
def test_an_unknown_name(sshd: SshBoard, cargo: tuple[Path, Path]) -> None:
    code, said = flash(cargo[0], "ssh://no-such-board.invalid/x", *sshd.options)
    assert code == 6 and "check the name" in said


@servers
def test_a_key_that_the_board_does_not_take(
    sshd: SshBoard, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True
    )
    config = tmp_path / "config"
    config.write_text(
        sshd.config.read_text().replace(f"{sshd.config.parent}/user", f"{tmp_path}/k")
    )
    code, said = flash(cargo[0], sshd.target, "--ssh-config", str(config))
    assert code == 6 and "takes none of your keys" in said and "next: ssh-copy-id" in said


@servers
def test_a_key_with_a_passphrase_never_asks(
    sshd: SshBoard, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "k")], check=True
    )
    config = tmp_path / "config"
    config.write_text(
        sshd.config.read_text().replace(f"{sshd.config.parent}/user", f"{tmp_path}/k")
    )
    code, said = flash(cargo[0], sshd.target, "--ssh-config", str(config))
    assert code == 6 and "never asks for a password" in said


@servers
@pytest.mark.parametrize("known", ["changed", "unknown"])
def test_host_keys_are_checked(
    sshd: SshBoard, cargo: tuple[Path, Path], tmp_path: Path, known: str
) -> None:
    sshd.root = tmp_path / "root"
    lines = (sshd.config.parent / "known").read_text().split()
    other = (sshd.config.parent / "user.pub").read_text().split()[1]
    (tmp_path / "known").write_text(
        f"{lines[0]} {lines[1]} {other}\n" if known == "changed" else ""
    )
    config = tmp_path / "config"
    config.write_text(
        sshd.config.read_text().replace(f"{sshd.config.parent}/known", f"{tmp_path}/known")
    )
    code, said = flash(cargo[0], sshd.target, "--ssh-config", str(config))
    assert code == 6
    assert ("ssh-keygen -R" in said) if known == "changed" else ("not known yet" in said), said
    assert not sshd.root.exists()


@servers
def test_a_board_that_is_not_the_one_planned_for(
    sshd: SshBoard, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    sshd.root = tmp_path / "root"
    code, said = flash(cargo[0], sshd.target, *sshd.options, "--no-gate")
    assert code == 3 and "is not the raspberry-pi-4b-4gb" in said and "--force" in said
    assert not sshd.root.exists()
    assert flash(cargo[0], sshd.target, *sshd.options, "--no-gate", "--force")[0] == 0


@servers
def test_an_engine_for_another_processor_cannot_be_forced(sshd: SshBoard, tmp_path: Path) -> None:
    from tests.edge.flash.cargo import make_bundle

    board = {"machine": "aarch64", "python": "3.11", "glibc": "2.36"}
    bundle = make_bundle(tmp_path / "x", {"model.gguf": b"m"}, board=board)
    code, said = flash(bundle, sshd.target, *sshd.options, "--force")
    assert code == 3 and "its processor is x86_64, the engine aarch64" in said


# ---- adb -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "step"),
    [("unauthorized", "Allow USB debugging"), ("offline", "adb reconnect"),
     ("no permissions (user in plugdev group?)", "platform-tools"), ("recovery", "adb reboot")],
)  # fmt: skip
def test_a_state_that_is_not_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    state: str, step: str) -> None:  # fmt: skip
    adb = tmp_path / "adb"
    adb.write_text(
        f"#!/bin/sh\ncase $* in *get-serialno) echo R58 ;; *get-state) echo '{state}' ;; "
        f"*) printf 'List of devices attached\\nR58\\t%s\\n' '{state}' ;; esac\n"
    )
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DeviceUnreachableError, match=r"connected: R58 ") as caught:
        AdbChannel(parse_flash_target("adb://R58"))
    assert step in (caught.value.next_step or "")


@servers
def test_a_device_that_has_not_allowed_this_computer(
    device: AdbBoard, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    with AdbBoard(tmp_path / "shy", tmp_path / "root", secure=True) as shy:
        code, said = flash(cargo[0], shy.target, env=shy.env)
        assert code == 6 and "unauthorized" in said and "Allow USB debugging" in said


@servers
def test_two_devices_and_no_serial(
    device: AdbBoard, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    with AdbBoard(tmp_path / "second", tmp_path / "root") as second:
        assert "connected" in device.adb("connect", second.serial).stdout
        device.adb("connect", device.serial)
        code, said = flash(cargo[0], "adb://", env=device.env)
        device.adb("disconnect", second.serial)
    assert code == 2 and device.serial in said and second.serial in said and "name one" in said


@servers
def test_no_such_device(device: AdbBoard, cargo: tuple[Path, Path]) -> None:
    code, said = flash(cargo[0], "adb://nobody", env=device.env)
    assert code == 6 and "no device 'nobody'" in said


# ---- the board itself ----------------------------------------------------------------------------

PI = {"machine": "aarch64", "python": "3.11", "glibc": "2.36"}
FINE = BoardFacts("aarch64", 64, (2, 36), False, (3, 11), True)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (FINE, None),
        (replace(FINE, machine="arm64"), None),
        (replace(FINE, machine="x86_64"), "its processor is x86_64"),
        (replace(FINE, machine="armv7l", bits=32), "its processor is armv7l"),
        (replace(FINE, bits=32), "userland is 32-bit"),
        (replace(FINE, glibc=None, musl=True), "musl"),
        (replace(FINE, glibc=(2, 31)), "its glibc is 2.31, the engine needs 2.36"),
        (replace(FINE, python=None), "no Python"),
        (replace(FINE, python=(3, 9)), "its Python is 3.9"),
        (replace(FINE, can_execute=False), "noexec"),
        (BoardFacts(), "no Python"),
    ],
)
def test_engines_that_cannot_load(facts: BoardFacts, why: str | None) -> None:
    problems = engine_problems(facts, PI)
    assert (why is None and problems == []) or (why is not None and why in " ".join(problems))


def test_static_programs_need_neither_python_nor_glibc() -> None:
    phone = BoardFacts("aarch64", 64, None, False, None, True)
    assert engine_problems(phone, {"machine": "aarch64", "tools": ["armv8.0"]}) == []


@given(st.text(max_size=200))
def test_no_facts_crash(text: str) -> None:
    engine_problems(parse_facts(text), PI)


def test_a_noexec_mount_is_seen(tmp_path: Path) -> None:
    from boardfit.edge.flash.checks import facts_script

    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    card = tmp_path / "card"
    card.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", str(card)]
    subprocess.run(mount, check=True)
    try:
        for root, can in ((card / "not/yet there", False), (tmp_path / "x", True)):
            script = facts_script(str(root))
            done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
            assert parse_facts(done.stdout).can_execute is can
            assert parse_facts(done.stdout).machine == os.uname().machine
        assert os.listdir(card) == []
    finally:
        subprocess.run(["umount", "-l", str(card)], check=True)


def board(model: str, cpuinfo: str, ram_mib: int) -> ProbeReport:
    """A board as its own files show it."""
    files = {
        "/proc/cpuinfo": (FIXTURES / f"cpuinfo-{cpuinfo}.txt").read_text(),
        "/proc/meminfo": f"MemTotal: {ram_mib * 1024} kB\nMemAvailable: {ram_mib * 900} kB\n",
        "/proc/device-tree/model": model,
    }
    report = read_report(CapturedSystem(files))
    assert report is not None
    return report


PI_4 = ("Raspberry Pi 4 Model B Rev 1.4", "raspberry-pi-4", 3800)
PI_5 = ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5", 7900)
NANO = ("NVIDIA Jetson Nano Developer Kit", "jetson-nano", 3900)


@pytest.mark.parametrize(
    ("planned", "real", "why"),
    [
        ("raspberry-pi-4b-4gb", PI_4, None),
        ("raspberry-pi-5-8gb", PI_5, None),
        ("raspberry-pi-5-8gb", PI_4, "it is a raspberry-pi-4b-4gb; its cores lack dotprod"),
        ("raspberry-pi-4b-4gb", PI_5, "it is a raspberry-pi-5-8gb"),
        ("raspberry-pi-4b-4gb", (PI_4[0], PI_4[1], 1850), "it is a raspberry-pi-4b-2gb"),
        ("jetson-nano-4gb", NANO, None),
        ("raspberry-pi-4b-4gb", ("Some Board", "raspberry-pi-5", 7900), "its cores are cortex-a76"),
        ("raspberry-pi-5-8gb", ("Some Board", "raspberry-pi-5", 7900), None),
    ],
)
def test_boards_are_compared_with_the_plan(
    planned: str, real: tuple[str, str, int], why: str | None
) -> None:
    differences = plan_differences(board(*real), PLAN, find_profile(planned))
    assert (why is None and differences == []) or (why or "?") in "; ".join(differences)


def test_a_plan_that_does_not_fit_the_memory_there() -> None:
    big = replace(PLAN, memory={"weights_mapped": 1 << 40})
    assert "of memory and the plan takes" in plan_differences(board(*PI_4), big, None)[0]
    assert plan_differences(None, PLAN, None) == ["it shows neither cores nor memory under /proc"]


def test_only_the_real_rsync_counts() -> None:
    assert is_rsync(b"rsync  version 3.2.7  protocol version 31\n")
    assert is_rsync(b"rsync  version v3.4.1  protocol version 32\n")
    assert not is_rsync(b"openrsync: protocol version 29\nrsync version 2.6.9 compatible\n")
    assert not is_rsync(b"rsync  version 2.6.9  protocol version 29\n")
    assert not is_rsync(b"")
    stats = "Total bytes sent: 1,234\nTotal bytes received: 56\n"
    assert rsync_traffic(stats) == 1290 and rsync_traffic("") == 0
