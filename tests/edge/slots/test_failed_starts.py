"""Failed starts are counted by the unit's own command lines, run here as systemd runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.edge.flash.service_units import service_unit
from boardfit.edge.flash.slots_command import slots as slots_command
from boardfit.edge.slots.failed_starts import FAILED_STARTS, MAX_FAILED
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.layout import release_folder
from boardfit.edge.slots.store import Slots
from tests.edge.flash.cargo import PLAN
from tests.edge.slots.test_store import put
from tests.programs import require


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    made = Slots(LocalFiles(tmp_path / "board"))
    made.files.prepare()
    return made


def command(root: str, setting: str, folder: Path) -> list[str]:
    """The words of a command line of the unit, as systemd takes them apart. `setpriv` is played by
    a program that only runs what follows, so that no root is needed.
    """
    lines = service_unit("x", PLAN, root).splitlines()
    [line] = [line for line in lines if line.startswith(f"{setting}=")]
    prefix, *quoted = line.partition("=")[2].split("'")
    assert prefix == "-+/bin/sh -c " and [*quoted[1::2]] == [" ", ""]
    assert "\\" not in line and "%" not in line
    folder.mkdir(exist_ok=True)
    (folder / "setpriv").write_text('#!/bin/sh\nshift 6\nexec "$@"\n')
    (folder / "setpriv").chmod(0o755)
    return ["/bin/sh", "-c", *(text.replace("$$", "$") for text in quoted[::2])]


def start(slots: Slots, tmp_path: Path, *, good: bool = False) -> str:
    env = {"PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}"}
    output = ""
    for setting in ("ExecStartPre", *(["ExecStartPost"] if good else [])):
        words = command(slots.files.root, setting, tmp_path / "programs")
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=True)
        assert not done.stderr
        output += done.stdout
    return output


def failures(slots: Slots) -> dict[str, int]:
    return {r.id: r.facts.get("failed_starts", 0) for r in slots.releases()}


def test_after_three_failed_starts_the_one_before_is_current(slots: Slots, tmp_path: Path) -> None:
    a, b, c = (put(slots, tmp_path, text) for text in "abc")
    for n in range(1, MAX_FAILED + 1):
        assert not start(slots, tmp_path)
        assert slots.current() == c and failures(slots)[c] == n
    assert f"release {b} is current now" in start(slots, tmp_path)
    assert slots.current() == b and failures(slots) == {a: 0, b: 1, c: MAX_FAILED}
    start(slots, tmp_path, good=True)
    assert slots.current() == b and failures(slots) == {a: 0, b: 0, c: MAX_FAILED}
    done = CliRunner().invoke(slots_command, ["list", f"dir:{slots.files.root}"])
    assert "3 failed starts; it gave way" in done.output
    slots.activate(c)  # flashed again: it has another chance
    assert failures(slots)[c] == 0


def test_a_good_start_forgets_the_bad_ones(slots: Slots, tmp_path: Path) -> None:
    a, b = (put(slots, tmp_path, text) for text in "ab")
    for _ in range(2 * MAX_FAILED):
        start(slots, tmp_path)
        start(slots, tmp_path, good=True)
    assert slots.current() == b and failures(slots) == {a: 0, b: 0}


def test_where_all_fail_nothing_goes_back_and_forth(slots: Slots, tmp_path: Path) -> None:
    a, b = (put(slots, tmp_path, text) for text in "ab")
    for _ in range(2 * MAX_FAILED):
        start(slots, tmp_path)
    assert slots.current() == a
    for _ in range(20):
        start(slots, tmp_path)
    assert slots.current() == a and failures(slots) == {a: 9, b: MAX_FAILED}
    assert slots.rollback(b[:9]) == (a, b) and failures(slots)[b] == 0


def test_a_removed_release_is_not_gone_back_to(slots: Slots, tmp_path: Path) -> None:
    a, b, c = (put(slots, tmp_path, text) for text in "abc")
    slots.remove([b])
    for _ in range(MAX_FAILED + 1):
        start(slots, tmp_path)
    assert slots.current() == a and c in slots.present()


def test_the_only_release_stays(slots: Slots, tmp_path: Path) -> None:
    only = put(slots, tmp_path, "a")
    for _ in range(MAX_FAILED + 2):
        start(slots, tmp_path)
    assert slots.current() == only


@pytest.mark.parametrize("content", ["", "x", "-5", "09", "9" * 99, "3; touch /tmp/x", "\n3"])
def test_a_damaged_counter_does_no_harm(content: str, slots: Slots, tmp_path: Path) -> None:
    put(slots, tmp_path, "a")
    current = put(slots, tmp_path, "b")
    path = Path(slots.files.root, release_folder(current), FAILED_STARTS)
    path.write_text(content)
    assert isinstance(failures(slots)[current], int)
    start(slots, tmp_path)
    assert failures(slots)[slots.current() or ""] >= 1


@pytest.mark.parametrize(
    "target", ["../elsewhere", "releases/../../elsewhere", "$(touch x)", "a b"]
)
def test_a_current_that_is_not_ours_is_left_alone(
    target: str, slots: Slots, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    put(slots, tmp_path, "a")
    slots.files.point(target)
    before = sorted(tmp_path.rglob("*"))
    start(slots, tmp_path, good=True)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [
        tmp_path / "programs",
        tmp_path / "programs/setpriv",
    ]


def test_an_empty_board_is_left_alone(slots: Slots, tmp_path: Path) -> None:
    assert start(slots, tmp_path, good=True) == ""
    assert not slots.files.entries("")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become the owner of a folder")
def test_it_runs_as_the_owner_of_the_releases(tmp_path: Path) -> None:
    require("setpriv")
    root = tmp_path / "board"
    root.mkdir()
    words = command(str(root), "ExecStartPre", tmp_path / "unused")
    os.chown(root, 4321, 4322)
    words[-1] = "id -u; id -g; id -G; touch mine 2>/dev/null || echo refused"
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["4321", "4322", "4322", "refused"], done.stderr
