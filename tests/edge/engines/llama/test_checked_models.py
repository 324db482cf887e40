"""Which vocabularies were checked: remembered by hash, and a damaged memory is an empty one."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.llama import checks
from boardfit.edge.engines.llama.checks import CheckedModels
from boardfit.edge.files.gguf import read_header
from tests.edge.engines.tiny_gguf import random_llama


def test_the_newest_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "sub/c.json"
    for i in range(70):
        CheckedModels(path).add(f"{i:064}")
    known = CheckedModels(path)
    assert f"{69:064}" in known and f"{0:064}" not in known and None not in known


@pytest.mark.parametrize(
    "damage", [b"", b"[" * 100_000, b"null", b"[]", b"{}", b'{"rules": 0, "sha256": ["a"]}',
               b'{"rules": 1, "sha256": 5}', b'{"rules": 1, "sha256": [["a"]]}', b"\xff"],
)  # fmt: skip
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "c.json").write_bytes(damage)
    assert "a" not in CheckedModels(tmp_path / "c.json")


def test_a_verified_file_is_looked_at_once_and_a_plain_one_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "cache"))
    path = random_llama(tmp_path / "model.gguf")
    header, looked = read_header(path), []
    monkeypatch.setattr(checks, "_check_tokens", lambda path, header, embeds: looked.append(path))
    plain = OpenedFile.open(path)
    verified = plain.replace(sha256="a" * 64)
    for file in (plain, plain, verified, verified):
        checks.check_vocabulary(file, header)
    assert looked == [plain, plain, verified]
