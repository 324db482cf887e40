"""Wheels for a board's Python: fetched by pip, kept with their hashes, checked when used again."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from boardfit.converters.board.engine.wheel_file import wheel_name, write_wheel
from boardfit.converters.board.offline.own_wheel import own_wheel
from boardfit.converters.board.offline.wheelhouse import (
    BoardPython,
    describe,
    fetch_wheels,
    load_pins,
    load_wheelhouse,
    select_requirements,
)
from boardfit.edge.engines import ENGINES
from boardfit.edge.errors import EngineMissingError, InputError, IntegrityError

BOARD = BoardPython((3, 11), (2, 36))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()


def make_wheel(folder: Path, name: str, tag: str, extra: str = "", *, version: str = "1.0") -> Path:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n{extra}"
    path = folder / wheel_name(name, version, tag)
    path.write_bytes(write_wheel(name, version, tag, metadata, {f"{name}.py": b"x = 1\n"}))
    return path


def test_a_wheel_and_what_it_requires(tmp_path: Path) -> None:
    native = make_wheel(tmp_path / "links", "fast", "cp311-cp311-manylinux_2_28_aarch64")
    make_wheel(tmp_path / "links", "fast", "cp311-cp311-manylinux_2_28_x86_64")
    make_wheel(tmp_path / "links", "fast", "cp310-cp310-manylinux_2_28_aarch64")
    local = make_wheel(tmp_path, "engine", "py3-none-manylinux_2_34_aarch64", "Requires-Dist: fast")
    said: list[str] = []
    wheels = fetch_wheels(["engine==1.0"], [local], BOARD, said.append)
    assert {wheel.path.name for wheel in wheels} == {local.name, native.name}
    assert [wheel.license for wheel in wheels] == ["MIT", "MIT"]
    assert said

    # Again: from the cache, with the index gone.
    native.unlink()
    said.clear()
    assert fetch_wheels(["engine==1.0"], [local], BOARD, said.append) == wheels
    assert not said


def test_a_damaged_wheelhouse_is_fetched_again(tmp_path: Path) -> None:
    make_wheel(tmp_path / "links", "fast", "py3-none-any")
    wheel = fetch_wheels(["fast"], [], BOARD, print)[0]
    wheel.path.write_bytes(b"PK")
    assert load_wheelhouse(wheel.path.parent) is None
    assert fetch_wheels(["fast"], [], BOARD, print) == [wheel]
    assert wheel.path.stat().st_size > 100
    record = json.loads((wheel.path.parent / "wheelhouse.json").read_text())
    assert record[0]["sha256"] == wheel.sha256


@pytest.mark.parametrize(
    "tag",
    ["py3-none-manylinux_2_38_aarch64", "cp312-cp312-manylinux_2_17_aarch64", "py3-none-win_arm64"],
)
def test_no_wheel_for_the_board(tmp_path: Path, tag: str) -> None:
    make_wheel(tmp_path / "links", "fast", tag)
    with pytest.raises(EngineMissingError, match="fast") as caught:
        fetch_wheels(["fast"], [], BOARD, print)
    assert caught.value.next_step
    assert not list((tmp_path / "cache/wheelhouse").glob("[!.]*"))


def test_what_is_no_wheel(tmp_path: Path) -> None:
    path = tmp_path / "x-1-py3-none-any.whl"
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="is not a wheel"):
        describe(path)


@pytest.mark.parametrize(
    ("metadata", "license"),
    [
        ("License-Expression: BSD-3-Clause\n", "BSD-3-Clause"),
        ("License: Apache 2.0\n", "Apache 2.0"),
        ("Classifier: License :: OSI Approved :: MIT License\n", "MIT License"),
        ("", "see the wheel"),
    ],
)
def test_declared_licences(tmp_path: Path, metadata: str, license: str) -> None:
    path = tmp_path / "x-1-py3-none-any.whl"
    text = f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{metadata}"
    path.write_bytes(write_wheel("x", "1", "py3-none-any", text, {}))
    assert describe(path).license == license


def test_the_pinned_version_is_fetched_and_its_hash_is_checked(tmp_path: Path) -> None:
    old = make_wheel(tmp_path / "links", "fast", "py3-none-any")
    make_wheel(tmp_path / "links", "fast", "py3-none-any", version="2.0")
    sha256 = hashlib.sha256(old.read_bytes()).hexdigest()
    wheels = fetch_wheels(["fast"], [], BOARD, print, {"fast==1.0": sha256})
    assert [wheel.version for wheel in wheels] == ["1.0"]
    with pytest.raises(IntegrityError, match=f"expected {'ab' * 32}"):
        fetch_wheels(["fast"], [], BOARD, print, {"fast==1.0": "ab" * 32})
    with pytest.raises(IntegrityError, match="expected no wheel of that name"):
        fetch_wheels(["fast"], [], BOARD, print, {"slow==1.0": sha256})


def test_a_wheel_of_our_own_needs_no_pin(tmp_path: Path) -> None:
    other = make_wheel(tmp_path / "links", "fast", "py3-none-any")
    own = make_wheel(tmp_path, "engine", "py3-none-any", extra="Requires-Dist: fast")
    pins = {"fast==1.0": hashlib.sha256(other.read_bytes()).hexdigest()}
    assert len(fetch_wheels(["engine==1.0"], [own], BOARD, print, pins)) == 2


PINNED = [(3, 10), (3, 11), (3, 12), (3, 13)]


@pytest.mark.parametrize("python", PINNED)
def test_what_boards_need_is_pinned_in_a_version_that_is_allowed(python: tuple[int, int]) -> None:
    pins = load_pins(python)
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in pins.values())
    versions = dict(pin.split("==") for pin in pins)
    assert len(versions) == len(pins), "a package has two versions"
    board = BoardPython(python, (2, 36))
    for spec in ENGINES.values():
        for text in select_requirements(own_wheel(spec.extra).requirements, board):
            wanted = Requirement(text)
            if wanted.name != "llama-cpp-python" and (wanted.name in versions or python > (3, 10)):
                assert wanted.specifier.contains(versions[wanted.name.lower()]), text


def test_a_python_without_pins_has_none() -> None:
    assert load_pins((3, 99)) == {}
