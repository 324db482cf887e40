"""`edge probe` from end to end: this machine, a board behind a real ssh, a phone behind adb."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import boardfit.edge.probe.command as command
import boardfit.edge.probe.measure as measure
from boardfit.device_profiles.catalog import (
    all_profiles,
    find_profile,
    load_profile,
    user_boards_directory,
)
from boardfit.device_profiles.profile import KernelSpeed, ProfileError
from boardfit.device_profiles.text import profile_text
from boardfit.device_profiles.toml_parser import decode_toml
from boardfit.edge.errors import DeviceUnreachableError, InputError, UsageError
from boardfit.edge.probe.command import probe
from boardfit.edge.probe.machine import probe_this_machine, read_report, report_this_machine
from boardfit.edge.probe.measure import (
    Measurements,
    findings_record,
    measure_machine,
    measured_profile,
    thread_counts,
)
from boardfit.edge.probe.remote import Target, capture, parse_target, shell_command
from boardfit.edge.probe.remote_measure import measure_remote, parse_findings
from boardfit.edge.probe.storage import measure_read_speed
from boardfit.edge.probe.system import CapturedSystem, LocalSystem, parse_dump
from tests.programs import find, require

MARK = "m4rk" * 4
SSHD = Path("/usr/sbin/sshd")


# -- profiles written and read ---------------------------------------------------------------------


@pytest.mark.parametrize("board", ["raspberry-pi-5-8gb", "phone-8gb", "jetson-orin-nano-8gb"])
def test_a_written_profile_reads_back_the_same(tmp_path: Path, board: str) -> None:
    original = find_profile(board)
    memory = replace(
        original.memory, bandwidth_sustained=7.5e9, bandwidth_by_threads=((1, 6e9), (4, 7.5e9))
    )
    profile = replace(
        original,
        id="my-board",
        aliases=(),
        memory=memory,
        kernel_speeds=(KernelSpeed("Q4_0", True, 4, 33.57e9),),
        basis="measured here",
    )
    marks = {"date": "2026-11-22", "tool": "t"}
    text = profile_text(profile, source="a test", borrowed="the other", measured=marks)
    path = tmp_path / "my-board.toml"
    path.write_text(text)
    found = load_profile(path)
    assert found.clusters == profile.clusters and found.engines == profile.engines
    assert found.memory == replace(memory, ram_bytes=found.ram_bytes)
    assert found.kernel_speeds == profile.kernel_speeds
    assert found.basis == "measured here"
    assert (found.idle_w, found.load_w) == (profile.idle_w, profile.load_w)
    assert found.sources["memory.sustained_gb_per_s"] == "a test"
    if profile.memory.bandwidth_theoretical:
        assert found.sources["memory.theoretical_gb_per_s"] == "the other"


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_name_breaks_out_of_its_string(name: str, core: str) -> None:
    board = find_profile("raspberry-pi-5-8gb")
    cluster = replace(board.clusters[0], core=core)
    text = profile_text(replace(board, name=name, clusters=(cluster,)), source=name)
    data = decode_toml(text)
    assert data["name"] == name.encode("utf-8", "replace").decode()
    assert data["memory"]["ram_mib"] == 8192 and len(data["cpu"]) == 1


def test_a_board_of_the_users_is_found_by_its_id() -> None:
    write_own("kitchen-pi")
    assert find_profile("kitchen-pi").name == "Raspberry Pi 5, 8 GB"
    assert "kitchen-pi" in all_profiles()
    with pytest.raises(ProfileError, match="Did you mean 'kitchen-pi'"):
        find_profile("kitchen-po")


@pytest.mark.parametrize("taken", ["raspberry-pi-5-8gb", "pi5"])
def test_a_board_of_the_users_with_a_shipped_name_is_refused(taken: str) -> None:
    write_own(taken)
    with pytest.raises(ProfileError, match="rename the file and its id"):
        all_profiles()
    with pytest.raises(ProfileError, match="rename the file and its id"):
        find_profile(taken)


def write_own(name: str) -> None:
    folder = user_boards_directory()
    folder.mkdir(parents=True, exist_ok=True)
    board = replace(find_profile("raspberry-pi-5-8gb"), id=name, aliases=())
    (folder / f"{name}.toml").write_text(profile_text(board, source="a test"))


# -- this machine ----------------------------------------------------------------------------------


def run(*args: str) -> str:
    outcome = CliRunner().invoke(probe, list(args), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_reading_without_measuring() -> None:
    record = json.loads(run("--no-measure", "--no-write", "--json"))
    assert record["profile"]["ram_bytes"] > 0 and record["path"] is None
    assert record["bandwidth_method"] is None and record["notes"] == []
    assert not user_boards_directory().exists()
    for sensor in record["heat"]:
        assert sensor["temp_c"] is None or -55 <= sensor["temp_c"] < 200


@pytest.mark.engine
def test_a_quick_probe_is_kept_and_used_by_plans() -> None:
    start = time.monotonic()
    out = run("--quick", "--name", "bench-box")
    assert time.monotonic() - start < 30
    assert "GB/s by threads (4-bit decode of the engine)" in out
    kept = find_profile("bench-box")
    assert kept.basis == "measured here"
    assert kept.memory.bandwidth_by_threads and kept.memory.bandwidth_sustained
    timed = {kernel.ggml_type for kernel in kept.kernel_speeds}
    assert timed == {"Q4_0", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    assert all(kernel.macs_per_s > 1e8 for kernel in kept.kernel_speeds)


def test_what_a_probe_kept_is_what_this_machine_plans_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = report_this_machine()
    found = Measurements({1: 3e9, 2: 5e9}, [], 100e6, None, "copy", [])
    profile = measured_profile(report.profile, found)
    name = command.board_id(None, None, report)
    path = user_boards_directory() / f"{name}.toml"
    command.write_profile(path, replace(profile, id=name, aliases=()), measured=True)
    here = probe_this_machine()
    assert here.memory.bandwidth_sustained == 5e9 and here.storage.read == 100e6
    assert here.basis == "measured here" and here.id == "this-machine"


def test_without_an_engine_memory_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "library_folder", lambda: None)
    steps: list[tuple[int, int]] = []
    profile = report_this_machine().profile
    found = measure_machine(profile, quick=True, progress=lambda d, t: steps.append((d, t)))
    assert found.method == "copy" and found.kernels == []
    assert all(rate > 1e8 for rate in found.bandwidth_by_threads.values())
    assert any("no engine" in note for note in found.notes)
    assert steps[-1][0] == steps[-1][1]


def test_an_engine_that_does_not_load_is_a_note(tmp_path: Path) -> None:
    for name in ("libggml-base.so", "libggml-cpu.so"):
        (tmp_path / name).write_bytes(b"\x7fELF, but not really")
    profile = report_this_machine().profile
    found = measure_machine(profile, quick=True, engine_folder=tmp_path)
    assert found.method == "copy"
    assert any("could not be timed" in note for note in found.notes)


def test_an_illegal_instruction_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -ILL $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    found = measure_machine(report_this_machine().profile, quick=True, engine_folder=tmp_path)
    assert any("illegal instruction" in note for note in found.notes)


def test_storage_is_read_past_the_cache(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(12 << 20))
    rate = measure_read_speed([large])
    assert rate is None or rate > 1e5  # a memory file system may not allow it
    assert measure_read_speed([tmp_path / "absent"]) is None
    (tmp_path / "small").write_bytes(b"x")
    assert measure_read_speed([tmp_path / "small"]) is None


def test_thread_counts() -> None:
    assert thread_counts(1, quick=False) == [1]
    assert thread_counts(4, quick=False) == [1, 2, 3, 4]
    assert thread_counts(8, quick=False) == [1, 2, 3, 4, 6, 8]
    assert thread_counts(8, quick=True) == [1, 4, 8]


@pytest.mark.parametrize("name", ["this-machine", "Kitchen Pi", "../x", "pi5", "-x", "x\n"])
def test_names_that_no_profile_can_have(name: str) -> None:
    with pytest.raises(UsageError):
        command.board_id(name, None, report_this_machine())


# -- far away --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ssh://pi@kitchen.local", Target("ssh", "kitchen.local", "pi")),
        ("ssh://10.0.0.7:2222", Target("ssh", "10.0.0.7", None, 2222)),
        ("ssh://pi@[fe80::1]", Target("ssh", "fe80::1", "pi")),
        ("adb://R58A00", Target("adb", "R58A00")),
        ("adb://10.0.0.9:5555", Target("adb", "10.0.0.9:5555")),
    ],
)
def test_places(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    [
        "kitchen.local", "http://x", "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@host",
        "ssh://pi:secret@host", "ssh://host/path", "ssh://host:99999", "ssh://a b", "adb://",
        "adb://-s", "adb://x;reboot", "ssh://host\n", "ssh://$(x)@h",
    ],
)  # fmt: skip
def test_no_place_is_an_option_of_ssh(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


def test_ssh_never_asks_and_never_trusts_blindly() -> None:
    line = shell_command(parse_target("ssh://pi@host:22"))
    assert "BatchMode=yes" in line and line[-4:] == ["--", "host", "sh", "-s"]
    assert not any("StrictHostKeyChecking" in word for word in line)


def test_a_dump_is_files_and_outputs() -> None:
    text = f"welcome\n{MARK} file /proc/a\none\n\n\n{MARK} output temp\nt\n\nlast{MARK} end\n"
    system = parse_dump(text, MARK)
    assert system.read("/proc/a") == "one\n"
    assert system.output("temp") == "t\n\nlast".removesuffix("\n")
    assert system.read("welcome") is None
    with pytest.raises(InputError, match="cut off"):
        parse_dump(text[:-6], MARK)


@given(st.text(max_size=200), st.lists(st.sampled_from([f"{MARK} file /p", f"{MARK} end", "x"])))
@settings(max_examples=100, deadline=None)
def test_no_dump_crashes(noise: str, lines: list[str]) -> None:
    try:
        system = parse_dump("\n".join([noise, *lines]), MARK)
    except InputError:
        return
    assert read_report(system) is None
    system.glob("/sys/*/x")


def test_a_captured_system_globs_like_a_folder(tmp_path: Path) -> None:
    files = {f"sys/class/hwmon/hwmon{i}/name": "x" for i in (0, 1, 10)}
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
    for pattern in ("/sys/class/hwmon/hwmon*", "/sys/class/hwmon/hwmon*/name", "/sys/*/x"):
        local, captured = LocalSystem(tmp_path).glob(pattern), CapturedSystem(files).glob(pattern)
        assert local == captured


def fake_adb(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    path = folder / "adb"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_script_runs_behind_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_adb(tmp_path, monkeypatch, '[ "$1 $2 $3" = "-s R58 shell" ] && exec sh')
    record = json.loads(run("adb://R58", "--no-write", "--json"))
    here = report_this_machine().profile
    assert record["profile"]["ram_bytes"] == here.ram_bytes
    assert sum(c["count"] for c in record["profile"]["clusters"]) >= here.n_cores


def test_a_phone_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_adb(tmp_path, monkeypatch, "echo \"error: device 'R58' not found\" >&2; exit 1")
    with pytest.raises(DeviceUnreachableError, match="device 'R58' not found"):
        capture(parse_target("adb://R58"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(DeviceUnreachableError, match="adb is not installed"):
        capture(parse_target("adb://R58"))


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A real sshd on a port of the loopback, its key known to an `ssh` that reads our config."""
    require("sshd", "ssh", "ssh-keygen")
    client = find("ssh")
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(keygen, check=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nUsePAM no\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nPidFile none\n"
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"SetEnv PATH={programs}:/usr/local/bin:/usr/bin:/bin\n"
    )
    key = (tmp_path / "host.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {key}")
    (tmp_path / "config").write_text(
        f"UserKnownHostsFile {tmp_path}/known\nIdentityFile {tmp_path}/user\nIdentitiesOnly yes\n"
        "GlobalKnownHostsFile /dev/null\n"
    )
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {client} -F {tmp_path}/config "$@"\n')
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its privileges to
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=log
        )
    try:
        for _ in range(100):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield Target("ssh", "127.0.0.1", getpass.getuser(), port)
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.mark.slow
@pytest.mark.xdist_group("probe-over-ssh")
def test_a_board_behind_ssh_is_read_and_kept(sshd: Target) -> None:
    out = run(str(sshd), "--name", "far-pi", "--no-measure")
    assert "kept as" in out
    here, far = report_this_machine().profile, find_profile("far-pi")
    assert [(c.core, c.isa) for c in far.clusters] == [(c.core, c.isa) for c in here.clusters]
    assert far.ram_bytes == pytest.approx(here.ram_bytes, abs=2**20)
    assert far.basis == "from specifications"  # nothing was measured


