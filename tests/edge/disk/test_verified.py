"""What is remembered of verified files: losing it costs time and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.verified import VerifiedFiles

DAMAGED = [
    b"", b"{", b"[" * 100_000, b"{\"a\":" * 50_000, b"\xff\xfe", b"null", b"[]", b"1e999",
    b"{\"1:2:3:4:5\": 5}", b"9" * 5000, bytes(4096),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, damage: bytes) -> None:
    path, file = tmp_path / "verified.json", tmp_path / "model"
    path.write_bytes(damage)
    file.write_bytes(b"x")
    remembered = VerifiedFiles(path)
    assert not remembered.is_known(OpenedFile.open(file), "0" * 64)
    remembered.save()
    assert path.read_bytes() == b"{}"


def test_a_folder_in_its_place_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "verified.json").mkdir()
    VerifiedFiles(tmp_path / "verified.json").save()
