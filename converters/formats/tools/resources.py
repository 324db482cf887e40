"""Refuse a conversion before it starts when memory or disk is short."""

from __future__ import annotations

import shutil
from pathlib import Path

from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.units import format_bytes


def check_memory(what: str, needed: int, free: int, *, next_step: str) -> None:
    """Raise DoesNotFitError, with the shortfall, when `what` takes more bytes than are free."""
    if needed > free:
        raise DoesNotFitError(
            f"{what} takes about {format_bytes(needed)} of memory, {format_bytes(free)} are free",
            shortfall_bytes=needed - free,
            next_step=next_step,
        )


def check_disk(what: str, needed: int, folder: Path, *, next_step: str) -> None:
    """The same for the disk that `folder` is on."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DoesNotFitError(
            f"{what} takes about {format_bytes(needed)}, {folder} has {format_bytes(free)} free",
            shortfall_bytes=needed - free,
            next_step=next_step,
        )
