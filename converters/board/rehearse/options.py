"""How to rehearse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.board.rehearse.sandbox import How

PROMPT = "Turn on the light in the kitchen."
#: Tokens that must agree, near ties included. Not all: rounding differs between kernels.
MIN_AGREEMENT = 0.9


@dataclass(frozen=True)
class Options:
    """How to rehearse. `how` fixes the way to run arm64 programs, `root` a root file system of
    one's own; `free_bytes` replaces the profile's free memory.
    """

    prompt: str = PROMPT
    n_tokens: int = 16
    how: How | None = None
    root: Path | None = None
    free_bytes: int | None = None
    min_agreement: float = MIN_AGREEMENT
