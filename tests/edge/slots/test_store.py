"""Releases over a real folder: switching, going back, making room, and what is wrong with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from boardfit.edge.disk.rooted import MARKER
from boardfit.edge.errors import DoesNotFitError, InputError, IntegrityError, UsageError
from boardfit.edge.slots import layout
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from tests.edge.flash.cargo import make_bundle


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(LocalFiles(tmp_path / "board"))


def put(slots: Slots, tmp_path: Path, text: str, size: int = 1000) -> str:
    """A release as a flash leaves it, current."""
    from boardfit.edge.bundle.bundle import open_bundle

    folder = make_bundle(tmp_path / "made" / text, {"model.gguf": text.encode() * size})
    bundle_id = open_bundle(folder).id
    target = Path(slots.files.root) / layout.bundle_folder(bundle_id)
    slots.files.claim(layout.release_folder(bundle_id))
    shutil.copytree(folder, target)
    slots.activate(bundle_id)
    return bundle_id


def test_three_releases_and_the_way_back(slots: Slots, tmp_path: Path) -> None:
    with slots.hold_lock():
        assert slots.current() is None and slots.previous() is None and slots.releases() == []
        a, b, c = (put(slots, tmp_path, text) for text in "abc")
        assert [(r.id, r.role) for r in slots.releases()] == [
            (c, "current"), (b, "previous"), (a, "older"),
        ]  # fmt: skip
        assert slots.rollback() == (c, b) and slots.current() == b
        assert slots.rollback() == (b, a)
        with pytest.raises(InputError, match="no earlier release"):
            slots.rollback()
        assert slots.rollback(c[:8]) == (a, c)
        with pytest.raises(InputError, match="begin with 'zz'"):
            slots.rollback("zz")


def test_a_damaged_release_is_not_gone_back_to(slots: Slots, tmp_path: Path) -> None:
    with slots.hold_lock():
        a, b = put(slots, tmp_path, "a"), put(slots, tmp_path, "b")
        path = Path(slots.files.root, layout.bundle_folder(a), "model.gguf")
        data = bytearray(path.read_bytes())
        data[500] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"model\.gguf is not"):
            slots.rollback()
        assert slots.current() == b


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "model.gguf"])
@pytest.mark.parametrize("how", ["edited", "missing", "a link"])
def test_every_kind_of_damage_is_found(slots: Slots, tmp_path: Path, name: str, how: str) -> None:
    with slots.hold_lock():
        release = put(slots, tmp_path, "a")
        path = Path(slots.files.root, layout.bundle_folder(release), name)
        good = path.read_bytes()
        slots.verify(release)
        path.unlink()
        if how == "edited":
            path.write_bytes(good.replace(b"a", b"b", 1))
        elif how == "a link":
            (tmp_path / "elsewhere").write_bytes(good)
            os.symlink(tmp_path / "elsewhere", path)
        with pytest.raises(IntegrityError):
            slots.verify(release)


def test_a_foreign_file_in_a_release_is_found(slots: Slots, tmp_path: Path) -> None:
    with slots.hold_lock():
        release = put(slots, tmp_path, "a")
        folder = Path(slots.files.root, layout.bundle_folder(release))
        (folder / "evil").mkdir()
        (folder / "evil/x.py").write_text("import os")
        with pytest.raises(IntegrityError, match="evil"):
            slots.verify(release)


def test_room_is_made_from_the_oldest(
    slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slots.hold_lock():
        releases = [put(slots, tmp_path, text, 100_000) for text in "abcd"]
        a, b, c, d = releases
        size = slots.files.used_bytes([layout.release_folder(a)])[layout.release_folder(a)]

        def free(_: object) -> int:
            return (4 - len(slots.present())) * size

        monkeypatch.setattr(LocalFiles, "free_bytes", free)
        with pytest.raises(DoesNotFitError) as caught:
            slots.make_room(3 * size)
        assert "needed" in str(caught.value) and "could be freed" in str(caught.value)
        assert "giving up the previous one" in str(caught.value)
        assert caught.value.next_step and "--drop-previous" in caught.value.next_step
        assert slots.present() == sorted(releases), "nothing goes when it would not be enough"
        slots.make_room(size)
        assert slots.present() == sorted([b, c, d])
        slots.make_room(2 * size, drop_previous=True)
        assert slots.present() == sorted([c, d])
        slots.make_room(3 * size, drop_previous=True)
        assert slots.present() == [d] == [slots.current()]
        with pytest.raises(DoesNotFitError, match="0 B could be freed"):
            slots.make_room(9 * size, drop_previous=True)
        with pytest.raises(UsageError, match="is current and stays"):
            slots.remove([d])


def test_a_lost_state_file_loses_no_release(slots: Slots, tmp_path: Path) -> None:
    with slots.hold_lock():
        a, b = put(slots, tmp_path, "a"), put(slots, tmp_path, "b")
    for damage in (b"", b"{", b"\xff\xfe", b'{"kind": "boardfit-slots", "history": 3}'):
        Path(slots.files.root, layout.STATE).write_bytes(damage)
        with slots.hold_lock():
            assert slots.current() == b and set(slots.present()) == {a, b}
            assert slots.rollback(a[:9]) == (b, a)
            slots.activate(b)


def test_a_folder_with_something_else_in_it_is_left_alone(slots: Slots) -> None:
    root = Path(slots.files.root)
    (root / "releases/2024-01-01").mkdir(parents=True)
    with pytest.raises(UsageError, match="boardfit did not make"), slots.hold_lock():
        pass
    assert os.listdir(root) == ["releases"]
    shutil.rmtree(root / "releases")
    os.symlink("app-v3", root / "current")
    with pytest.raises(UsageError, match="boardfit did not make"), slots.hold_lock():
        pass


def test_a_current_that_points_nowhere_is_no_release(slots: Slots) -> None:
    with slots.hold_lock():
        slots.files.point(f"releases/{'a' * 64}")
        assert slots.current() is None
        with pytest.raises(InputError, match="is not on"):
            slots.activate("a" * 64)


def test_leftovers_are_swept(slots: Slots, tmp_path: Path) -> None:
    with slots.hold_lock():
        put(slots, tmp_path, "a")
        keep, other = "1" * 64, "2" * 64
        slots.files.claim("incoming")
        for folder in (keep, other, "parts"):
            slots.files.claim(f"incoming/{folder}")
            slots.files.make_folder(f"incoming/{folder}/bundle")
        slots.files.claim(f"{layout.TRASH}{other}")
        slots.sweep(keep_incoming=keep)
        assert set(slots.files.entries("incoming")) == {keep, "parts", MARKER}
        assert not [n for n in slots.files.entries("") if n.startswith(layout.TRASH)]
