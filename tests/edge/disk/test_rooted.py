"""Files below a folder that somebody else prepared: nothing leads out, only ours is deleted."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from boardfit.edge.disk.rooted import MARKER, MAX_DEPTH, Root, open_to_append, work_beside
from boardfit.edge.errors import EdgeError, UnsafeInputError, UsageError

SECRET = b"a photo"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "card").mkdir()
    return Root(tmp_path / "card", fixed_modes=True)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's, outside the root."""
    folder = tmp_path / "home"
    (folder / "sub").mkdir(parents=True)
    (folder / "photo").write_bytes(SECRET)
    (folder / "sub/photo").write_bytes(SECRET)
    return folder


def untouched(victim: Path) -> bool:
    return (
        sorted(p.relative_to(victim).as_posix() for p in victim.rglob("*"))
        == ["photo", "sub", "sub/photo"]
        and (victim / "photo").read_bytes() == (victim / "sub/photo").read_bytes() == SECRET
    )


OPERATIONS: dict[str, Callable[[Root, str], object]] = {
    "open": lambda root, name: root.open(name),
    "create": lambda root, name: root.create(name),
    "resume": lambda root, name: root.resume(name),
    "write": lambda root, name: root.write(name, b"ours"),
    "make_folder": lambda root, name: root.make_folder(name),
    "claim": lambda root, name: root.claim(name),
    "rename to": lambda root, name: (root.write("mine", b"x"), root.rename("mine", name)),
    "rename from": lambda root, name: root.rename(name, "elsewhere"),
    "link to": lambda root, name: (root.write("mine", b"x"), root.link("mine", name)),
    "link from": lambda root, name: root.link(name, "elsewhere"),
    "symlink": lambda root, name: root.symlink("x", name),
    "remove": lambda root, name: root.remove(name),
    "sync": lambda root, name: root.sync(name),
    "walk": lambda root, name: list(root.walk(name)),
    "below": lambda root, name: root.open_below(name),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("place", ["the name", "a folder above", "two above"])
def test_no_operation_follows_a_link(root: Root, victim: Path, operation: str, place: str) -> None:
    (root.path / "link").symlink_to(victim)
    (root.path / "file").symlink_to(victim / "photo")
    name = {"the name": "link", "a folder above": "link/photo", "two above": "link/sub/photo"}
    for planted in (name[place], "file") if place == "the name" else (name[place],):
        try:
            found = OPERATIONS[operation](root, planted)
        except UnsafeInputError as error:
            assert "is a link" in str(error) and error.next_step
        else:
            assert place == "the name", (operation, found)
            assert operation in {"write", "rename to", "rename from", "link to", "symlink",
                                 "remove"}, found  # fmt: skip
    assert untouched(victim)
    if place == "the name" and operation == "remove":
        assert not os.path.lexists(root.path / "link")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_written_into_a_second_name(root: Root, victim: Path, operation: str) -> None:
    os.link(victim / "photo", root.path / "planted")
    try:
        found = OPERATIONS[operation](root, "planted")
    except (EdgeError, OSError):
        pass
    else:
        if operation == "resume":
            pytest.fail(f"a hard link was opened for writing: {found}")
    assert untouched(victim)


@pytest.mark.parametrize("operation", [n for n in OPERATIONS if n not in ("rename from", "remove")])
def test_a_pipe_neither_blocks_nor_is_taken_for_a_file(root: Root, operation: str) -> None:
    os.mkfifo(root.path / "pipe")
    try:
        OPERATIONS[operation](root, "pipe")
    except UnsafeInputError as error:
        assert "pipe" in str(error)
    else:
        assert operation in {"write", "rename to", "link to", "symlink"}, operation


@pytest.mark.parametrize("name", ["../home", "/etc", "a/../../home", ".", "a//b", "a/", "x\0y"])
def test_only_plain_relative_names_are_taken(root: Root, victim: Path, name: str) -> None:
    for operation in OPERATIONS.values():
        with pytest.raises(UnsafeInputError):
            operation(root, name)
    assert untouched(victim)


def test_the_root_itself_may_be_no_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "card").symlink_to(victim)
    with pytest.raises(UnsafeInputError, match="is a link to") as caught:
        Root(tmp_path / "card")
    assert "own path" in str(caught.value.next_step)
    (tmp_path / "users own").symlink_to(tmp_path)  # what is above the root is the user's own
    (tmp_path / "real").mkdir()
    Root(tmp_path / "users own" / "real")


