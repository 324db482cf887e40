"""What is large crosses with a quicker cipher, within what user and board allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.flash.ssh import has_aes, quick_ciphers
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from tests.edge.flash.boards import SshBoard
from tests.edge.flash.cargo import random_bundle
from tests.edge.flash.conftest import need
from tests.edge.flash.test_boards import flash

pytestmark = pytest.mark.xdist_group("flash")

QUICK, SLOW = "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"
names = st.lists(st.sampled_from([QUICK, SLOW, "aes128-ctr", "aes256-ctr", ""]), unique=True)


@given(names)
def test_only_the_order_changes(ciphers: list[str]) -> None:
    found = quick_ciphers(",".join(ciphers))
    if QUICK not in ciphers or ciphers[0] == QUICK:
        assert found is None
    else:
        assert found is not None
        assert found.split(",")[0] == QUICK
        assert [c for c in found.split(",") if c != QUICK] == [c for c in ciphers if c != QUICK]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("large") / "bundle", 65 << 20)


@pytest.fixture
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SshBoard]:
    need("ssh")
    settings = f"LogLevel DEBUG1\n{getattr(request, 'param', '')}"
    with SshBoard(tmp_path / "ssh", tmp_path / "root", settings=settings, cable=False) as made:
        yield made


def ciphers_of(board: SshBoard) -> list[str]:
    """Ciphers of the connections so far, client to server."""
    log = (board.config.parent / "sshd.log").read_text()
    return re.findall(r"kex: client->server cipher: (\S+)", log)


def check_arrived(board: SshBoard, bundle: Path) -> None:
    Slots(LocalFiles(board.root)).verify(open_bundle(bundle).id)


def test_a_large_model_takes_the_quick_one(board: SshBoard, large: Path) -> None:
    flash(board, large, "--no-gate")
    check_arrived(board, large)
    assert ciphers_of(board)[1:] == ([QUICK] if has_aes() else [])


def test_what_the_user_left_out_stays_out(board: SshBoard, large: Path) -> None:
    with board.config.open("a") as file:
        file.write(f"Ciphers {SLOW},aes128-ctr\n")
    flash(board, large, "--no-gate")
    check_arrived(board, large)
    assert ciphers_of(board) == [SLOW]


@pytest.mark.parametrize("board", [f"Ciphers {SLOW}"], indirect=True)
def test_a_board_that_does_not_know_it(board: SshBoard, large: Path) -> None:
    flash(board, large, "--no-gate")
    check_arrived(board, large)
    assert set(ciphers_of(board)) == {SLOW}


@pytest.mark.parametrize("board", ["PerSourceMaxStartups 1\nMaxStartups 1:100:1"], indirect=True)
def test_a_small_one_needs_no_second_login(board: SshBoard, tmp_path: Path) -> None:
    small = random_bundle(tmp_path / "small", 1 << 20)
    flash(board, small, "--no-gate")
    check_arrived(board, small)
    assert len(ciphers_of(board)) == 1
