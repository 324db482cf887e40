"""Measure how far the outputs of one network are from another's."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def compare_outputs(names: Sequence[str], reference: Sequence[Any], got: Sequence[Any]) -> Any:
    """By output name: `relative_rms` = ‖got − reference‖ / ‖reference‖, `max_abs` the largest
    difference, `snr_db` = −20·log10(relative_rms) (None where nothing differs). Outputs that are no
    numbers or differ in shape are left out.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, want, have in zip(names, reference, got, strict=True):
        want, have = np.asarray(want), np.asarray(have)
        if want.shape != have.shape or want.dtype.kind not in "fiub" or not want.size:
            continue
        left = have.astype(np.float64) - want.astype(np.float64)
        size = float(np.linalg.norm(want.astype(np.float64)))
        relative = float(np.linalg.norm(left)) / size if size else 0.0
        found[name] = {
            "relative_rms": relative,
            "max_abs": float(np.abs(left).max()),
            "snr_db": -20 * float(np.log10(relative)) if relative > 0 else None,
        }
    return found
