"""Rounding: formats as the kernels read them, errors no larger than those of simpler ways."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("numerics_driver.py")
ROOT = Path(__file__).parents[4]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(litert_python: Path) -> dict[str, Any]:
    result = subprocess.run(
        [litert_python, DRIVER],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(json.loads(result.stdout))


def test_scales_by_error_beat_scales_by_magnitude(seen: dict[str, Any]) -> None:
    rmse = seen["rmse"]
    for name in ("int4", "int4-b32", "int4-b64", "int4-b128"):
        assert rmse[f"{name} mse"] < 0.95 * rmse[f"{name} minmax"]
    assert rmse["int8 mse"] <= rmse["int8 minmax"]


def test_smaller_blocks_err_less(seen: dict[str, Any]) -> None:
    errors = [seen["rmse"][f"{n} mse"] for n in ("int4-b32", "int4-b64", "int4-b128", "int4")]
    assert errors == sorted(errors)


def test_sizes(seen: dict[str, Any]) -> None:
    assert seen["bytes"]["int4-b32"] == seen["bytes"]["int4"] == 96 * 256 // 2
    assert seen["bytes"]["int8"] == seen["bytes"]["int8-t"] == 96 * 256


def test_scales_of_blocks_are_bfloat16(seen: dict[str, Any]) -> None:
    # XNNPACK computes with them as such: more bits would be rounded away, differently.
    assert seen["scale_bits"]["int4-b32"] == 0
    assert seen["scale_bits"]["int4"] > 0


def test_the_first_value_is_in_the_low_half(seen: dict[str, Any]) -> None:
    assert seen["pairs"] == [0xF1, 0x78]


def test_rounding_by_activations_spares_the_outputs(seen: dict[str, Any]) -> None:
    plain, rounded = seen["outputs"]
    assert rounded < 0.6 * plain
    assert seen["range"] == [-8, 7], "all 16 values are used"


def test_zeros_and_dead_inputs_are_no_trouble(seen: dict[str, Any]) -> None:
    assert seen["finite"]
