"""Flash many boards: canaries alone, then waves; stop when too many fail.

Each board is flashed by a process of its own, `edge flash … --json`, so that no board can break
another. A pool of threads waits for them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml
from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import InputError
from boardfit.edge.fields import AnyObject, Flag, Schema, TableOf, Text, Whole, check_fields
from boardfit.edge.flash.session import Done
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.process.child import python_argv, run_child
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import format_bytes, format_seconds, printable

Outcome = Literal["flashed", "failed", "not started"]


@dataclass(frozen=True)
class BoardResult:
    """The outcome of one board. `exit_code` is that of its own `edge flash`."""

    name: str
    target: str
    outcome: Outcome = "not started"
    seconds: float | None = None
    exit_code: int | None = None
    message: str | None = None
    next_step: str | None = None
    report: dict[str, Any] | None = None


def flash_boards(
    inventory: Inventory,
    arguments: Callable[[FleetBoard], Sequence[str]],
    done: Callable[[BoardResult], None],
) -> list[BoardResult]:
    """Flash a fleet; one result per board, in the inventory's order. `arguments` are those of `edge
    flash` for a board, `done` is called as each ends. A failed canary ends everything.
    """
    results = {board.name: BoardResult(board.name, board.target) for board in inventory.boards}
    for number, wave in enumerate(inventory.waves()):
        with ThreadPoolExecutor(inventory.parallel) as pool:
            flashed = [pool.submit(flash_process, board, arguments(board)) for board in wave]
            try:
                for future in as_completed(flashed):
                    result = results[future.result().name] = future.result()
                    done(result)
            except BaseException:  # Ctrl-C: no other board is begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        failed = sum(result.outcome == "failed" for result in results.values())
        if failed > (inventory.max_failures if number else 0):
            break
    return list(results.values())


def flash_process(board: FleetBoard, arguments: Sequence[str]) -> BoardResult:
    """One board's own `edge flash --json`."""
    began_s = time.monotonic()
    argv = python_argv("boardfit", "flash", *arguments, "--json")
    done = Done.from_process(run_child(argv))
    seconds = time.monotonic() - began_s
    record = done.last_record()
    if done.rc == 0 and record.get("kind") == "boardfit-flash":
        return BoardResult(board.name, board.target, "flashed", seconds, 0, report=record)
    lines = done.err.strip().splitlines()
    message = printable(str(record.get("message") or (lines[-1] if lines else "no message")), 1000)
    step = record.get("next_step")
    return BoardResult(board.name, board.target, "failed", seconds, done.rc, message, step)


def flash_fleet(bundle: Bundle, path: Path, options: Sequence[str], *, as_json: bool) -> None:
    """Flash every board of the inventory at `path`; `options` are given to each `edge flash`.
    Leaves with the exit code of the first failure.
    """
    inventory = read_inventory(path)
    for board in inventory.boards:
        if board.bundle is not None:
            open_bundle(board.bundle)
    n_done = 0

    def arguments(board: FleetBoard) -> list[str]:
        path = (board.bundle or bundle.path).absolute()
        return [str(path), board.child_target, "--no-rehearse", *options]

    def done(result: BoardResult) -> None:
        nonlocal n_done
        n_done += 1
        if not as_json:
            echo(
                f"  [{n_done}/{len(inventory.boards)}] {result.name}: {result.outcome} in "
                f"{format_seconds(result.seconds)}",
                err=True,
            )

    results = flash_boards(inventory, arguments, done)
    if as_json:
        counts = {f"n_{o.replace(' ', '_')}": n for o, n in count_outcomes(results).items()}
        record = {"kind": "boardfit-fleet", "schema": 1, "bundle": bundle.id, **counts}
        echo(json.dumps({**record, "boards": [asdict(result) for result in results]}))
    else:
        for line in table(inventory, results):
            echo(line)
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        sys.exit(failed[0].exit_code or 1)


def count_outcomes(results: Sequence[BoardResult]) -> dict[str, int]:
    return {o: sum(r.outcome == o for r in results) for o in ("flashed", "failed", "not started")}


def table(inventory: Inventory, results: Sequence[BoardResult]) -> list[str]:
    """One row per board, then the sums, then why something failed."""
    width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        row = f"{result.name:<{width}}  {result.outcome:<11}  {format_seconds(result.seconds):>11}"
        if result.report is not None:
            health = result.report.get("health") or {}
            speed = health.get("decode_tps")
            row += f"  sent {format_bytes(result.report['n_sent']):>9}  "
            row += f"{speed:.1f} tokens/s" if speed else "speed –"
        lines.append(row.rstrip())
    counts = count_outcomes(results)
    lines.append(", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    for result in results:
        if result.outcome == "failed":
            lines.append(f"{result.name}: {printable(result.message or '', 600)}")
            if result.next_step:
                lines.append(f"  next: {printable(str(result.next_step), 300)}")
    if counts["not started"]:
        lines.append(
            f"stopped: more than {inventory.max_failures} boards failed (max_failures), or a "
            "canary did; flash again to go on, finished boards are skipped"
        )
    return lines


MAX_BOARDS = 1000
DEFAULT_PARALLEL = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS: Schema = {
    "parallel": Whole(1, 256), "max_failures": Whole(), "boards": TableOf(AnyObject(), MAX_BOARDS),
}  # fmt: skip
_BOARD_KEYS: Schema = {"target": Text(), "canary": Flag(), "bundle": Text()}


@dataclass(frozen=True)
class FleetBoard:
    """One board; `bundle` None is the one on the command line."""

    name: str
    target: str
    canary: bool = False
    bundle: Path | None = None

    @property
    def child_target(self) -> str:
        """The target for a child, which has another current folder."""
        found = parse_flash_target(self.target)
        if found.scheme not in ("dir", "image"):
            return self.target
        return str(replace(found, folder=os.path.abspath(found.folder)))


@dataclass(frozen=True)
class Inventory:
    """`max_failures` boards may fail before nothing new is begun."""

    boards: tuple[FleetBoard, ...]
    parallel: int = DEFAULT_PARALLEL
    max_failures: int = 0

    def waves(self) -> list[list[FleetBoard]]:
        """Canaries first, then groups of at most `parallel`."""
        canaries = [board for board in self.boards if board.canary] or list(self.boards[:1])
        rest = [board for board in self.boards if board not in canaries]
        groups = [rest[i : i + self.parallel] for i in range(0, len(rest), self.parallel)]
        return [canaries, *groups]


MAX_INVENTORY_BYTES = 4 * 1024 * 1024


def read_inventory(path: Path) -> Inventory:
    """Read a fleet. Raises InputError that names the file and the entry."""
    try:
        text = OpenedFile.open(path).read(MAX_INVENTORY_BYTES).decode("utf-8")
        document = decode_toml(text)
    except (OSError, UnicodeDecodeError, TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from None
    return parse_inventory(document, path)


def parse_inventory(document: Mapping[str, Any], path: Path) -> Inventory:
    """The inventory in a parsed TOML document. Raises InputError."""
    check_fields(document, _KEYS, str(path))
    boards = document.get("boards") or {}
    if not boards:
        raise InputError(
            f"{path}: 0 boards; expected 1 to {MAX_BOARDS}",
            next_step='[boards.kitchen]\ntarget = "ssh://pi@kitchen/opt/boardfit"',
        )
    found = tuple(_board(name, entry, path) for name, entry in boards.items())
    targets = [board.target for board in found]
    if twice := next((t for t in targets if targets.count(t) > 1), None):
        raise InputError(f"{path}: two boards have the target {printable(twice)}")
    return Inventory(
        found, document.get("parallel", DEFAULT_PARALLEL), document.get("max_failures", 0)
    )


def _board(name: str, entry: Any, path: Path) -> FleetBoard:
    where = f"{path}: boards.{printable(name, 80)}"
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: a name has letters, digits, dots, hyphens and underscores")
    check_fields(entry, _BOARD_KEYS, where, required=frozenset({"target"}))
    try:
        parse_flash_target(entry["target"])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    bundle = path.parent / entry["bundle"] if "bundle" in entry else None
    return FleetBoard(name, entry["target"], entry.get("canary", False), bundle)
