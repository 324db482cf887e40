"""Jobs that `test_worker.py` has done by a worker; standard library only."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

from boardfit.edge.errors import UnsupportedModelError


def run(request: dict[str, Any], report: Any) -> dict[str, Any]:
    return globals()["job_" + request["job"]](request, report)


def job_echo(request: dict[str, Any], report: Any) -> dict[str, Any]:
    print("noise on stdout")
    report.say("working")
    report.progress(1, 2)
    return {"got": request["value"], "path": sys.path[0], "environment": dict(os.environ)}


def job_refuse(request: dict[str, Any], report: Any) -> dict[str, Any]:
    raise UnsupportedModelError("not this one", next_step="take another")


def job_crash(request: dict[str, Any], report: Any) -> dict[str, Any]:
    print("last words", file=sys.stderr, flush=True)
    os.abort()


def job_raise(request: dict[str, Any], report: Any) -> dict[str, Any]:
    raise KeyError("gone")


def job_connect(request: dict[str, Any], report: Any) -> dict[str, Any]:
    socket.create_connection(("127.0.0.1", request["port"]))
    return {}


def job_fill(request: dict[str, Any], report: Any) -> dict[str, Any]:
    held = []
    while True:
        held.append(bytearray(16 << 20))


def job_sleep(request: dict[str, Any], report: Any) -> dict[str, Any]:
    report.say(str(os.getpid()))
    time.sleep(60)
    return {}


def job_write(request: dict[str, Any], report: Any) -> dict[str, Any]:
    found = {}
    for name in request["paths"]:
        try:
            with open(name, "w") as file:
                file.write("x")
            found[name] = "written"
        except OSError as error:
            found[name] = type(error).__name__
    return {"found": found, "secret": os.environ.get("HF_TOKEN"), "shown": _read(request["shown"])}


def _read(name: str) -> str | None:
    try:
        with open(name) as file:
            return file.read()
    except OSError:
        return None