@pytest.mark.slow
@pytest.mark.xdist_group("probe-over-ssh")
def test_a_board_behind_ssh_is_measured_there_and_left_as_it_was(
    sshd: Target, tmp_path: Path
) -> None:
    before = set(Path(tempfile.gettempdir()).glob("tmp.*/probe.zip"))
    start = time.monotonic()
    out = run(str(sshd), "--name", "far-pi", "--quick")
    assert time.monotonic() - start < 45
    assert "GB/s by threads" in out and "measured on the board itself, by Python 3" in out
    far = find_profile("far-pi")
    assert far.basis == "measured here" and far.memory.bandwidth_by_threads
    assert not set(Path(tempfile.gettempdir()).glob("tmp.*/probe.zip")) - before


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.xdist_group("probe-over-ssh")
def test_the_python_of_the_edge_command_is_taken_for_its_engine(
    sshd: Target, tmp_path: Path
) -> None:
    # A directory that the daemon puts on PATH stands in for the account's ~/.local/bin.
    (tmp_path / "bin" / "edge").write_text(f"#!{sys.executable}\n")
    (tmp_path / "bin" / "edge").chmod(0o755)
    record = json.loads(run(str(sshd), "--quick", "--no-write", "--json"))
    assert record["bandwidth_method"] == "engine"
    assert {kernel["type"] for kernel in record["profile"]["kernel_speeds"]} >= {"Q4_0", "Q8_0"}


