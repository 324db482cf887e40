"""What `import boardfit` offers on a board: `open`, `flash`, `bench`, `devices`."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from boardfit.device_profiles.catalog import all_profiles
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge import errors
from boardfit.edge.bench.language_model import measure_language_model
from boardfit.edge.bench.request import DEFAULT_REPEATS, BenchRequest
from boardfit.edge.bench.sampler import read_memory
from boardfit.edge.bench.store import append_results
from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.chat.model import Model, Reply
from boardfit.edge.chat.model import open_chat as open
from boardfit.edge.engines.target import open_model
from boardfit.edge.flash.checks import check_board
from boardfit.edge.flash.connect import connect
from boardfit.edge.flash.flash import FlashOptions, FlashReport
from boardfit.edge.flash.flash import flash as flash_board
from boardfit.edge.flash.gate import rehearse
from boardfit.edge.flash.target import MEDIA, parse_flash_target
from boardfit.edge.terminal.progress import Reporter

__all__ = ["Model", "Reply", "bench", "devices", "errors", "flash", "open"]


def devices() -> dict[str, DeviceProfile]:
    """The boards that have a profile, by id: those that ship, and those that you have probed."""
    return all_profiles()


def flash(
    bundle: Bundle | str | Path,
    target: str,
    *,
    options: FlashOptions | None = None,
    force: bool = False,
    ssh_config: Path | None = None,
) -> FlashReport:
    """Put a bundle on a board and make it current: dir:/path, ssh://user@host/path, adb://serial.

    A bundle that carries an engine is rehearsed first. `force` flashes a board that is not the one
    planned for. Raises UsageError for an image or a card: `edge flash` does those.
    """
    place = parse_flash_target(target)
    if place.scheme in MEDIA:
        raise errors.UsageError(
            f"{target} holds a whole system", next_step=f"edge flash BUNDLE {target}"
        )
    path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    opened, reporter = open_bundle(path), Reporter()
    rehearsed = rehearse(opened, reporter)
    with closing(connect(place, ssh_config=ssh_config)) as board:
        notes = check_board(board, opened, force=force)
        report = flash_board(opened, board, options or FlashOptions(), reporter)
    report.notes[:0] = [*notes, *([rehearsed] if rehearsed else [])]
    return report


def bench(
    model: str | Path,
    *,
    quick: bool = False,
    repeats: int = DEFAULT_REPEATS,
    output: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Measure a bundle or a model file on this machine: one record per test, with raw timestamps.

    With `output` the records are appended to that file, which `edge report` reads.
    """
    baseline = asdict(read_memory())
    request = BenchRequest(Path(model), quick=quick, repeats=repeats)
    records = measure_language_model(open_model(request.model), request, baseline, quiet=True)
    if output is not None:
        append_results(Path(output), records)
    return records
