"""Cards, shares and work folders that a stranger prepared: whatever is planted at a name that a
command touches, nothing of the user's is read out, written, or deleted.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.disk.rooted import MARKER
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.flash import flash
from boardfit.edge.slots import layout
from boardfit.edge.slots.files import LocalFiles
from tests.edge.flash.cargo import make_bundle
from tests.edge.flash.test_transfer import QUICK, Quiet
from tests.edge.report.stored import stored
from tests.planting import Scenario, contents, make_home, run_edge, tracing, try_everything

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="names of descriptors are read from /proc"
)
PHOTO = b"a photo of the user's"


def test_the_tracer_sees_every_way_to_touch_a_name(tmp_path: Path) -> None:
    area = tmp_path / "area"
    (area / "folder").mkdir(parents=True)
    with tracing(area) as found:
        fd = os.open(area, os.O_RDONLY)
        (area / "a").write_bytes(b"x")
        os.close(os.open("b", os.O_CREAT, dir_fd=fd))
        os.mkdir("c", dir_fd=fd)
        os.replace(area / "a", area / "d")
        os.rename("b", "e", src_dir_fd=fd, dst_dir_fd=fd)
        os.symlink("x", "f", dir_fd=fd)
        os.link("d", "g", src_dir_fd=fd, dst_dir_fd=fd)
        list((area / "folder").iterdir())
        shutil.copyfile(area / "d", area / "h")
        (area / "i").touch()
        os.unlink("g", dir_fd=fd)
        shutil.rmtree(area / "c")
        os.close(fd)
    assert found == {*"abcdefghi", "folder"}


# ---- every name, by tracing ---------------------------------------------------------------------


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    return [
        make_bundle(tmp_path / f"b{n}", {"model.gguf": bytes([65 + n]) * 900, "d/x": b"shared"})
        for n in range(3)
    ]


@pytest.fixture
def card(tmp_path: Path, bundles: list[Path]) -> Path:
    """A card with two releases, what an interrupted flash of a third has left, and trash."""
    area = tmp_path / "card"
    board = DirectoryBoard(area / "boardfit") if area.mkdir() is None else None
    assert board is not None
    for path in bundles[:2]:
        flash(open_bundle(path), board, QUICK, Quiet())
    third = open_bundle(bundles[2])
    files = LocalFiles(area / "boardfit")
    for folder in (
        layout.INCOMING, layout.incoming_folder(third.id),
        layout.incoming_folder("e" * 64), f"{layout.TRASH}{'f' * 64}",
    ):  # fmt: skip
        files.claim(folder)
    files.make_folder(f"{layout.incoming_folder(third.id)}/bundle")
    bundle = area / "boardfit" / layout.incoming_folder(third.id) / "bundle"
    (bundle / third.model_file.name).write_bytes(b"C" * 100)
    (bundle / "stranger").write_bytes(b"of another bundle")
    return area


FLASH = ("--no-gate", "--no-rehearse")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["first", "second", "again", "list", "verify", "rollback",
                                     "remove", "pin"])  # fmt: skip
def test_a_card_leads_nowhere(
    command: str, card: Path, bundles: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    old, new = (open_bundle(path).id for path in bundles[:2])
    run_edge("key", "new", "--out", tmp_path / "me")
    words: dict[str, list[str | Path]] = {
        "first": ["flash", bundles[0]],
        "second": ["flash", bundles[2]],
        "again": ["flash", bundles[1]],
        "list": ["slots", "list"],
        "verify": ["slots", "verify"],
        "rollback": ["rollback"],
        "remove": ["slots", "remove"],
        "pin": ["key", "pin"],
    }
    after: dict[str, list[str | Path]] = {
        "first": [*FLASH], "second": [*FLASH], "again": [*FLASH], "remove": [old[:12]],
        "pin": [f"{tmp_path / 'me'}.pub", "--force"],
    }  # fmt: skip
    must: dict[str, tuple[str, ...]] = {
        "first": (layout.INCOMING, layout.STATE, layout.CURRENT, f"releases/{old}", layout.LOCK),
        "second": (f"{layout.TRASH}{'f' * 64}", layout.incoming_folder("e" * 64), layout.CURRENT),
        "again": (f"releases/{new}/bundle",),
        "rollback": (layout.CURRENT, f"releases/{old}/bundle/model.gguf"),
        "remove": (f"{layout.TRASH}{old}",),
    }
    scenario = Scenario(
        tmp_path / "empty" if command == "first" else card,
        lambda area: [*words[command], f"dir:{area}/boardfit", *after.get(command, [])],
        tuple(f"boardfit/{name}" for name in must.get(command, (layout.RELEASES,))),
    )
    try_everything(scenario, tmp_path / "tried")
    assert {2, 3} & scenario.codes or command in ("list",), "some plant is refused"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pack", "unpack", "key", "report"])
def test_what_lies_beside_an_output_leads_nowhere(
    command: str, bundles: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    packed, results = tmp_path / "packed.tar", stored(tmp_path)
    run_edge("bundle", "pack", bundles[0], "-o", packed)
    words: dict[str, list[str | Path]] = {
        "pack": ["bundle", "pack", bundles[0], "-o"],
        "unpack": ["bundle", "unpack", packed, "-o"],
        "key": ["key", "new", "--out"],
        "report": ["report", results, "-o"],
    }
    must = {"unpack": "x.md.partial/bundle/model.gguf", "key": "x.md.pub"}
    scenario = Scenario(
        tmp_path / "empty",
        lambda area: [*words[command], area / "x.md"],
        (must.get(command, "x.md"),),
    )
    try_everything(scenario, tmp_path / "tried")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("force", [False, True])
def test_what_lies_beside_a_build_leads_nowhere(
    force: bool, bundles: list[Path], tmp_path: Path
) -> None:
    template = tmp_path / "before"
    template.mkdir()
    if force:
        shutil.copytree(bundles[0], template / "kit")
    scenario = Scenario(
        template,
        lambda area: [
            "build", "sample", "-d", "raspberry-pi-5-8gb", "-o", area / "kit", "--no-quality",
            *(["--force"] if force else []),
        ],
        ("kit", "kit.partial", "kit.partial/bundles/bundle/model.gguf"),
        together="kit.partial",
    )  # fmt: skip
    try_everything(scenario, tmp_path / "tried")


# ---- a stranger's folder ----


def put_photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "photo.jpg").write_bytes(PHOTO)
    (folder / "2024").mkdir()
    (folder / "2024/photo.jpg").write_bytes(PHOTO)
    return folder


def refused_in_one_line(err: str, place: Path) -> bool:
    lines = [line for line in err.splitlines() if line.startswith(("error:", "  next:"))]
    return len(lines) == 2 and str(place) in lines[0] and "move it away" in lines[1]


@pytest.mark.parametrize("name", [
    "incoming", "incoming/{new}", "incoming/{other}", "releases/{new}",
    ".trash-{other}", ".lock.d", "releases/{new}/bundle", ".state.json.new", ".current.new",
])  # fmt: skip
def test_photos_on_a_card_stay(name: str, bundles: list[Path], tmp_path: Path) -> None:
    card, new = tmp_path / "card", open_bundle(bundles[1]).id
    flash(open_bundle(bundles[0]), DirectoryBoard(card), QUICK, Quiet())
    photos = put_photos(card / name.format(new=new, other="e" * 64))
    before = contents(photos)
    code, err = run_edge("flash", bundles[1], f"dir:{card}", *FLASH)
    assert contents(photos) == before
    if name in (".state.json.new", ".current.new"):
        assert code == 0, "names that are used no more"
    else:
        assert code in (2, 3) and refused_in_one_line(err, card / name.split("/")[0][:7]), err


def test_photos_in_an_older_release_stay(bundles: list[Path], tmp_path: Path) -> None:
    card = tmp_path / "card"
    for path in bundles[:2]:
        flash(open_bundle(path), DirectoryBoard(card), QUICK, Quiet())
    photos = put_photos(card / "releases" / ("0" * 64))
    before = contents(card)
    code, err = run_edge("slots", "remove", f"dir:{card}", "0000")
    assert code == 2 and refused_in_one_line(err, photos), err
    assert {**before, ".lock": b""} == {**contents(card), ".lock": b""}


@pytest.mark.parametrize("marked", [False, True])
def test_photos_beside_an_output_stay(marked: bool, bundles: list[Path], tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    run_edge("bundle", "pack", bundles[0], "-o", packed)
    out, photos = tmp_path / "kit", put_photos(tmp_path / "kit.partial")
    before, old = contents(photos), put_photos(tmp_path / "kit.old")
    commands: list[list[str | Path]] = [
        ["bundle", "unpack", packed, "-o", out],
        ["build", "sample", "-d", "raspberry-pi-5-8gb", "-o", out, "--no-quality"],
    ]
    for words in commands:
        code, err = run_edge(*words)
        assert code == 2 and refused_in_one_line(err, photos), err
        assert contents(photos) == before == contents(old) and not out.exists()


@pytest.mark.parametrize("what", ["photos", "a bundle with a photo", "a link", "a file",
                                  "bundles and a photo", "an empty folder"])  # fmt: skip
def test_force_replaces_nothing_but_bundles(what: str, bundles: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "docs"
    if what == "photos":
        put_photos(out)
    elif what == "a bundle with a photo":
        shutil.copytree(bundles[0], out)
        (out / "photo.jpg").write_bytes(PHOTO)
    elif what == "a link":
        out.symlink_to(put_photos(tmp_path / "home"))
    elif what == "a file":
        out.write_bytes(PHOTO)
    elif what == "bundles and a photo":
        shutil.copytree(bundles[0], out / "one")
        (out / "photo.jpg").write_bytes(PHOTO)
    else:
        out.mkdir()
    before = contents(tmp_path)
    code, err = run_edge(
        "build", "sample", "-d", "raspberry-pi-5-8gb", "-o", out, "--force", "--no-quality"
    )
    assert code == 2 and "did not make" in err and "move it away" in err, err
    assert contents(tmp_path) == before


# ---- as security.md tells it ----


def test_a_card_does_not_empty_the_home(bundles: list[Path], tmp_path: Path) -> None:
    """`ln -s ~ /media/card/boardfit/incoming; edge flash kit dir:/media/card/boardfit`"""
    home, card = make_home(tmp_path / "home"), tmp_path / "card/boardfit"
    before = contents(home)
    release = open_bundle(bundles[0]).id
    plants = {
        f"incoming/{release}": home, ".state.json.new": home / "photo",
        f"incoming/{release}/bundle/model.gguf": home / "photo",
        f"releases/{release}/bundle": home, ".trusted_keys.new": home / "photo",
        ".lock.d": home, ".lock": home / "photo", "current": home, "releases": home,
        "incoming": home, ".": home,
    }  # fmt: skip
    for name, target in plants.items():
        shutil.rmtree(card.parent, ignore_errors=True)
        place = card / name
        place.parent.mkdir(parents=True, exist_ok=True)
        for folder in (place.parent, *place.parent.parents):
            if folder.is_relative_to(card) and folder != card:
                (folder / MARKER).touch()
        place.symlink_to(target)
        code, err = run_edge("flash", bundles[0], f"dir:{card}", *FLASH)
        assert contents(home) == before, name
        assert (code, err.count("error:")) in ((0, 0), (2, 1), (3, 1)), (name, err)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_modes_on_a_card_do_not_depend_on_the_umask(
    mask: int, bundles: list[Path], tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        code, err = run_edge("flash", bundles[0], f"dir:{tmp_path / 'card'}", *FLASH)
    finally:
        os.umask(before)
    assert code == 0, err
    for path in ((tmp_path / "card"), *(tmp_path / "card").rglob("*")):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_a_work_file_with_a_second_name_is_not_written_into(
    bundles: list[Path], tmp_path: Path
) -> None:
    home = make_home(tmp_path / "home")
    before = contents(home)
    os.link(home / "photo", tmp_path / "kit.tar.partial")
    assert run_edge("bundle", "pack", bundles[0], "-o", tmp_path / "kit.tar")[0] == 0
    work = tmp_path / "kit.partial"
    work.mkdir()
    (work / MARKER).touch()
    (work / ".lock").symlink_to(home / "photo")
    code, err = run_edge("bundle", "unpack", tmp_path / "kit.tar", "-o", tmp_path / "kit")
    assert code == 3 and "is a link" in err
    assert contents(home) == before