def test_a_board_without_python_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("ssh", "board", None, None)
    fake = tmp_path / "ssh"
    for code, why in ((80, "no Python 3.10"), (81, "no room"), (255, "exit 255")):
        fake.write_text(f"#!/bin/sh\ncat >/dev/null\necho hello\nexit {code}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        found = measure_remote(target, find_profile("raspberry-pi-5-8gb"))
        assert found.method is None and why in found.notes[0]
    found = measure_remote(Target("adb", "R58"), find_profile("raspberry-pi-5-8gb"))
    assert found.method is None and "no Python" in found.notes[0]


def test_findings_travel_whole() -> None:
    sent = Measurements(
        {1: 3e9, 4: 5e9}, [KernelSpeed("Q4_0", True, 4, 33e9)], 1e8, frozenset(["neon"]), "engine",
        ["a note"],
    )  # fmt: skip
    got = parse_findings(json.dumps(findings_record(sent)))
    assert replace(got, notes=[]) == replace(sent, notes=[])
    assert got.notes[0].startswith("measured on the board itself") and got.notes[1] == "a note"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
KEYS = ("bandwidth_by_threads", "kernels", "storage_read", "engine_isa", "method", "notes")


@given(st.dictionaries(st.sampled_from(KEYS), json_values) | json_values)
@settings(max_examples=150, deadline=None)
def test_no_answer_of_a_board_is_believed_blindly(answer: object) -> None:
    found = parse_findings(json.dumps(answer))
    profile = measured_profile(find_profile("raspberry-pi-5-8gb"), found)
    assert all(0 < rate < 1e15 for _, rate in profile.memory.bandwidth_by_threads)
    assert all(note.isprintable() for note in found.notes)


@pytest.mark.slow
def test_ssh_refuses_what_it_does_not_know(sshd: Target, tmp_path: Path) -> None:
    (tmp_path / "known").write_text("")
    with pytest.raises(DeviceUnreachableError, match="Host key verification failed"):
        capture(sshd)


@pytest.mark.slow
def test_ssh_never_asks_for_a_password(sshd: Target, tmp_path: Path) -> None:
    (tmp_path / "user.pub").write_text("")
    with pytest.raises(DeviceUnreachableError, match="Permission denied") as caught:
        capture(sshd)
    assert caught.value.exit_code == 6
    assert "without asking" in (caught.value.next_step or "")


def test_a_closed_port_is_unreachable() -> None:
    require("ssh")
    with socket.socket() as held:  # bound, never listening
        held.bind(("127.0.0.1", 0))
        with pytest.raises(DeviceUnreachableError, match="refused"):
            capture(Target("ssh", "127.0.0.1", None, held.getsockname()[1]))
