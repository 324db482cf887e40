"""What a service manager hears: ready, alive while the engine's loop moves, ending."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from boardfit.edge.serve.notify import Heartbeat, notify
from tests.edge.engines.engine_models import Models

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        yield sock


def test_a_served_model_is_reported(manager: socket.socket, models: Models, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "boardfit", "serve", str(models.scripted), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--json"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    try:
        heard = [manager.recv(100)]
        while heard.count(b"WATCHDOG=1") < 3:
            heard.append(manager.recv(100))
        assert b"READY=1" in heard and set(heard) == {b"READY=1", b"WATCHDOG=1"}
        process.send_signal(signal.SIGTERM)
        while heard[-1] != b"STOPPING=1":
            heard.append(manager.recv(100))
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_beats_are_no_quicker_than_needed(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    heart = Heartbeat()
    for _ in range(100):
        heart.beat()
    notify("END=1")
    assert [manager.recv(100), manager.recv(100)] == [b"WATCHDOG=1", b"END=1"]
    assert heart.pause_s == 10


@pytest.mark.parametrize(
    "address", ["", "relative", "/nowhere/at/all"], ids=["none", "odd", "gone"]
)
def test_without_a_manager_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "junk")
    notify("READY=1")
    Heartbeat().beat()
