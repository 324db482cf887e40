"""Keys and small signed bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.trust.pins import VARIABLE
from boardfit.edge.trust.signing import SigningKey, load_signing_key, new_key
from tests.edge.flash.cargo import make_bundle


@pytest.fixture(autouse=True)
def no_pins_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("boardfit.edge.trust.pins.SYSTEM_KEYS", tmp_path / "etc/trusted_keys")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[SigningKey, SigningKey]:
    """Two signers; the files are `tmp_path/one`, `one.pub`, `two`, `two.pub`."""
    for name in ("one", "two"):
        new_key(tmp_path / name, None, name)
    return load_signing_key(tmp_path / "one"), load_signing_key(tmp_path / "two")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", {"model.gguf": b"weights " * 4000})


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "other", {"model.gguf": b"other weights " * 4000})
