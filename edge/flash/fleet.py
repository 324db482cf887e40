"""Flash many boards: canaries alone, then waves; stop when too many fail.

pyinfra's engine runs a wave: its inventory holds the boards, its pool runs one operation on all of
them in parallel, its failed hosts are ours. Its own connections are not used: paramiko reads only
part of ~/.ssh/config, knows no adb, and `files.put` neither resumes nor renames (a killed upload
leaves half a file under the final name). The operation is therefore a process `edge flash … --json`
per board, which is also what keeps gevent's greenlets from blocking each other.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.flash.inventory import FleetBoard, Inventory
from boardfit.edge.process.child import python_argv, run_child_in_greenlet
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable

Outcome = Literal["flashed", "failed", "not started"]


@dataclass(frozen=True)
class BoardResult:
    """The outcome of one board. `exit_code` is that of its own `edge flash`."""

    name: str
    target: str
    outcome: Outcome
    seconds: float | None = None
    exit_code: int | None = None
    message: str | None = None
    next_step: str | None = None
    report: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def flash_boards(
    inventory: Inventory,
    arguments: Callable[[FleetBoard], Sequence[str]],
    done: Callable[[BoardResult], None],
) -> list[BoardResult]:
    """Flash a fleet; `arguments` are those of `edge flash` for one board, `done` is called as each
    board ends. A failed canary ends everything. Returns one result per board, in the inventory's
    order.

    Raises EngineMissingError when pyinfra is not installed.
    """
    results: dict[str, BoardResult] = {}

    def finish(result: BoardResult) -> None:
        results[result.name] = result
        done(result)

    for number, wave in enumerate(inventory.waves()):
        run_wave(wave, inventory.parallel, arguments, finish)
        failed = sum(result.outcome == "failed" for result in results.values())
        if failed > (inventory.max_failures if number else 0):
            break
    return [
        results.get(board.name) or BoardResult(board.name, board.target, "not started")
        for board in inventory.boards
    ]


def run_wave(
    wave: Sequence[FleetBoard],
    parallel: int,
    arguments: Callable[[FleetBoard], Sequence[str]],
    finish: Callable[[BoardResult], None],
) -> None:
    """One operation of pyinfra over some boards. A board that fails does not stop the others."""
    try:
        api: Any = importlib.import_module("pyinfra.api")
        failure: type[Exception] = importlib.import_module("pyinfra.api.exceptions").PyinfraError
        add_op: Any = importlib.import_module("pyinfra.api.operation").add_op
        run_ops: Any = importlib.import_module("pyinfra.api.operations").run_ops
        python: Any = importlib.import_module("pyinfra.operations.python")
    except ImportError as error:
        raise EngineMissingError(
            f"--inventory needs the Python package {error.name!r}, which is not installed",
            next_step=install_line("fleet"),
        ) from None
    boards = {board.name: board for board in wave}
    config = api.Config(PARALLEL=min(parallel, len(boards)))
    state = api.State(api.Inventory((list(boards), {})), config)
    logging.getLogger("pyinfra").setLevel(logging.CRITICAL)  # our own results hold more

    def flash_one(state: Any, host: Any) -> bool:
        board = boards[host.name]
        result = flash_process(board, arguments(board))
        finish(result)
        return result.outcome == "flashed"

    for host in state.inventory:
        state.activate_host(host)  # without connecting: the operation has its own way there
    add_op(state, python.call, function=flash_one)
    # "No hosts remaining": all of this wave failed, and the results show why.
    with contextlib.suppress(failure):
        run_ops(state)


def flash_process(board: FleetBoard, arguments: Sequence[str]) -> BoardResult:
    """One board's own `edge flash --json`; waits in gevent's way."""
    began_s = time.monotonic()
    done = run_child_in_greenlet(python_argv("boardfit", "flash", *arguments, "--json"))
    seconds = time.monotonic() - began_s
    record = last_record(done.stdout)
    if done.returncode == 0 and record.get("kind") == "boardfit-flash":
        return BoardResult(board.name, board.target, "flashed", seconds, 0, report=record)
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    message = record.get("message") or (lines[-1] if lines else "no message")
    return BoardResult(
        board.name,
        board.target,
        "failed",
        seconds,
        done.returncode,
        printable(str(message), 1000),
        record.get("next_step"),
    )


def last_record(out: bytes) -> dict[str, Any]:
    """The JSON object on the last line; empty when there is none."""
    lines = out.decode("utf-8", "replace").strip().splitlines()
    try:
        record = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
