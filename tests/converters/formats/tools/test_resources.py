"""Refusals before a conversion starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.formats.tools.environments import check_disk, check_memory
from boardfit.edge.errors import DoesNotFitError


def test_enough_passes(tmp_path: Path) -> None:
    check_memory("it", 100, 100, next_step="")
    check_disk("it", 1, tmp_path, next_step="")


def test_the_shortfall_is_stated(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"it takes about .* of memory") as caught:
        check_memory("it", 101, 100, next_step="close programs")
    assert caught.value.shortfall_bytes == 1 and caught.value.next_step == "close programs"
    with pytest.raises(DoesNotFitError, match=r"it takes about .* free") as caught:
        check_disk("it", 1 << 60, tmp_path, next_step="make room")
    assert caught.value.shortfall_bytes
