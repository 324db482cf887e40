"""`edge flash --inventory`: the fleet's arguments, its progress and its table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.flash.fleet import BoardResult, flash_boards
from boardfit.edge.flash.inventory import FleetBoard, Inventory, read_inventory
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import format_bytes, format_seconds, printable


def flash_fleet(bundle: Bundle, path: Path, options: Sequence[str], *, as_json: bool) -> None:
    """Flash every board of the inventory at `path`; `options` are given to each `edge flash`.

    Leaves with the first failure's exit code when a board failed or was not begun.
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
        echo(json.dumps(fleet_record(bundle, results)))
    else:
        for line in table(inventory, results):
            echo(line)
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        sys.exit(failed[0].exit_code or 1)


def fleet_record(bundle: Bundle, results: Sequence[BoardResult]) -> dict[str, object]:
    return {
        "kind": "boardfit-fleet",
        "schema": 1,
        "bundle": bundle.id,
        "n_flashed": sum(result.outcome == "flashed" for result in results),
        "n_failed": sum(result.outcome == "failed" for result in results),
        "n_not_started": sum(result.outcome == "not started" for result in results),
        "boards": [result.to_dict() for result in results],
    }


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
    counts = {o: sum(r.outcome == o for r in results) for o in ("flashed", "failed", "not started")}
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
