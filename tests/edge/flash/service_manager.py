"""A `systemctl` for a board without systemd: it really starts and stops the process of a unit.

It knows what our units use: ExecStart, Environment, LoadCredential, Type=notify, WatchdogSec.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
STATE = Path("/etc/standin")


def read_unit(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def pid_file(name: str) -> Path:
    return STATE / f"{name}.pid"


def stop(name: str) -> int:
    if not pid_file(name).exists():
        return 0
    pid = int(pid_file(name).read_text())
    pid_file(name).unlink()
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(600):
            os.kill(pid, 0)
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return 0


def start(name: str) -> int:
    unit = read_unit(name)
    private = STATE / "private"
    environment = {"PATH": "/usr/bin:/bin", "WATCHDOG_USEC": f"{unit['WatchdogSec'][0]}000000"}
    for line in unit["Environment"]:
        for word in line.split():
            key, _, value = word.partition("=")
            environment[key] = str(private / value.lstrip("/"))
            Path(environment[key]).mkdir(parents=True, exist_ok=True)
    for line in unit["LoadCredential"]:
        file, _, source = line.partition(":")
        (private / "credentials").mkdir(exist_ok=True)
        shutil.copyfile(source, private / "credentials" / file)
        environment["CREDENTIALS_DIRECTORY"] = str(private / "credentials")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        address = STATE / "notify"
        address.unlink(missing_ok=True)
        heard.bind(str(address))
        heard.settimeout(0.2)
        with (STATE / "log").open("ab") as log:
            process = subprocess.Popen(
                shlex.split(unit["ExecStart"][0]),
                env={**environment, "NOTIFY_SOCKET": str(address)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        pid_file(name).write_text(str(process.pid))
        while process.poll() is None:
            try:
                if heard.recv(100) == b"READY=1":
                    return 0
            except TimeoutError:
                continue
    print(f"Job for {name} failed because the control process exited", file=sys.stderr)
    return 1


def main(command: str, name: str = "") -> int:
    STATE.mkdir(exist_ok=True)
    with (STATE / "calls").open("a") as calls:
        calls.write(f"{command} {name}\n")
    if command == "restart":
        return stop(name) or start(name)
    return stop(name) if command == "stop" else 0


sys.exit(main(*sys.argv[1:]))
