"""A board behind ssh or adb, read by a small POSIX shell script; the board needs no Python.

The system's own OpenSSH does the talking, so that keys, agents, jump hosts and ~/.ssh/config work
as the user has set them up. It never asks for a password, and never skips the check of host keys.
"""

import re
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import DeviceUnreachableError, UsageError
from boardfit.edge.probe.system import MAX_DUMP_BYTES, CapturedSystem, parse_dump
from boardfit.edge.process.child import TimeoutExpired, find_program
from boardfit.edge.process.listener import run_limited
from boardfit.edge.units import printable

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39}")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,127}")
_CONNECT_S, _TOTAL_S = 10, 60


def probe_script(mark: str) -> str:
    """The program that prints a board's files and outputs behind lines with the mark."""
    return read_text_beside(__file__, "read_board.sh", mark=mark)


@dataclass(frozen=True)
class Target:
    """Where a board is: `scheme` is `ssh` or `adb`; for adb, `host` is the serial number."""

    scheme: str
    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if self.scheme == "ssh" and ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}{f':{self.port}' if self.port else ''}"


def parse_target(text: str) -> Target:
    """`ssh://user@host:22` or `adb://SERIAL`. Raises UsageError for anything else, and for a host
    or user that could be taken for an option of ssh.
    """
    shape = "ssh://user@host[:port] or adb://serial"
    scheme, separator, rest = text.partition("://")
    wrong = UsageError(f"not a place of a board: {printable(text)!r}; expected {shape}")
    # Of a text that is not printable, urlsplit would drop a newline in silence.
    if not text.isprintable() or not separator or scheme not in ("ssh", "adb"):
        raise wrong
    if scheme == "adb":
        if not _SERIAL.fullmatch(rest):
            raise UsageError(
                f"not a serial number: {printable(rest)!r}", next_step="adb devices lists them"
            )
        return Target("adb", rest)
    try:
        parts = urlsplit(text)
        host, user, port = parts.hostname or "", parts.username, parts.port
    except ValueError as error:
        raise UsageError(f"{printable(text)}: {error}; expected {shape}") from None
    if parts.password is not None:
        raise UsageError(
            "a password in an address ends up in logs and histories; boardfit takes none",
            next_step="ssh-copy-id the public key to the board",
        )
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if not _HOST.fullmatch(host) or extra or (user is not None and not _USER.fullmatch(user)):
        raise wrong
    return Target("ssh", host, user, port)


def shell_command(target: Target) -> list[str]:
    """The command line of a shell on the board, the script to come on stdin."""
    if target.scheme == "adb":
        return ["adb", "-s", target.host, "shell", "-T", "sh"]
    command = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    if target.port is not None:
        command += ["-p", str(target.port)]
    if target.user is not None:
        command += ["-l", target.user]
    return [*command, "--", target.host, "sh", "-s"]


def capture(target: Target) -> CapturedSystem:
    """The board's system as text. Raises DeviceUnreachableError with the transport's own words,
    DeviceError when it sends too much, InputError when what it sent is no board's.
    """
    command = shell_command(target)
    if find_program(command[0]) is None:
        package = (
            "openssh-client" if command[0] == "ssh" else "adb, and allow USB debugging on the phone"
        )
        raise DeviceUnreachableError(
            f"{command[0]} is not installed", next_step=f"apt install {package}"
        )
    mark = secrets.token_hex(16)
    script = probe_script(mark).encode()
    try:
        done = run_limited(
            command, str(target), input=script, timeout_s=_TOTAL_S, most_bytes=MAX_DUMP_BYTES
        )
    except TimeoutExpired:
        why = f"{target} did not answer within {_TOTAL_S} s"
        raise DeviceUnreachableError(why, next_step=_suggest_step(target)) from None
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = printable(lines[-1]) if lines else f"{command[0]} left with {done.returncode}"
        raise DeviceUnreachableError(
            f"{target} cannot be reached: {why}", next_step=_suggest_step(target)
        )
    return parse_dump(done.stdout[:MAX_DUMP_BYTES].decode("utf-8", "replace"), mark)


def _suggest_step(target: Target) -> str:
    if target.scheme == "adb":
        return "adb devices must list the phone as `device`"
    port = f" -p {target.port}" if target.port else ""
    user = f"{target.user}@" if target.user else ""
    return f"`ssh{port} {user}{target.host} true` must work without asking for anything"
