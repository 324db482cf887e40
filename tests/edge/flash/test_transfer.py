"""What is sent: nothing that is there, only the rest of what was begun, and all of it verified."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.errors import IntegrityError
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.flash import FlashOptions, flash
from boardfit.edge.flash.transfer import PATCH_LEAST_BYTES, plan_items
from boardfit.edge.slots import layout
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.progress import Advance
from tests.edge.flash.cargo import claim_incoming, make_bundle

QUICK = FlashOptions(gate=False)
SHA = [f"{i:064x}" for i in range(4)]


class Quiet:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def stage(self, text: str) -> None: ...
    def say(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None:
        self.told.append((done, total))


names = st.sampled_from(["model.gguf", "a", "b/c"])


@given(
    st.dictionaries(names, st.tuples(st.integers(0, 1 << 33), st.sampled_from(SHA)), min_size=1),
    st.dictionaries(names, st.integers(0, 1 << 33)),
    st.dictionaries(st.sampled_from(SHA), st.just("releases/x/bundle/y")),
    st.dictionaries(names, st.just("releases/x/bundle/z")),
)
def test_every_file_is_planned_once(wanted, arrived, on_board, basis) -> None:  # type: ignore[no-untyped-def]
    plan = plan_items(wanted, arrived, on_board, basis)
    assert [item.name for item in plan] == list(wanted)
    assert 0 <= sum(item.n_new_bytes for item in plan) <= sum(n for n, _ in wanted.values())
    for item in plan:
        assert item.n_there <= arrived.get(item.name, 0)
        if item.how in ("link", "patch"):
            assert item.source
        if item.how == "patch":
            assert item.n_bytes >= PATCH_LEAST_BYTES and item.sha256 not in on_board


def test_a_second_bundle_sends_only_what_is_new(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    board, told = DirectoryBoard(tmp_path / "card"), Quiet()
    first = flash(open_bundle(cargo[0]), board, QUICK, told)
    assert first.n_sent == sum(p.stat().st_size for p in cargo[0].rglob("*") if p.is_file())
    assert told.told[-1][0] == told.told[-1][1] == first.n_sent
    second = flash(open_bundle(cargo[1]), board, QUICK, Quiet())
    assert second.how["data/weights.bin"] == "link" and second.how["model.gguf"] == "sent"
    assert second.previous == first.bundle and second.switched
    again = flash(open_bundle(cargo[1]), board, QUICK, Quiet())
    assert again.n_sent == 0 and not again.switched and "already" in again.notes[0]
    assert os.listdir(tmp_path / "card") and not (tmp_path / "card/incoming").exists()


class Cut(DirectoryBoard):
    """A card that is pulled out after some bytes of the model."""

    def __init__(self, path: Path, after: int) -> None:
        super().__init__(path)
        self.after, self.offsets = after, [0]

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        self.offsets.append(offset)
        if source.name == "model.gguf" and self.after:
            with source.open("rb") as file, Path(self.files.root, part).open("wb") as out:
                out.write(file.read(self.after))
            self.after = 0
            raise ConnectionError("pulled out")
        return super().send(source, part, offset, progress)


def test_a_cut_transfer_goes_on_at_the_last_whole_block(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "x", {"model.gguf": os.urandom(5 << 20)}))
    board = Cut(tmp_path / "card", (3 << 20) + 77)
    with pytest.raises(ConnectionError):
        flash(bundle, board, QUICK, Quiet())
    assert not (tmp_path / "card/releases").exists()
    report = flash(bundle, board, QUICK, Quiet())
    assert 3 << 20 in board.offsets and report.how["model.gguf"] == "resumed"
    assert report.n_sent < 3 << 20
    Slots(board.files).verify(bundle.id)


def test_what_an_earlier_run_left_damaged_is_sent_again(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "x", {"model.gguf": os.urandom(3 << 20)}))
    part = claim_incoming(tmp_path / "card", bundle) / "model.gguf"
    part.write_bytes(bytes(2 << 20))  # as a power cut leaves blocks that were never flushed
    report = flash(bundle, DirectoryBoard(tmp_path / "card"), QUICK, Quiet())
    assert report.how["model.gguf"] == "sent" and report.switched


def test_a_damaged_source_on_the_board_is_not_linked(
    cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    board = DirectoryBoard(tmp_path / "card")
    first = flash(open_bundle(cargo[0]), board, QUICK, Quiet())
    shared = Path(board.files.root, layout.bundle_folder(first.bundle), "data/weights.bin")
    shared.write_bytes(b"shaved" * 5000)
    report = flash(open_bundle(cargo[1]), board, QUICK, Quiet())
    assert report.how["data/weights.bin"] == "sent"
    Slots(board.files).verify(report.bundle)


def test_a_damaged_release_is_mended_in_place(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    board, bundle = DirectoryBoard(tmp_path / "card"), open_bundle(cargo[0])
    flash(bundle, board, QUICK, Quiet())
    folder = Path(board.files.root, layout.bundle_folder(bundle.id))
    (folder / "model.gguf").write_bytes(b"old?" * 30_000)
    (folder / "README.md").unlink()
    (folder / "stranger").write_text("x")
    report = flash(bundle, board, QUICK, Quiet())
    assert report.how["model.gguf"] == "sent" and report.how["data/weights.bin"] == "there"
    Slots(board.files).verify(bundle.id)


class Liar(DirectoryBoard):
    """A worn card: what was written reads back differently."""

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        n_sent = super().send(source, part, offset, progress)
        if source.name == "model.gguf":
            with Path(self.files.root, part).open("r+b") as file:
                file.write(b"\xff")
        return n_sent


def test_a_worn_card_is_found_before_the_switch(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    good = flash(open_bundle(cargo[0]), DirectoryBoard(tmp_path / "card"), QUICK, Quiet())
    with pytest.raises(IntegrityError, match="other bytes than were sent, twice"):
        flash(open_bundle(cargo[1]), Liar(tmp_path / "card"), QUICK, Quiet())
    slots = Slots(DirectoryBoard(tmp_path / "card").files)
    assert slots.current() == good.bundle and slots.present() == [good.bundle]
    slots.verify(good.bundle)


def test_files_of_other_bundles_are_removed(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = open_bundle(cargo[0])
    claim_incoming(tmp_path / "card", open_bundle(cargo[1])).joinpath("model.gguf").touch()
    here = claim_incoming(tmp_path / "card", bundle)
    (here / "stranger").write_bytes(bytes(1000))
    (here / "model.gguf").symlink_to(tmp_path)
    flash(bundle, DirectoryBoard(tmp_path / "card"), QUICK, Quiet())
    assert not (tmp_path / "card/incoming").exists()
    assert Slots(DirectoryBoard(tmp_path / "card").files).verify(bundle.id)


def test_old_times_mean_nothing(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    """A board without a clock writes in 1970, and a second time in 2026."""
    board = DirectoryBoard(tmp_path / "card")
    first = flash(open_bundle(cargo[0]), board, QUICK, Quiet())
    for path in (tmp_path / "card").rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    second = flash(open_bundle(cargo[1]), board, QUICK, Quiet())
    slots = Slots(board.files)
    assert slots.current() == second.bundle and slots.previous() == first.bundle
    assert slots.rollback() == (second.bundle, first.bundle)