def test_only_marked_folders_are_deleted(root: Root, victim: Path) -> None:
    assert root.claim("ours") and not root.claim("ours")
    root.make_folder("ours/a/b")
    root.write("ours/a/b/c", b"x")
    (root.path / "ours/a/link").symlink_to(victim)
    os.link(victim / "photo", root.path / "ours/a/hard")
    (root.path / "theirs").mkdir()
    (root.path / "theirs/photo").write_bytes(SECRET)
    for name in ("theirs",):
        with pytest.raises(UsageError, match="did not make"):
            root.remove(name)
        with pytest.raises(UsageError, match="did not make"):
            root.claim(name)
    assert (root.path / "theirs/photo").read_bytes() == SECRET
    root.remove("ours")
    root.remove("ours")
    assert list(root.entries("")) == ["theirs"] and untouched(victim)


def test_a_folder_that_was_made_but_not_marked_is_taken_over(root: Root) -> None:
    root.make_folder("ours")  # a power cut came here
    assert root.claim("ours")
    root.remove("ours")


def test_a_file_in_place_of_a_folder_of_ours_stays(root: Root) -> None:
    (root.path / "incoming").write_bytes(SECRET)
    for operation in (root.claim, root.make_folder):
        with pytest.raises(UsageError, match="is a file where"):
            operation("incoming")
    assert (root.path / "incoming").read_bytes() == SECRET


def test_a_marker_that_is_a_link_is_none(root: Root, victim: Path) -> None:
    (root.path / "theirs").mkdir()
    (root.path / "theirs" / MARKER).symlink_to(victim / "photo")
    with pytest.raises(UsageError, match="did not make"):
        root.remove("theirs")
    with pytest.raises(UsageError, match="did not make"):
        root.claim("theirs")


def test_folders_without_end_are_refused(root: Root) -> None:
    root.claim("deep")
    folder = root.path / "deep"
    for _ in range(MAX_DEPTH + 3):
        folder = folder / "d"
        folder.mkdir()
    with pytest.raises(UnsafeInputError, match="nested deeper"):
        root.remove("deep")
    with pytest.raises(UnsafeInputError, match="nested deeper"):
        list(root.walk(""))


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(root: Root, mask: int) -> None:
    before = os.umask(mask)
    try:
        root.claim("folder")
        root.make_folder("folder/sub")
        root.write("folder/sub/file", b"x")
        root.create("folder/new").close()
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(info.st_mode) for name, info in root.walk("")}
    assert modes.pop("folder") == modes.pop("folder/sub") == 0o755
    assert set(modes.values()) == {0o644}


def test_a_part_is_gone_on_with(root: Root) -> None:
    for piece in (b"one ", b"two"):
        with root.resume("part") as file:
            file.seek(0, os.SEEK_END)
            file.write(piece)
    assert (root.path / "part").read_bytes() == b"one two"


def test_what_a_killed_run_left_at_the_root_is_swept(root: Root) -> None:
    for name in (".boardfit-new-0123456789abcdef", ".boardfit-new-short", "photo"):
        (root.path / name).write_bytes(b"x")
    (root.path / ".boardfit-new-0123456789abcdee").mkdir()
    root.sweep_fresh()
    assert list(root.entries("")) == [
        ".boardfit-new-0123456789abcdee",
        ".boardfit-new-short",
        "photo",
    ]


# ---- work folders ----


def make(output: Path, *, resume: bool = False, replace: bool = False) -> None:
    with work_beside(output, "build", resume=resume) as work:
        work.root.make_folder("made")
        work.root.write("made/file", b"new")
        work.publish("made", (lambda _: True) if replace else None)


