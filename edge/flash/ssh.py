"""`ssh://user@host:port/path`: the user's own OpenSSH, with its keys, agents, jump hosts and
~/.ssh/config. It never asks for anything, and host keys are always checked.

One connection carries everything. Its master leaves by itself some seconds after its last use. A
second connection with a quicker cipher carries large files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from functools import cached_property
from pathlib import Path

from boardfit.edge.disk.data_files import find_trouble
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import DeviceError, DeviceUnreachableError, EdgeError
from boardfit.edge.flash.session import Channel, Done, shell_error
from boardfit.edge.flash.shell_files import ShellBoard, send_stream
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.process import child
from boardfit.edge.process.listener import run_limited
from boardfit.edge.terminal.progress import Advance
from boardfit.edge.units import printable

_CONNECT_S, _LOGIN_S, _ALIVE_S, _ALIVE_COUNT, _PERSIST_S = 10, 60, 10, 3, 15
_MAX_WORDS = 1 << 20
#: Twice as quick as OpenSSH's first choice, ChaCha20, where both sides compute AES in hardware
#: (measured: scripts/bench_flash), and slower than it where one does not (Cortex-A72 of a Pi 4).
_QUICK = "aes128-gcm@openssh.com"
#: What Linux lists for a core that computes AES, on x86 and Arm.
HAS_AES = "grep -Eq '^(flags|Features).* aes( |$)' /proc/cpuinfo"
#: A file of this size pays for a connection of its own with a quicker cipher.
_QUICK_LEAST_BYTES = 64 << 20
#: rsync ends by itself when nothing moves for so long; and all of it may take so long.
_RSYNC_SILENCE_S, _PATCH_S = 60, 24 * 3600
_RSYNC_LEAST = (3, 1)


class SshChannel(Channel):
    """OpenSSH with a shared connection. `config` stands in for the user's own ~/.ssh/config."""

    def __init__(
        self, target: FlashTarget, config: Path | None = None, ciphers: str | None = None
    ) -> None:
        assert target.board is not None
        self._flash_target = target
        self._target = target.board
        self._user_config = config
        self._more = {"Ciphers": ciphers} if ciphers else {}
        self.place = str(target)
        if child.find_program("ssh") is None:
            raise DeviceUnreachableError(
                "ssh is not installed", next_step="apt install openssh-client"
            )
        if config is not None and str(config) != os.devnull:
            OpenedFile.open(config)  # raises for a pipe, at which ssh would wait
        # Under /tmp: the path of a socket has about a hundred bytes, and a long TMPDIR eats them.
        base = "/tmp" if Path("/tmp").is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="edge-ssh-", dir=base))
        self._config = ["-F", str(config.absolute())] if config else []

    @property
    def address(self) -> str:
        return f"[{self._target.host}]" if ":" in self._target.host else self._target.host

    def options(self) -> list[str]:
        """Options that ssh and rsync's ssh share, port and user among them."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(_CONNECT_S),
            "ServerAliveInterval": str(_ALIVE_S),
            "ServerAliveCountMax": str(_ALIVE_COUNT),
            "ControlMaster": "auto",
            "ControlPath": str(self._folder / "control"),
            "ControlPersist": str(_PERSIST_S),
            "Compression": "no",
            **self._more,
        }
        if self._target.port is not None:
            options["Port"] = str(self._target.port)
        if self._target.user is not None:
            options["User"] = self._target.user
        return self._config + [part for k, v in options.items() for part in ("-o", f"{k}={v}")]

    def argv(self, script: str) -> list[str]:
        command = f"exec sh -c {shlex.quote(script)}"
        return ["ssh", "-T", *self.options(), "--", self._target.host, command]

    def connect(self) -> None:
        """Open the master. Raises DeviceUnreachableError, and DeviceError when the other side
        prints without end.
        """
        try:
            got = run_limited(
                self.argv("exit 0"), self.place, timeout_s=_LOGIN_S, most_bytes=_MAX_WORDS
            )
        except child.TimeoutExpired:
            raise DeviceUnreachableError(
                f"{self.place} did not accept the login within {_LOGIN_S} s",
                next_step="check that the board is on and reachable, then run it again",
            ) from None
        if got.returncode != 0:
            raise self._unreachable(Done.from_process(got).err, got.returncode)

    def quicker(self) -> SshChannel | None:
        """A connection of its own with a quicker cipher, opened; None where the user's settings or
        a second login do not allow it. Both sides must compute AES in hardware.
        """
        order = quick_ciphers(self._ciphers)
        if order is None:
            return None
        made = SshChannel(self._flash_target, self._user_config, order)
        try:
            made.connect()
        except EdgeError:
            made.close()
            return None
        return made

    @cached_property
    def _ciphers(self) -> str:
        """The ciphers that ssh would offer, the user's own settings considered; `` if unknown."""
        command = ["ssh", "-G", *self.options(), "--", self._target.host]
        output = child.decode_output(child.run_child(command, timeout_s=_LOGIN_S).stdout)
        found = re.search(r"^ciphers (\S+)$", output, re.MULTILINE)
        return found[1] if found else ""

    def find_connection_error(self, done: Done) -> EdgeError | None:
        is_ours = done.rc == 255 and done.err.strip()
        return self._unreachable(done.err, 255) if is_ours else None

    def _unreachable(self, output: str, code: int) -> EdgeError:
        lines = [line.strip() for line in output.splitlines() if line.strip(" @\r")]
        why = printable(lines[-1]) if lines else f"ssh left with {code}"
        name = f"{self._target.user}@{self.address}" if self._target.user else self.address
        port = f" -p {self._target.port}" if self._target.port else ""
        entry = f"[{self._target.host}]:{self._target.port}" if port else self._target.host
        words = {"place": self.place, "why": why, "name": name, "port": port, "entry": entry}
        if known := find_trouble(__file__, "ssh_troubles.toml", output, **words):
            return known
        if code != 255:
            why = f"a login there runs no commands ({why}, exit code {code})"
        return DeviceUnreachableError(
            f"{self.place} cannot be reached: {why}",
            next_step=f"`ssh{port} {name} true` must work without asking for anything",
        )

    def close(self) -> None:
        with contextlib.suppress(OSError, child.SubprocessError):
            if (self._folder / "control").exists():
                child.run_child(
                    ["ssh", *self.options(), "-O", "exit", "--", self._target.host], timeout_s=10
                )
        shutil.rmtree(self._folder, ignore_errors=True)


