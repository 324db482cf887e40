"""Which wordings train, which are for decisions (dev) and which are held out: decided by hash.

A wording goes to exactly one split. Within a form the wordings are ranked by a hash of their text,
the lowest ranks are held out, the next are dev. A person who picks held-out wordings picks the
ones that look doable; a hash does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

Split = Literal["train", "dev", "held"]
SPLITS: tuple[Split, ...] = ("train", "dev", "held")

# Answers with at least this many slots are split by combination too: 1 in 8 held, 1 in 8 dev.
COMBINATION_FIELDS = 2
_COMBINATION_PARTS = 8


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def wordings_of(wordings: Sequence[str], split: Split, salt: str = "") -> tuple[str, ...]:
    """The wordings of one split, in file order."""
    ranked = sorted(wordings, key=lambda text: _rank(salt + text))
    n_held = max(1, round(0.15 * len(ranked)))
    n_dev = max(1, round(0.10 * len(ranked)))
    parts = {
        "held": ranked[:n_held],
        "dev": ranked[n_held : n_held + n_dev],
        "train": ranked[n_held + n_dev :],
    }
    chosen = set(parts[split])
    return tuple(text for text in wordings if text in chosen)


def combination_split(fields: dict[str, Any]) -> Split | None:
    """The split that owns this combination of slot values; None when any split may use it."""
    if len(fields) < COMBINATION_FIELDS:
        return None
    part = _rank(json.dumps(fields, sort_keys=True)) % _COMBINATION_PARTS
    return "held" if part == 0 else "dev" if part == 1 else "train"
