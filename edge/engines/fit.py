"""Check that memory suffices for a model, before anything is loaded."""

from pathlib import Path

import psutil

from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.probe.memory import read_limits
from boardfit.edge.probe.system import LocalSystem
from boardfit.edge.units import format_bytes


def available_bytes(root: Path = Path("/")) -> int:
    """Memory this process may still take: what the kernel, or a control group's limit, leaves."""
    limits = read_limits(LocalSystem(root))
    left = [limit.limit_bytes - (limit.used_bytes or 0) for limit in limits]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def check_fits(need_bytes: int, available: int, name: str) -> None:
    """Raise DoesNotFitError, with the figures, if `need_bytes` is more than `available`."""
    short = need_bytes - available
    if short <= 0:
        return
    raise DoesNotFitError(
        f"{name} needs about {format_bytes(need_bytes)} of memory and {format_bytes(available)} "
        f"are free now: {format_bytes(short)} short",
        shortfall_bytes=short,
        next_step="close other programs, take a smaller --ctx or a smaller recipe; "
        "use --no-memory-check to load it anyway",
    )