class SshBoard(ShellBoard):
    _channel: SshChannel

    def __init__(
        self, target: FlashTarget, *, config: Path | None = None, via: str = "auto"
    ) -> None:
        self._via = via
        self._channel = SshChannel(target, config)
        try:
            self._channel.connect()
            super().__init__(self._channel, target.folder)
            self.files.resolve()
        except BaseException:
            self._channel.close()
            raise

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        channel = self._channel
        if source.stat().st_size - offset >= _QUICK_LEAST_BYTES:
            channel = self._quick or channel
        return send_stream(channel, source, f"{self.files.root}/{part}", offset, progress)

    @cached_property
    def _quick(self) -> SshChannel | None:
        """A second connection for what is large; None where it would not be quicker."""
        if not has_aes() or self._channel.run(HAS_AES).rc != 0:
            return None
        return self._channel.quicker()

    def can_patch(self) -> bool:
        return self._via in ("auto", "rsync") and self._rsync

    @cached_property
    def _rsync(self) -> bool:
        if child.find_program("rsync") is None:
            return False
        here = child.run_child(["rsync", "--version"]).stdout
        there = self._channel.run("rsync --version 2>/dev/null; exit 0").out
        return all(is_rsync(text) for text in (here, there))

    def patch(self, source: Path, part: str) -> int:
        shell = shlex.join(["ssh", "-T", *self._channel.options()])
        # A receiver that a dead sender left behind must end before the next one begins.
        lock = shlex.quote(f"{self.files.root}/.receive.lock")
        there = (
            "sh -c 'if flock -w 0 /dev/null true 2>/dev/null; "
            f'then exec flock -w {2 * _RSYNC_SILENCE_S} "$0" rsync "$@"; '
            f'else exec rsync "$@"; fi\' {lock}'
        )
        command = [
            # Times are ignored: a copy made within the second in which the source was written would
            # count as the source, and stay as it is.
            *("rsync", "--inplace", "--ignore-times", "--no-whole-file", "--protect-args"),
            *("--stats", "--no-human-readable", f"--timeout={_RSYNC_SILENCE_S}"),
            *("--rsync-path", there, "-e", shell),
            *("--", str(source.absolute()), f"{self._channel.address}:{self.files.root}/{part}"),
        ]
        env = child.child_environment(LC_ALL="C")
        done = Done.from_process(
            run_limited(command, self.place, timeout_s=_PATCH_S, most_bytes=_MAX_WORDS, env=env)
        )
        if done.rc != 0:
            raise self._rsync_error(done.rc, done.err)
        return rsync_traffic(done.text)

    def _rsync_error(self, code: int, output: str) -> EdgeError:
        if code in (10, 12, 30, 35, 255) and "No space left" not in output:
            return self._channel.find_connection_error(Done(255, b"", output)) or DeviceError(
                f"{self.place}: {printable(output, 300)}"
            )
        return shell_error(self.place, output, code)

    def close(self) -> None:
        if (quick := self.__dict__.get("_quick")) is not None:
            quick.close()
        self._channel.close()


def is_rsync(text: bytes) -> bool:
    """Whether `rsync --version` shows the real one, new enough. macOS ships openrsync, which knows
    neither --protect-args nor --info.
    """
    found = re.match(rb"rsync\s{1,9}version v?([0-9]{1,4})\.([0-9]{1,4})", text)
    return found is not None and (int(found[1]), int(found[2])) >= _RSYNC_LEAST


def rsync_traffic(stats: str) -> int:
    """Bytes that crossed the connection in both directions, from rsync's --stats."""
    found = re.findall(r"Total bytes (?:sent|received): ([0-9,.]{1,24})", stats)
    return sum(int(re.sub(r"[,.]", "", number) or 0) for number in found)


def quick_ciphers(offered: str) -> str | None:
    """`offered`, a list with commas, with the quick cipher first; None where it is first already,
    or not in the list. Nothing is offered that was not before.
    """
    ciphers = offered.split(",")
    if _QUICK not in ciphers or ciphers[0] == _QUICK:
        return None
    return ",".join([_QUICK, *(cipher for cipher in ciphers if cipher != _QUICK)])


def has_aes() -> bool:
    """Whether this machine's cores do; every Mac's do."""
    if not Path("/proc/cpuinfo").exists():
        return True
    return child.run_child(["sh", "-c", HAS_AES]).returncode == 0
