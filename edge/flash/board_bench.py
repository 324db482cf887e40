"""Run `edge bench` on a board, and copy its results to this machine.

The current release runs its own bench. Results lie in `ROOT/results` until they have been taken:
after a connection broke, the next bench brings them too.
"""

import secrets
import shlex
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from boardfit.edge.bench.importers import read_any
from boardfit.edge.bench.store import DIGEST, append_lines, append_results, digest_of
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import EngineError, IntegrityError, UsageError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.gate import bench_script, explain_end, find_edge, has_tools
from boardfit.edge.slots import layout
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import MIB, format_bytes, printable

RESULTS = "results"
MAX_RESULT_BYTES = 12 * MIB
_BENCH_S = 4 * 3600


#: Options of `edge bench`, by name. A phone's static program supports only `--repeats`.
BenchOptions = Mapping[str, int | bool | None]


def bench_board(
    board: Board, options: BenchOptions, output: Path, reporter: Reporter
) -> list[dict[str, Any]]:
    """Measure the current release on a board; append the results to `output`, and return them.

    Raises UsageError for a mounted card, EngineError when nothing can measure or it fails,
    IntegrityError when a result is not as the board's bench wrote it.
    """
    if not board.is_running:
        raise UsageError(
            f"{board.place} is a mounted card, which cannot run a benchmark",
            next_step="put it into its board and use ssh://user@host/path",
        )
    slots = Slots(board.files)
    with slots.hold_lock():
        bundle = slots.bundle(slots.require_current(board.place))
        name = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}.jsonl"
        script = bench_command(board, bundle, f"{RESULTS}/{name}", options)
        board.files.make_folder(RESULTS)
        reporter.stage("measuring on the board (minutes; the board shows nothing meanwhile)")
        done = board.execute(script, timeout_s=_BENCH_S)
        if done.rc != 0:
            raise EngineError(
                f"{board.place}: edge bench failed there: {explain_end(done)}",
                next_step="edge slots check on the board shows whether the release still works",
            )
        reporter.stage("bringing the results")
        return take_results(board, output)


def bench_command(board: Board, bundle: Bundle, result: str, options: BenchOptions) -> str:
    """The shell command that measures, and leaves its results in the file `result`."""
    root = board.files.root
    folder = f"{root}/{layout.bundle_folder(bundle.id)}"
    if has_tools(bundle):
        return bench_script(bundle, folder, f"{root}/{result}", int(options.get("--repeats") or 5))
    edge = find_edge(board, bundle)
    if edge is None:
        raise EngineError(
            f"there is no edge on {board.place}, and its release brings none",
            next_step="flash a bundle of edge build --with-engine",
        )
    words = [w for k, v in options.items() if v for w in ([k] if v is True else [k, str(v)])]
    line = shlex.join([folder, "-o", f"{root}/{result}", *words])
    return f"cd / && {edge} bench {line} >/dev/null"


def take_results(board: Board, output: Path) -> list[dict[str, Any]]:
    """Move every result of the board to the end of `output`, ours byte for byte; the records."""
    taken: list[dict[str, Any]] = []
    files = board.files
    for name, entry in sorted(files.entries(RESULTS).items()):
        if entry.kind != "file" or not name.endswith(".jsonl"):
            continue
        path = f"{RESULTS}/{name}"
        data = files.read(path, MAX_RESULT_BYTES)
        if data is None:
            raise IntegrityError(
                f"{board.place}: {path} is larger than {format_bytes(MAX_RESULT_BYTES)}",
                next_step="copy it by hand, and remove it there",
            )
        taken += keep_results(data, printable(f"{board.place}/{path}"), output)
        files.remove([path])
    return taken


def keep_results(data: bytes, origin: str, output: Path) -> list[dict[str, Any]]:
    """Append what a board has measured to `output`; the records."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "results.jsonl"  # the board's name may be too long for this disk
        copy.write_bytes(data)
        found = read_any(copy)
    records = list(found.results.records)
    if found.tool is not None:
        append_results(output, records)
        return records
    for record in records:
        if DIGEST in record and record[DIGEST] != digest_of(record):
            raise IntegrityError(
                f"{origin} was edited or damaged: the digest of a result differs",
                next_step="remove the file there and measure again",
            )
    append_lines(output, data)
    return records
