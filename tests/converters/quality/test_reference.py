"""The stored log-probabilities: written without a mapping, and damaged ones are made again."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from boardfit.converters.quality import reference
from boardfit.converters.quality.texts import QualityText
from boardfit.edge.errors import DoesNotFitError

TEXT = QualityText("t", "0" * 64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path))
    (tmp_path / "quality").mkdir()
    return tmp_path / "quality"


def rows() -> Iterator[np.ndarray]:
    yield np.arange(6, dtype=np.float32).reshape(2, 3)
    yield np.arange(3, dtype=np.float32).reshape(1, 3)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_rows_are_written_block_by_block(cache: Path, kind: type[np.floating]) -> None:
    reference.write_rows(cache / "k.npy", (3, 3), kind, rows())
    found = np.load(cache / "k.npy", mmap_mode="r", allow_pickle=False)
    assert found.dtype == kind and found.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


@pytest.mark.parametrize("at", ["posix_fallocate", "fsync"])
def test_a_full_disk_is_an_error_and_leaves_nothing(
    cache: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, at, full)
    with pytest.raises(DoesNotFitError, match="no room in") as caught:
        reference.write_rows(cache / "k.npy", (3, 3), np.float32, rows())
    assert "BOARDFIT_CACHE" in (caught.value.next_step or "")
    assert not list(cache.iterdir())


RECORD = {
    "about": {}, "window": 4, "n_vocab": 3, "tokens": [1, 2, 3, 4], "positions": [[1, 2, 3]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("json_bytes", "npy_bytes"),
    [
        (b"[" * 100_000, None), (b"", None), (b"null", None), (b"[1]", None), (b"\xff", None),
        (None, b""), (None, b"x"), (None, b"\x93NUMPY\x01\x00\xff\xff"), (None, b"PK\x03\x04"),
        (None, b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'}  \n"),
    ],
)  # fmt: skip
def test_a_damaged_reference_is_none(
    cache: Path, json_bytes: bytes | None, npy_bytes: bytes | None
) -> None:
    reference.write_rows(cache / "k.npy", (3, 3), np.float32, rows())
    (cache / "k.json").write_text(json.dumps(RECORD))
    assert reference.load("k", TEXT) is not None
    if json_bytes is not None:
        (cache / "k.json").write_bytes(json_bytes)
    if npy_bytes is not None:
        (cache / "k.npy").write_bytes(npy_bytes)
    assert reference.load("k", TEXT) is None
