"""Boards to flash: a folder, a real sshd and a real adb with our device side, all on this machine.

`with` each of them; `target` is what `edge flash` is given, `env` the environment that it needs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

HERE = Path(__file__).parent
SSHD = Path("/usr/sbin/sshd")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")


class FolderBoard:
    """A card: there is no receiver that could be killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env: dict[str, str] = {}
        self.options: list[str] = []

    @property
    def target(self) -> str:
        return f"dir:{self.root}"

    def kill_receiver(self) -> None:
        """Nobody receives."""


class SshBoard:
    """sshd on a port of its own, reached through a cable that can be cut."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        path: str | None = None,
        *,
        cable: bool = True,
        login: Path | None = None,
        settings: str = "",
    ) -> None:
        self.root, self._folder = root, folder
        self.env: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("host", "user"):
            if not (folder / name).exists():
                keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
                subprocess.run(keygen, check=True)
        self.port = free_port()
        path = path or f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
        (folder / "sshd_config").write_text(
            # Of two lines for one setting sshd takes the first.
            f"{settings}\nPort {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            "UsePAM no\n"
            f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPidFile none\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "MaxStartups 200\n"
            # Another home: the user's own .bashrc may do anything, and be killed while it does.
            f"SetEnv PATH={path} HOME={folder}\n" + (f"ForceCommand {login}\n" if login else "")
        )
        self._server = subprocess.Popen(
            [SSHD, "-D", "-f", folder / "sshd_config", "-E", folder / "sshd.log"]
        )
        wait_for_port(self.port)
        self.cable = Cable(self.port) if cable else None
        self._reached_at = self.cable.port if self.cable else self.port
        key = (folder / "host.pub").read_text()
        (folder / "known").write_text(f"[127.0.0.1]:{self._reached_at} {key}")
        self.config = folder / "config"
        self.config.write_text(
            f"UserKnownHostsFile {folder}/known\nIdentityFile {folder}/user\nIdentitiesOnly yes\n"
            "GlobalKnownHostsFile /dev/null\n"
        )
        self.options = ["--ssh-config", str(self.config)]

    @property
    def target(self) -> str:
        return f"ssh://127.0.0.1:{self._reached_at}{self.root}"

    def kill_receiver(self) -> None:
        """Everything that this sshd has started, as a board's power cut does it."""
        for child in psutil.Process(self._server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def __enter__(self) -> SshBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_receiver()
        self._server.kill()
        self._server.wait()
        if self.cable:
            self.cable.close()


@contextlib.contextmanager
def ssh_fleet(folder: Path, n_boards: int) -> Iterator[tuple[Path, list[SshBoard]]]:
    """sshds, each with its own host key, port and root, which take one user's key; with the client
    configuration that knows them all.
    """
    with contextlib.ExitStack() as stack:
        boards = [
            stack.enter_context(SshBoard(folder / f"sshd{i}", folder / f"root{i}", cable=False))
            for i in range(n_boards)
        ]
        known = "".join((board.config.parent / "known").read_text() for board in boards)
        (folder / "known").write_text(known)
        key = (folder / "sshd0/user.pub").read_text()
        for board in boards[1:]:
            (board.config.parent / "user.pub").write_text(key)
        config = folder / "config"
        config.write_text(
            f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile /dev/null\n"
            f"IdentitiesOnly yes\nIdentityFile {folder}/sshd0/user\n"
        )
        yield config, boards


def write_inventory(path: Path, boards: Sequence[SshBoard], head: str) -> Path:
    """An inventory of `boards`, called pi-00, pi-01, …"""
    rows = [f'[boards.pi-{i:02d}]\ntarget = "{b.target}"\n' for i, b in enumerate(boards)]
    path.write_text(head + "\n" + "".join(rows))
    return path


class AdbBoard:
    """Debian's adb with a server of its own, and our device side behind a cable."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        *,
        secure: bool = False,
        silent: bool = False,
        runner: Sequence[str] = (),
    ) -> None:
        self.root = root
        self._peer_command = [
            sys.executable, str(HERE / "adb_peer.py"), *(["--secure"] if secure else []),
            *(["--silent"] if silent else []),
        ]  # fmt: skip
        self._system = list(runner)
        (folder / "home").mkdir(parents=True, exist_ok=True)
        self.env = {
            "ANDROID_ADB_SERVER_PORT": str(free_port()),
            "HOME": str(folder / "home"),
            "ADB_MDNS": "0",
        }
        self.options: list[str] = []
        self._port = free_port()
        self._peer: subprocess.Popen[bytes] | None = None
        self._start_peer()
        self.cable = Cable(self._port)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.cable.port}"

    @property
    def target(self) -> str:
        return f"adb://{self.serial}{self.root}"

    def adb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["adb", *arguments], env={**os.environ, **self.env}, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip

    def _start_peer(self) -> None:
        command = [*self._peer_command, str(self._port), *self._system]
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        self._peer = subprocess.Popen(
            command, env={**os.environ, "PATH": path},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_port(self._port)

    def kill_receiver(self) -> None:
        """The device loses power and comes back."""
        assert self._peer is not None
        for child in psutil.Process(self._peer.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._peer.kill()
        self._peer.wait()
        self.adb("disconnect", self.serial)
        self._start_peer()

    def __enter__(self) -> AdbBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.adb("kill-server")
        assert self._peer is not None
        self._peer.kill()
        self._peer.wait()
        self.cable.close()


class Cable:
    """A TCP relay to `port` that can be cut: all connections at once, with a reset."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server = socket.socket()
        self._server.bind(("127.0.0.1", 0))
        self._server.listen(64)
        self.port = int(self._server.getsockname()[1])
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open |= {near, far}
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(a, b), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()

    def cut(self) -> None:
        for end in list(self._open):
            with contextlib.suppress(OSError):
                linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def edge_command(*arguments: str, fault: str | None = None) -> list[str]:
    """The command that runs `edge`, with a fault of power_cut.py."""
    power_cut = Path(__file__).with_name("power_cut.py")
    start = ["-m", "boardfit"] if fault is None else [str(power_cut), fault]
    return [sys.executable, *start, *arguments]


class Started:
    """A program in a process group of its own. The group's leader is a sleeper that lives until the
    end: its number cannot pass to somebody else's processes before the group is killed.
    """

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._leader = subprocess.Popen(["sleep", "3600"], preexec_fn=os.setpgrp)
        group = self._leader.pid
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=self._log,
            stderr=self._log, preexec_fn=lambda: os.setpgid(0, group),
        )  # fmt: skip

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """The program alone; what it started lives on."""
        self._process.kill()

    def kill_group(self) -> None:
        """The program and everything that it started."""
        if self._leader.returncode is None:
            os.killpg(self._leader.pid, signal.SIGKILL)
            self._process.wait()
            self._leader.wait()
            self._log.close()


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[Started]:
    """A program that is killed at the end, with all that it started."""
    started = Started(command, env, log)
    try:
        yield started
    finally:
        started.kill_group()
