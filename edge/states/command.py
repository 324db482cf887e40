"""`edge states`: list, measure or delete saved KV states.

edge states BUNDLE
edge states --clear
"""

import json
import time
from pathlib import Path

import click

from boardfit.edge.engines.kv_state import read_state_header
from boardfit.edge.errors import EdgeError, InputError
from boardfit.edge.states.place import VARIABLE, beside_bundle, limit_bytes, user_folder
from boardfit.edge.states.store import MAX_TOKENS, StoredState, clear, entries
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import format_bytes, format_seconds, printable

SCHEMA = 1


#: A state, its tokens and its engine; None for a file that is none.
StateRow = tuple[StoredState, int | None, str | None]


@click.command(short_help="List, measure or delete saved KV states.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--clear",
    "clears",
    is_flag=True,
    help="Delete all states. They are computed again when needed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line.")
def states(model: Path | None, clears: bool, as_json: bool) -> None:
    """List, measure or delete saved KV states.

    A state saves the cost of prefilling a system prompt or a saved conversation after a restart.
    With MODEL (a bundle directory), the states beside it are used. Without MODEL, for a plain file,
    or for a read-only folder, the states are in the user's cache.

    BOARDFIT_STATES limits the size of one folder, for example 64MiB; "off" stores none.
    """
    if model is not None and not model.exists():
        raise InputError(
            f"no such file or directory: {str(model)!r}", next_step="edge states BUNDLE"
        )
    folder = beside_bundle(model) if model is not None and model.is_dir() else user_folder()
    freed = clear(folder) if clears else None
    rows = [read_row(entry) for entry in entries(folder) if entry.n_bytes]
    if as_json:
        echo(json.dumps(to_record(folder, rows, freed)))
        return
    if freed is not None:
        echo(f"{format_bytes(freed)} freed in {printable(str(folder))}")
        return
    for line in table(folder, rows):
        echo(line)


def read_row(entry: StoredState) -> StateRow:
    """Read a state's footer; its hash is not checked."""
    try:
        header = read_state_header(entry.path, MAX_TOKENS)
    except EdgeError:
        return entry, None, None
    return entry, len(header.tokens), f"{header.footer.get('engine')}"[:40]


def table(folder: Path, rows: list[StateRow]) -> list[str]:
    """The states for a person, the latest used first."""
    limit = limit_bytes()
    total = sum(entry.n_bytes for entry, _, _ in rows)
    room = f"of {format_bytes(limit)}" if limit else f"({VARIABLE} is off)"
    lines = []
    if rows:
        lines.append(f"{'model':<32} {'tokens':>7} {'size':>10}  {'last used':<16} engine")
    for entry, n_tokens, engine in rows:
        tokens = "damaged" if n_tokens is None else f"{n_tokens}"
        ago = format_seconds(max(0.0, time.time() - entry.used_s)) + " ago"
        lines.append(
            f"{printable(entry.label, 32):<32} {tokens:>7} "
            f"{format_bytes(entry.n_bytes):>10}  {ago:<16} {printable(engine or '–')}"
        )
    count = f"{len(rows)} state{'' if len(rows) == 1 else 's'}" if rows else "no states"
    return [*lines, f"{count}, {format_bytes(total)} {room}, in {printable(str(folder))}"]


def to_record(folder: Path, rows: list[StateRow], freed: int | None) -> dict[str, object]:
    """The same as plain data; times are seconds since the epoch."""
    return {
        "schema": SCHEMA,
        "kind": "boardfit-states",
        "folder": str(folder),
        "limit_bytes": limit_bytes(),
        "freed_bytes": freed,
        "states": [
            {
                "file": entry.path.name,
                "model": entry.label,
                "n_tokens": n_tokens,
                "n_bytes": entry.n_bytes,
                "used_s": entry.used_s,
                "engine": engine,
            }
            for entry, n_tokens, engine in rows
        ],
    }
