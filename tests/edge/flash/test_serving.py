"""`edge flash --serve` over a real sshd, to a board with an /etc of its own and a `systemctl` that
really starts and stops what a unit names.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from tests.edge.flash.boards import SshBoard, edge_command, free_port
from tests.edge.flash.conftest import need
from tests.programs import require

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.xdist_group("flash")]

MANAGER = Path(__file__).with_name("service_manager.py")


class ServingBoard(SshBoard):
    """A board with its own /etc, and programs of its own before those of this machine."""

    def __init__(self, folder: Path) -> None:
        self.etc, programs = folder / "etc", folder / "programs"
        shutil.copytree("/etc", self.etc, symlinks=True, ignore=shutil.ignore_patterns("ssl"))
        (self.etc / "avahi/services").mkdir(parents=True, exist_ok=True)
        programs.mkdir()
        (programs / "systemctl").write_text(f'#!/bin/sh\nexec {sys.executable} {MANAGER} "$@"\n')
        (programs / "systemctl").chmod(0o755)
        login = folder / "login"
        login.write_text(
            f"#!/bin/sh\nexec /usr/bin/bwrap --dev-bind / / --bind {self.etc} /etc "
            '/bin/sh -c "${SSH_ORIGINAL_COMMAND:-sh}"\n'
        )
        login.chmod(0o755)
        path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
        super().__init__(folder / "sshd", folder / "root", path, cable=False, login=login)

    def __exit__(self, *error: object) -> None:
        for file in self.etc.glob("standin/*.pid"):
            subprocess.run(
                ["bwrap", "--dev-bind", "/", "/", "--bind", self.etc, "/etc", sys.executable,
                 MANAGER, "stop", file.stem], check=True,
            )  # fmt: skip
        super().__exit__(*error)

    def flash(self, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = edge_command(
            "flash", str(bundle), self.target, "--no-rehearse", "--force", "--min-speed", "0",
            "--max-memory", "0", "--via", "stream", "--json", *options, *self.options,
        )  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    def current(self) -> str | None:
        return Slots(LocalFiles(self.root)).current()

    def unit(self) -> str:
        return (self.etc / "systemd/system/boardfit-serve.service").read_text()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[ServingBoard]:
    need("ssh")
    require("bwrap")
    with ServingBoard(tmp_path / "board") as made:
        yield made


def ask(port: int, token: str) -> dict[str, Any]:
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_release_is_served_and_one_that_does_not_answer_gives_way(
    board: ServingBoard, sample: tuple[Path, Path]
) -> None:
    first, second = sample
    port = free_port()
    done = board.flash(first, f"--serve={port}")
    assert done.returncode == 0, done.stdout + done.stderr
    served = json.loads(done.stdout)["served"]
    assert served["port"] == port and ask(port, served["token"])["choices"][0]["message"]["content"]
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 401
    assert f"--port {port} --lan" in board.unit()
    assert f"<port>{port}</port>" in (board.etc / "avahi/services/boardfit.service").read_text()
    key = board.etc / "boardfit/serve.key"
    assert key.read_text() == served["token"] and key.stat().st_mode & 0o077 == 0
    unit = board.unit()

    with socket.create_server(("0.0.0.0", 0)) as busy:
        refused = board.flash(second, f"--serve={busy.getsockname()[1]}")
    assert refused.returncode != 0
    message = json.loads(refused.stdout)["message"]
    assert "does not start" in message
    assert f"Switched back to {open_bundle(first).id[:12]}" in message
    assert board.current() == open_bundle(first).id and board.unit() == unit
    assert ask(port, served["token"]), "the earlier release is served again, with its token"

    done = board.flash(second, f"--serve={port}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert board.current() == open_bundle(second).id
    answer = ask(port, served["token"])
    assert answer["model"] == "another name", "the token stayed, the model is the new one"
    assert not list(board.etc.glob("systemd/system/*.before"))


def test_a_first_release_that_does_not_answer_leaves_no_unit(
    board: ServingBoard, sample: tuple[Path, Path]
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as busy:
        refused = board.flash(sample[0], f"--serve={busy.getsockname()[1]}")
    assert "does not start" in json.loads(refused.stdout)["message"]
    assert not list(board.etc.glob("systemd/system/boardfit-serve*"))
    assert not list(board.etc.glob("avahi/services/boardfit*"))
    calls = (board.etc / "standin/calls").read_text().split("\n")
    assert "disable boardfit-serve.service" in calls


def test_a_board_without_a_service_manager_is_refused_before_anything_is_sent(
    tmp_path: Path, cargo: tuple[Path, Path]
) -> None:
    need("ssh")
    folder = tmp_path / "board"
    folder.mkdir()
    tools = folder / "tools"
    tools.mkdir()
    for source in ("/usr/bin", "/bin"):
        for program in os.listdir(source):
            if program != "systemctl" and not (tools / program).exists():
                (tools / program).symlink_to(f"{source}/{program}")
    with SshBoard(folder / "sshd", folder / "root", str(tools), cable=False) as board:
        command = edge_command(
            "flash", str(cargo[0]), board.target, "--serve", "--json", "--no-rehearse",
            "--no-gate", "--force", *board.options,
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    message = json.loads(done.stdout)["message"]
    assert "--serve needs what" in message and message.endswith("lacks: systemctl")
    assert not (folder / "root/releases").exists()


def test_a_card_cannot_serve(tmp_path: Path, cargo: tuple[Path, Path]) -> None:
    for target in (f"dir:{tmp_path}/card", f"image:{tmp_path}/x.img"):
        command = edge_command("flash", str(cargo[0]), target, "--serve", "--json", "--no-rehearse")
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert "a running board" in json.loads(done.stdout)["message"]
        assert not (tmp_path / "card/releases").exists()
