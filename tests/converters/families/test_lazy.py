"""Rows that are computed when they are read: what stays lazy, and that nothing else differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.layout import SourceTensor, copy, interleave_rows, split
from boardfit.converters.families.lazy import as_floats, lazy_tensor
from boardfit.converters.families.qwen import Qwen3Moe
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from tests.converters.families.cases_moe import CASES
from tests.converters.families.checkpoints import write_case

VALUES = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)


class Recorder:
    """A lazy tensor of VALUES, and the numbers of rows that it was asked for."""

    def __init__(self, shape: tuple[int, ...] = VALUES.shape) -> None:
        self.asked: list[int] = []
        self.tensor = lazy_tensor("w", shape, self.compute)

    def compute(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(len(rows))
        return VALUES.reshape(-1, 8)[rows]


@pytest.mark.parametrize(
    "take",
    [
        lambda a: a[1],
        lambda a: a[1, 2:5],
        lambda a: a[:, 1:3, :],
        lambda a: a[:, 1:3][2],
        lambda a: a.reshape(-1, 8)[5:7],
        lambda a: a.reshape((24, 8))[np.array([7, 3, 3])],
        lambda a: a.reshape(8, -1, 8)[3],
        lambda a: a[2][1],
        lambda a: a[0][:0],
    ],
)
def test_rows_are_computed_alone(take: Any) -> None:
    recorder, expected = Recorder(), take(VALUES)
    found = take(recorder.tensor.data)
    assert recorder.asked == [] and found.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert recorder.asked == [expected.size // 8]


@pytest.mark.parametrize(
    "take",
    [
        lambda a: a[..., 3],
        lambda a: a[0, 1, 2],
        lambda a: a[:, None],
        lambda a: a.reshape(6, 32),
        lambda a: a.reshape(-1),
        lambda a: a.transpose(2, 0, 1),
        lambda a: a.T,
        lambda a: -np.exp(a / 1000) + a,
        lambda a: a.astype(np.float16),
        lambda a: np.concatenate([a[0], a[1]]),
    ],
)
def test_everything_else_computes_all(take: Any) -> None:
    found = take(Recorder().tensor.data)
    np.testing.assert_array_equal(np.asarray(found), take(VALUES))


def test_rules_read_what_is_asked_for() -> None:
    flat = Recorder((24, 8))
    (target,) = copy("t.weight", 24, 8).build("t.weight", flat.tensor)
    assert type(target.read(3, 5)) is np.ndarray and flat.asked == [2]
    (target,) = interleave_rows("q.weight", 24, 8, n_head=3).build("q.weight", flat.tensor)
    np.testing.assert_array_equal(target.read(0, 2), VALUES.reshape(-1, 8)[[0, 4]])
    stacked = Recorder()
    parts = split((("a", 2), ("b", 4)), 4, 6, 8).build("a", stacked.tensor)
    np.testing.assert_array_equal(
        parts[1].read(3, 6), np.concatenate([VALUES[0, 5:], VALUES[1, 2:4]])
    )
    assert stacked.asked == [1, 2]


def test_widened_floats_are_exact() -> None:
    half = SourceTensor("w", "BF16", (2, 3), np.arange(6, dtype=np.uint16).reshape(2, 3) + 0x3F80)
    wide = as_floats(half)
    assert wide.dtype == "F32" and as_floats(wide) is wide
    expected = (half.data.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.asarray(wide.data), expected)


def test_experts_of_two_types_are_stacked_as_floats(tmp_path: Path) -> None:
    """An adapter or a quantizer may touch some experts of a layer only."""
    case = next(case for case in CASES if case.config["model_type"] == "qwen3_moe")
    write_case(case, tmp_path)
    plain = SafetensorsCheckpoint(tmp_path, case.config)

    class Mixed(SafetensorsCheckpoint):
        def tensor(self, name: str) -> SourceTensor:
            source = super().tensor(name)
            return as_floats(source) if ".experts.1." in name else source

    mixed = Mixed(tmp_path, case.config)
    n_mixed = 0
    for ours, theirs in zip(Qwen3Moe(mixed).tensors(), Qwen3Moe(plain).tensors(), strict=True):
        if ours.source_type == theirs.source_type:
            continue
        n_mixed += 1
        assert "_exps" in ours.name and ours.source_type == "F32"
        bits = np.asarray(theirs.read(0, theirs.n_rows)).astype(np.uint32)
        np.testing.assert_array_equal(ours.read(0, ours.n_rows), (bits << 16).view(np.float32))
    assert n_mixed