def test_a_work_folder_comes_and_goes(tmp_path: Path) -> None:
    make(tmp_path / "kit")
    assert os.listdir(tmp_path) == ["kit"] and os.listdir(tmp_path / "kit") == ["file"]
    with pytest.raises(UsageError, match="exists"):
        make(tmp_path / "kit")
    (tmp_path / "kit/file").write_bytes(b"old")
    make(tmp_path / "kit", replace=True)
    assert (tmp_path / "kit/file").read_bytes() == b"new" and os.listdir(tmp_path) == ["kit"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_strangers_work_folder_stays(tmp_path: Path, victim: Path, resume: bool) -> None:
    (tmp_path / "kit.partial").mkdir()
    (tmp_path / "kit.partial/photo").write_bytes(SECRET)
    with pytest.raises(UsageError, match="did not make"):
        make(tmp_path / "kit", resume=resume)
    assert (tmp_path / "kit.partial/photo").read_bytes() == SECRET
    (tmp_path / "out.partial").symlink_to(victim)
    with pytest.raises(UnsafeInputError, match="is a link"):
        make(tmp_path / "out", resume=resume)
    assert untouched(victim)


@pytest.mark.parametrize("resume", [False, True])
def test_what_leads_elsewhere_in_a_work_folder_is_dropped(
    tmp_path: Path, victim: Path, resume: bool
) -> None:
    work = tmp_path / "kit.partial"
    (work / "made").mkdir(parents=True)
    (work / MARKER).touch()  # a stranger may plant that, too
    (work / "made/file").symlink_to(victim / "photo")
    (work / "parts").symlink_to(victim)
    os.link(victim / "photo", work / "model.gguf")
    make(tmp_path / "kit", resume=resume)
    assert (tmp_path / "kit/file").read_bytes() == b"new"
    assert untouched(victim) and not work.exists()


def test_the_lock_of_a_work_folder_is_written_through_no_link(tmp_path: Path, victim: Path) -> None:
    work = tmp_path / "kit.partial"
    for plant in (os.symlink, os.link):
        work.mkdir(exist_ok=True)
        (work / MARKER).touch()
        plant(victim / "photo", work / ".lock")
        with pytest.raises(UnsafeInputError):
            make(tmp_path / "kit", resume=True)
        (work / ".lock").unlink()
    assert untouched(victim)


def test_a_failed_run_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    for resume in (False, True):
        with (
            pytest.raises(KeyError),
            work_beside(tmp_path / "kit", "build", resume=resume) as work,
        ):
            work.root.write("part", b"x")
            raise KeyError
        assert (tmp_path / "kit.partial/part").exists() == resume
    with (
        work_beside(tmp_path / "kit", "build", resume=True),
        pytest.raises(UsageError, match="another build"),
    ):
        make(tmp_path / "kit")


def test_a_kill_between_two_renames_gives_the_old_output_back(tmp_path: Path) -> None:
    make(tmp_path / "kit")
    with work_beside(tmp_path / "kit", "build", resume=True):
        (tmp_path / "kit").rename(tmp_path / "kit.partial/replaced")
    with work_beside(tmp_path / "kit", "build", resume=True):
        assert (tmp_path / "kit/file").read_bytes() == b"new"


def test_appending_follows_no_link(tmp_path: Path, victim: Path) -> None:
    for _ in range(2):
        with open_to_append(tmp_path / "results") as file:
            file.write(b"line\n")
    assert (tmp_path / "results").read_bytes() == b"line\n" * 2
    (tmp_path / "link").symlink_to(victim / "photo")
    os.link(victim / "photo", tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "hard", "pipe"):
        with pytest.raises(UnsafeInputError):
            open_to_append(tmp_path / name)
    assert untouched(victim)


# Trees that are deleted without the marker: folders of a random name, the user's own cache, what
# lies in a work folder that is held.
MAY_DELETE_TREES = {
    "edge/flash/ssh.py": "a folder of mkdtemp",
    "converters/formats/converted.py": "in a held work folder",
    "converters/board/engine/build.py": "in a held folder of the cache",
    "converters/board/engine/source.py": "in the cache",
    "converters/board/engine/store.py": "in the cache",
    "converters/formats/tools/environments.py": "in the cache",
    "converters/board/offline/board/install.py": "only what bears its mark",
    "converters/board/offline/wheelhouse.py": "in the cache",
    "converters/board/rehearse/sandbox.py": "in the cache",
}


def test_trees_are_deleted_in_known_places_only() -> None:
    top = Path(__file__).parents[3]
    found = {
        path.relative_to(top).as_posix()
        for package in ("edge", "converters")
        for path in (top / package).rglob("*.py")
        if "rmtree" in path.read_text(encoding="utf-8")
    }
    assert found == set(MAY_DELETE_TREES)
