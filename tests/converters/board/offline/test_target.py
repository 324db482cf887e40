"""Which Python a board's wheels are for, and which requirements hold there."""

from __future__ import annotations

import pytest

from boardfit.converters.board.offline.own_wheel import own_wheel
from boardfit.converters.board.offline.wheelhouse import (
    BoardPython,
    board_python,
    select_requirements,
)
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.errors import EngineMissingError, InputError, UsageError


@pytest.mark.parametrize(
    ("board", "python", "glibc"),
    [
        ("raspberry-pi-5-8gb", (3, 11), (2, 36)),
        ("raspberry-pi-zero-2-w", (3, 11), (2, 36)),
        ("jetson-orin-nano-8gb", (3, 10), (2, 35)),
    ],
)
def test_what_the_profile_says(board: str, python: tuple[int, int], glibc: tuple[int, int]) -> None:
    assert board_python(find_profile(board)) == BoardPython(python, glibc)


def test_a_newer_image_is_named_by_hand() -> None:
    assert board_python(find_profile("pi5"), "3.13").abi == "cp313"


@pytest.mark.parametrize(
    ("board", "python", "says"),
    [
        ("jetson-nano-4gb", None, "glibc 2.27"),
        ("n150-mini-pc-8gb", None, "64-bit Arm"),
        ("galaxy-s23", None, "no glibc"),
        ("pi5", "3.9", "needs 3.10"),
        ("pi5", "2.7", "expected a version like 3.11"),
        ("pi5", "three", "expected a version like 3.11"),
    ],
)
def test_where_our_engines_cannot_run(board: str, python: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        board_python(find_profile(board), python)
    assert caught.value.next_step


def test_every_older_platform_tag_is_named() -> None:
    tags = BoardPython((3, 11), (2, 36)).platforms
    assert tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= {*tags}
    assert "manylinux_2_37_aarch64" not in tags


def test_markers_are_those_of_the_board_not_of_this_python() -> None:
    requirements = ["click>=8", "tomli>=2.0; python_version < '3.11'"]
    old, new = BoardPython((3, 10), (2, 35)), BoardPython((3, 11), (2, 36))
    assert select_requirements(requirements, old) == ["click>=8", "tomli>=2.0"]
    assert select_requirements(requirements, new) == ["click>=8"]
    with pytest.raises(InputError, match="sys_platform"):
        select_requirements(["thing; sys_platform == 'win32'"], new)


def test_our_own_wheel_is_the_boards_side_alone() -> None:
    import io
    import zipfile

    wheel = own_wheel("llama")
    assert wheel.data == own_wheel("llama").data
    assert any(r.startswith("llama-cpp-python") for r in wheel.requirements)
    with zipfile.ZipFile(io.BytesIO(wheel.data)) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        rooms = {"".join(name.split("/")[1:2]) for name in archive.namelist()}
        entry_points = archive.read("boardfit-0.1.0.dist-info/entry_points.txt").decode()
        metadata = archive.read("boardfit-0.1.0.dist-info/METADATA").decode()
    assert tops == {"boardfit", "boardfit-0.1.0.dist-info"}
    assert {"__init__.py", "edge", "device_profiles"} <= rooms and "converters" not in rooms
    assert "converters" not in entry_points
    # Our name on the index is a stranger's: pip must never be asked for it.
    assert not any(r.lower().startswith("boardfit") for r in wheel.requirements)
    assert "Requires-Dist: boardfit" not in metadata
    assert "Requires-Dist: ai-edge-litert==2.3.0; extra == 'tflite'" in metadata


def test_an_unknown_extra_is_named() -> None:
    with pytest.raises(EngineMissingError, match="warp-drive"):
        own_wheel("warp-drive")
