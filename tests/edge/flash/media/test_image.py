"""`image:` targets on real images, looked at afterwards with other tools than made them: sfdisk,
e2fsck, mtools, and the kernel's own ext4 where this machine may mount it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import lzma
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle, seal_bundle
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.errors import DoesNotFitError, EdgeError, InputError, IntegrityError, UsageError
from boardfit.edge.flash.connect import connect
from boardfit.edge.flash.flash import FlashReport
from boardfit.edge.flash.media.first_boot import BootFiles, hash_password
from boardfit.edge.flash.media.image import ImageOptions, ImageTarget, default_output, flash_image
from boardfit.edge.flash.service_units import service_unit
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.flash.trust import SignaturePolicy
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.trust.release import new_release
from boardfit.edge.trust.signing import load_signing_key, new_key
from tests.edge.flash.boards import edge_command
from tests.edge.flash.cargo import PLAN, make_bundle
from tests.edge.flash.conftest import need
from tests.edge.flash.media.images import (
    BOOT_START,
    MIB,
    PROGRAMS,
    SECTOR,
    Made,
    digest,
    make_image,
    parts_of,
    run,
)
from tests.edge.flash.media.images import table_of as sfdisk_table
from tests.planting import Scenario, try_everything
from tests.programs import require, skip_or_fail

OPT = "/opt/boardfit"


@pytest.fixture(scope="session")
def tools() -> None:
    require(*PROGRAMS)


@pytest.fixture(scope="session")
def pi(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Laid out as Raspberry Pi OS; never written to."""
    return make_image(tmp_path_factory.mktemp("pi") / "pi.img")


@pytest.fixture
def own(pi: Made, tmp_path: Path) -> Made:
    """A copy of it to spoil."""
    shutil.copyfile(pi.path, tmp_path / "own.img")
    return Made(tmp_path / "own.img", pi.parts)


def put(bundle: Path, image: Path, part: int | None = None, **options: object) -> FlashReport:
    return flash_image(
        open_bundle(bundle), ImageTarget(image, part),
        ImageOptions(**options),  # type: ignore[arg-type]
        Reporter(),
    )  # fmt: skip


def root_start(image: Path, number: int = 2) -> int:
    return parts_of(image)[number][0]


def ask(image: Path, request: str, number: int = 2) -> str:
    return run("debugfs", "-R", request, f"{image}?offset={root_start(image, number)}")


def check(image: Path, bundle: Path, *, owner: int = 1000, number: int = 2) -> None:
    """The image is sound, has the release with every byte, and it is current."""
    run("e2fsck", "-fn", f"{image}?offset={root_start(image, number)}")
    assert "No errors detected" in run("sfdisk", "--verify", image)
    opened = open_bundle(bundle)
    out = image.parent / "dumped"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    ask(image, f"rdump {OPT} {out}", number)
    there = out / "boardfit" / "releases" / opened.id / "bundle"
    assert open_bundle(there, verify=True).id == opened.id
    assert Slots(LocalFiles(out / "boardfit")).current() == opened.id
    listing = ask(image, f"ls -p {OPT}/releases/{opened.id}/bundle", number)
    files = [line.split("/") for line in listing.split("\n") if line.startswith("/")]
    assert len(files) > len(opened.files)
    for _, _, mode, uid, gid, name, _, _ in files:
        if name != "..":
            assert (uid, gid) == (str(owner), str(owner)), name
            assert mode in ("040755", "100644"), name


@pytest.mark.parametrize("label", ["dos", "gpt"])
@pytest.mark.parametrize("block", ["1024", "4096"])
def test_release_and_nothing_else_changes(
    tools: None, cargo: tuple[Path, Path], tmp_path: Path, label: str, block: str
) -> None:
    image = make_image(tmp_path / "os.img", label=label, mke2fs=["-b", block])
    before, table = digest(image.path), sfdisk_table(image.path)
    report = put(cargo[0], image.path)
    result = default_output(image.path)
    assert (report.target, report.switched, report.previous) == (f"image:{result}#2", True, None)
    check(result, cargo[0])
    assert digest(image.path) == before
    assert image.part(1, result) == image.part(1)
    after = sfdisk_table(result)
    assert (after["id"], after["partitions"][0]["start"]) == (
        table["id"], table["partitions"][0]["start"],
    )  # fmt: skip
    # What lies before the first partition: boot code, table (nothing grew), second stage loader.
    start = BOOT_START * SECTOR
    with image.path.open("rb") as one, result.open("rb") as two:
        assert one.read(start) == two.read(start)
    assert not list(tmp_path.glob("*partial"))


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_full_root_is_grown(tools: None, tmp_path: Path, label: str) -> None:
    blob = os.urandom(MIB)
    filler = {f"opt/filler{i}": blob for i in range(20 if label == "dos" else 19)}
    image = make_image(tmp_path / "os.img", label=label, mke2fs=["-m", "0"], files=filler)
    bundle = make_bundle(tmp_path / "b", {"model.gguf": os.urandom(12 * MIB)})
    report = put(bundle, image.path)
    result = default_output(image.path)
    check(result, bundle)
    assert result.stat().st_size > image.path.stat().st_size
    assert image.part(1, result) == image.part(1)
    one, two = sfdisk_table(image.path), sfdisk_table(result)
    assert one["id"] == two["id"]
    assert [p.get("uuid") for p in one["partitions"]] == [p.get("uuid") for p in two["partitions"]]
    assert two["partitions"][1]["start"] == one["partitions"][1]["start"]
    assert any("larger" in note for note in report.notes)
    # The file system fills its partition, and what was there still is.
    blocks = run("dumpe2fs", "-h", f"{result}?offset={root_start(result)}")
    facts = dict(line.split(":", 1) for line in blocks.splitlines() if ":" in line)
    size = int(facts["Block count"]) * int(facts["Block size"])
    assert 0 <= two["partitions"][1]["size"] * SECTOR - size < 4096
    out = tmp_path / "filler"
    ask(result, f"dump /opt/filler7 {out}")
    assert out.read_bytes() == blob


def pack(path: Path, kind: str) -> Path:
    packed = path.with_name(f"{path.name}.{kind}")
    if kind == "xz":  # two streams and padding, as parallel packers and `cat` make them
        data = path.read_bytes()
        half = len(data) // 2
        packed.write_bytes(
            lzma.compress(data[:half], preset=0) + bytes(8) + lzma.compress(data[half:], preset=0)
        )
    elif kind == "gz":
        packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    else:
        run("zstd", "-q", "-1", path, "-o", packed)
    return packed


@pytest.mark.parametrize("kind", ["xz", "gz", "zst"])
def test_packed(pi: Made, cargo: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    if kind == "zst":
        require("zstd")
    shutil.copyfile(pi.path, tmp_path / "pi.img")
    packed = pack(tmp_path / "pi.img", kind)
    before = digest(packed)
    put(cargo[0], packed)
    result = tmp_path / "pi-boardfit.img"
    check(result, cargo[0])
    assert pi.part(1, result) == pi.part(1)
    assert digest(packed) == before
    # The working copy has holes where the image has zeros.
    assert result.stat().st_blocks * 512 < result.stat().st_size // 2

    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match="damaged or was cut off"):
        put(cargo[0], packed, output=tmp_path / "x.img")
    assert not (tmp_path / "x.img").exists() and not list(tmp_path.glob("*partial"))


def test_updated_twice_then_by_the_running_board(
    own: Made, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = cargo
    put(old, own.path, in_place=True)
    report = put(new, own.path, in_place=True)
    assert report.previous == open_bundle(old).id
    assert report.how["data/weights.bin"] == "link"
    check(own.path, new)
    assert "Links: 2" in ask(
        own.path, f"stat {OPT}/releases/{open_bundle(new).id}/bundle/data/weights.bin"
    )
    again = put(new, own.path, in_place=True)
    assert not again.switched and again.n_sent == 0
    check(own.path, new)
    third = put(old, own.path, in_place=True)
    assert third.switched and third.n_sent == 0
    with closing_board(own.path) as slots:
        assert slots.current() == open_bundle(old).id
        assert slots.previous() == open_bundle(new).id
        with pytest.raises(InputError, match="read-only here"):
            slots.rollback()


@contextlib.contextmanager
def closing_board(image: Path) -> Iterator[Slots]:
    board = connect(parse_flash_target(f"image:{image}"))
    with contextlib.closing(board):
        yield Slots(board.files)


def need_mount() -> None:
    """Skip where ext4 cannot be mounted; in CI it is root and can."""
    require("losetup", "mount")
    loops = subprocess.run(["losetup", "-f"], capture_output=True, check=False)
    if os.geteuid() != 0 or loops.returncode != 0:
        skip_or_fail("needs root and loop devices")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    need_mount()
    place = tmp_path / "mnt"
    place.mkdir()
    stack = contextlib.ExitStack()

    def mount(image: Path) -> Path:
        offset = root_start(image)
        run("mount", "-t", "ext4", "-o", f"loop,offset={offset}", image, place)
        stack.callback(run, "umount", place)
        return place

    with stack:
        yield mount


def test_kernel_mounts_it_and_a_later_flash_goes_on(
    own: Made, cargo: tuple[Path, Path], mounted: Callable[[Path], Path]
) -> None:
    old, new = cargo
    put(old, own.path, in_place=True)
    root = mounted(own.path) / "opt/boardfit"
    assert stat.S_IMODE(root.stat().st_mode) == 0o755 and root.stat().st_uid == 1000
    assert os.readlink(root / "current") == f"releases/{open_bundle(old).id}"
    assert open_bundle(root / "current/bundle", verify=True).id == open_bundle(old).id
    # What the board itself would do.
    done = subprocess.run(
        [*edge_command("flash", str(new), f"dir:{root}"), "--no-gate", "--no-rehearse", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["previous"] == open_bundle(old).id
    assert report["how"]["data/weights.bin"] == "link"
    with pytest.raises(UsageError, match="in use as /dev/loop"):
        put(old, own.path, in_place=True)


def test_damaged_release_is_written_again(own: Made, cargo: tuple[Path, Path]) -> None:
    put(cargo[0], own.path, in_place=True)
    inside = f"{OPT}/releases/{open_bundle(cargo[0]).id}/bundle"
    run("debugfs", "-w", "-R", f"rm {inside}/data/weights.bin", spec(own.path))
    with closing_board(own.path) as slots, pytest.raises(EdgeError, match=r"data/weights\.bin"):
        slots.verify(open_bundle(cargo[0]).id)
    report = put(cargo[0], own.path, in_place=True)
    assert report.n_sent > 0
    check(own.path, cargo[0])


def spoil(made: Made, offset: int, data: bytes) -> None:
    with made.path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def start(made: Made, number: int, offset: int = 0) -> int:
    return made.parts[number][0] + offset


def spec(path: Path) -> str:
    return f"{path}?offset={root_start(path)}"


BLANK = bytes(2048)
BAD: dict[str, tuple[Callable[[Made], object], str]] = {
    "no table": (lambda m: spoil(m, 510, b"\0\0"), "no partition table"),
    "table of nonsense": (lambda m: spoil(m, 446, b"\x77" * 16), "cut off"),
    "cut off": (lambda m: os.truncate(m.path, start(m, 2) + MIB), "cut off"),
    "empty": (lambda m: os.truncate(m.path, 0), "no partition table"),
    "f2fs": (lambda m: spoil(m, start(m, 2, 1024), b"\x10\x20\xf5\xf2\1\0" + BLANK), "2 f2fs"),
    "encrypted": (lambda m: spoil(m, start(m, 2), b"LUKS\xba\xbe\0\1" + BLANK), "2 crypto_LUKS"),
    "nothing": (lambda m: spoil(m, start(m, 2, 1080), b"\0\0"), "2 something unknown"),
    "damaged": (lambda m: spoil(m, start(m, 2, 2048), os.urandom(200_000)), "damaged"),
    "larger than its partition": (
        lambda m: run("debugfs", "-w", "-R", "ssv blocks_count 90000", spec(m.path)),
        "superblock is damaged",
    ),
    "archive": (lambda m: m.path.write_bytes(b"PK\x03\x04 raspios.img"), "zip archive"),
}


@pytest.mark.parametrize("what", BAD)
def test_refused_and_unchanged(own: Made, cargo: tuple[Path, Path], what: str) -> None:
    damage, said = BAD[what]
    damage(own)
    before = digest(own.path)
    for options in ({"in_place": True}, {}):
        with pytest.raises(InputError, match=said) as caught:
            put(cargo[0], own.path, **options)
        assert own.path.name in str(caught.value) or what in (
            "damaged",
            "larger than its partition",
        )
        assert caught.value.next_step
    assert digest(own.path) == before
    assert {p.name for p in own.path.parent.glob("*own*")} == {"own.img"}
    assert not list(own.path.parent.glob("*partial"))


def test_which_partition(tools: None, pi: Made, cargo: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="partition 1 holds vfat, not ext4"):
        put(cargo[0], pi.path, 1)
    with pytest.raises(InputError, match="there is no partition 7; the image has 1, 2"):
        put(cargo[0], pi.path, 7)
    # Two roots, as boards with two slots have: asked, not guessed; the first cannot grow.
    lines = ["start=8192,size=32768,type=c", "start=40960,size=49152", "start=90112,size=49152"]
    two = make_image(tmp_path / "two.img", table=lines)
    begin, size = two.parts[3]
    run("mke2fs", "-q", "-t", "ext4", "-d", f"{two.path}.root", "-E", f"offset={begin}",
        two.path, f"{size // 1024}k")  # fmt: skip
    with pytest.raises(InputError, match="more than one") as caught:
        put(cargo[0], two.path)
    assert "image:FILE#2" in str(caught.value.next_step)
    put(cargo[0], two.path, 2)
    result = default_output(two.path)
    check(result, cargo[0])
    assert two.part(3, result) == two.part(3)
    large = make_bundle(tmp_path / "large", {"model.gguf": os.urandom(30 * MIB)})
    before = digest(result)
    with pytest.raises(DoesNotFitError, match="another one begins after it"):
        put(large, result, 2, in_place=True)
    assert digest(result) == before
    put(large, result, 3, in_place=True)  # the last one can
    check(result, large, number=3)


def test_names_that_programs_take_for_options(
    pi: Made, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / 'a "b" ?offset=7'
    folder.mkdir()
    image = folder / "pi ü?x#3 'y'.img"
    shutil.copyfile(pi.path, image)
    bundle = Path(shutil.copytree(cargo[0], folder / "bün dle \\ '"))
    target = parse_flash_target(f"image:{image}#2")
    assert (target.folder, target.partition) == (str(image), 2)
    put(bundle, image, 2)
    shutil.copyfile(default_output(image), tmp_path / "plain.img")
    check(tmp_path / "plain.img", cargo[0])


def test_in_use(own: Made, cargo: tuple[Path, Path]) -> None:
    with own.path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="in use: another program"):
            put(cargo[0], own.path)
        fcntl.flock(file, fcntl.LOCK_UN)
    # qemu locks single bytes of the images that it runs from.
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_SH, 1, 201); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(own.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as emulator:
        assert emulator.stdout is not None and emulator.stdout.readline()
        with pytest.raises(UsageError, match="in use: another program"):
            put(cargo[0], own.path, in_place=True)
        emulator.communicate()
    put(cargo[0], own.path, in_place=True)


def test_output_that_exists_and_options_that_contradict(
    own: Made, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    output = default_output(own.path)
    output.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        put(cargo[0], own.path)
    assert output.read_bytes() == b"mine"
    put(cargo[0], own.path, overwrite=True)
    check(output, cargo[0])
    with pytest.raises(UsageError, match="would replace"):
        put(cargo[0], own.path, output=own.path, overwrite=True)
    with pytest.raises(UsageError, match="cannot be changed in place"):
        put(cargo[0], pack(own.path, "gz"), in_place=True)
    with pytest.raises(InputError, match="there is no folder"):
        put(cargo[0], own.path, output=tmp_path / "none/x.img")
    with pytest.raises(InputError, match="after # goes a partition's number"):
        put(cargo[0], Path(f"{own.path}#root"))


def test_bombs_and_full_disks(pi: Made, cargo: tuple[Path, Path], tmp_path: Path) -> None:
    """On a disk of its own that is really small."""
    need_mount()
    disk = tmp_path / "small"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk)
    try:
        packer = lzma.LZMACompressor(preset=0)
        bomb = packer.compress(bytes(256 * MIB)) + packer.flush()
        (disk / "bomb.img.xz").write_bytes(bomb)
        with pytest.raises(DoesNotFitError, match="unpacks to more than that"):
            put(cargo[0], disk / "bomb.img.xz")
        (disk / "bomb.img.gz").write_bytes(gzip.compress(bytes(256 * MIB), 1))
        with pytest.raises(DoesNotFitError, match="unpacks to more than that"):
            put(cargo[0], disk / "bomb.img.gz")
        shutil.copyfile(pi.path, disk / "pi.img")
        before = digest(disk / "pi.img")
        large = make_bundle(tmp_path / "large", {"model.gguf": os.urandom(60 * MIB)})
        with pytest.raises(DoesNotFitError) as caught:
            put(large, disk / "pi.img", in_place=True)
        assert caught.value.next_step
        assert digest(disk / "pi.img") == before
        assert sorted(p.name for p in disk.iterdir()) == ["bomb.img.gz", "bomb.img.xz", "pi.img"]
    finally:
        run("umount", disk)


# A dictionary of 1.5 GiB: the header of such a stream and nothing more, which is enough to ask for
# the memory.
def test_xz_that_wants_all_memory(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]
    stream = bytearray(lzma.compress(b"x" * 100, format=lzma.FORMAT_XZ, filters=filters))
    # Block header after 12 bytes: size, flags, filter id 0x21, 1 byte of properties, padding, crc.
    at = 12
    assert stream[at + 2 : at + 4] == b"\x21\x01"
    stream[at + 4] = 39  # 3 GiB
    import zlib

    size = (stream[at] + 1) * 4
    stream[at + size - 4 : at + size] = zlib.crc32(stream[at : at + size - 4]).to_bytes(4, "little")
    (tmp_path / "x.img.xz").write_bytes(stream)
    with pytest.raises(InputError, match="damaged or was cut off: Memory usage limit"):
        put(cargo[0], tmp_path / "x.img.xz")


def test_first_boot_user_and_ssh(own: Made, tmp_path: Path) -> None:
    require("openssl", "mtype")
    folder = tmp_path / "with-engine"
    files = {
        "model.gguf": (b"model" * 100, "model"),
        "board/install.sh": (b"#!/bin/sh\nexit 0\n", "launcher"),
        "board/boardfit.service": (b"[Unit]\nDescription=x\n", "unit"),
    }
    for name, (data, _) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    manifest = {"model": {"name": "x"}, "recipe": {"id": "q4_0"}, "plan": PLAN.to_dict()}
    seal_bundle(folder, manifest, {name: role for name, (_, role) in files.items()}, {})
    hashed = hash_password("correct horse")
    boot = BootFiles("kim", hashed, enable_ssh=True)
    for _ in range(2):  # a second time replaces everything
        put(folder, own.path, in_place=True, first_boot=True, boot=boot)
    check(own.path, folder)
    units = "/etc/systemd/system"
    text = ask(own.path, f"cat {units}/boardfit-install.service")
    release = f"{OPT}/releases/{open_bundle(folder).id}"
    assert f"ExecStart=/bin/sh {release}/bundle/board/install.sh {release}/env" in text
    assert "User=1000" in text
    assert ask(own.path, f"cat {units}/boardfit.service") == service_unit("x", PLAN)
    for name in ("boardfit-install.service", "boardfit.service"):
        assert f'Fast link dest: "{units}/{name}"' in ask(
            own.path, f"stat {units}/multi-user.target.wants/{name}"
        )
        assert "User:     0" in ask(own.path, f"stat {units}/{name}")
    fat = f"{own.path}@@{own.parts[1][0]}"
    assert run("mtype", "-i", fat, "::userconf.txt") == f"kim:{hashed}\n"
    assert run("mtype", "-i", fat, "::ssh") == ""
    assert run("mtype", "-i", fat, "::cmdline.txt").startswith("console=")
    salt = hashed.split("$")[2]
    again = run("openssl", "passwd", "-6", "-salt", salt, "correct horse")
    assert again.strip() == hashed
    without = make_bundle(tmp_path / "without", {"model.gguf": b"x"})
    with pytest.raises(UsageError, match="this bundle has none"):
        put(without, own.path, in_place=True, first_boot=True)


def test_no_unit_of_a_bundle_is_installed(own: Made, tmp_path: Path) -> None:
    folder, marks = tmp_path / "evil", ["ssh.service", "ssh.socket", "boardfit-install.service"]
    units = {f"board/{name}": f"[Service]\nExecStart=/EVIL {name}\n" for name in marks}
    units["board/boardfit.service"] = "[Service]\nExecStart=/EVIL\n"
    units["board/deep/boardfit.timer"] = "[Timer]\n# EVIL\n"
    roles = {**dict.fromkeys(units, "unit"), "model.gguf": "model", "board/install.sh": "launcher"}
    for name in roles:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(units.get(name, "x"))
    evil = "x\\\nExecStart=/EVIL\n%n \\"
    manifest = {"model": {"name": evil}, "recipe": {"id": "q4_0"}, "plan": PLAN.to_dict()}
    seal_bundle(folder, manifest, roles, {})
    report = put(folder, own.path, in_place=True, first_boot=True)
    place = "/etc/systemd/system"
    wants = f"{place}/multi-user.target.wants"
    listed = ask(own.path, f"ls -p {place}") + ask(own.path, f"ls -p {wants}")
    names = {line.split("/")[5] for line in listed.splitlines() if line.startswith("/")}
    assert names <= {".", "..", "multi-user.target.wants", "boardfit-install.service",
                     "boardfit.service"}, names  # fmt: skip
    for name in ("boardfit-install.service", "boardfit.service"):
        text = ask(own.path, f"cat {place}/{name}")
        assert text.count("\nExecStart=") == 1 and "\nExecStart=/EVIL" not in text
        assert not any(line.endswith("\\") for line in text.splitlines())
    notes = " ".join(report.notes)
    assert f"{place}/boardfit-install.service" in notes and f"{place}/boardfit.service" in notes
    for name in (*marks, "deep/boardfit.timer"):
        assert f"board/{name}" in notes


def test_a_plan_without_numbers_makes_no_unit(own: Made, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    (folder / "board").mkdir(parents=True)
    (folder / "board/install.sh").write_text("x")
    (folder / "model.gguf").write_bytes(b"model")
    plan = {**PLAN.to_dict(), "loading_bytes": "1\nExecStart=/EVIL", "running_bytes": "1"}
    manifest = {"model": {"name": "x"}, "recipe": {"id": "q4_0"}, "plan": plan}
    roles = {"model.gguf": "model", "board/install.sh": "launcher"}
    before = digest(own.path)
    seal_bundle(folder, manifest, roles, {})
    with pytest.raises(InputError):
        put(folder, own.path, in_place=True, first_boot=True)
    assert digest(own.path) == before


def test_signed_bundles_only(own: Made, cargo: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = cargo
    asked = SignaturePolicy(required=True)
    with pytest.raises(IntegrityError, match="is not signed"):
        put(old, own.path, in_place=True, signature=asked)
    new_key(tmp_path / "key", None, "me")
    key = load_signing_key(tmp_path / "key")
    sign_bundle(old, key, new_release(1))
    report = put(old, own.path, in_place=True, signature=asked)
    assert report.signed_by and report.pinned == [report.signed_by]
    check(own.path, old)
    before = digest(own.path)
    with pytest.raises(IntegrityError, match="signed"):  # the image has the key pinned now
        put(new, own.path, in_place=True)
    assert digest(own.path) == before
    sign_bundle(new, key, new_release(2))
    assert put(new, own.path, in_place=True).signed_by == report.signed_by
    check(own.path, new)
    before = digest(own.path)
    with pytest.raises(IntegrityError, match=r"release 1 of .* is older than 2"):
        put(old, own.path, in_place=True)
    assert digest(own.path) == before
    by_hand = SignaturePolicy(allow_older=True)
    assert "--allow-older" in " ".join(put(old, own.path, in_place=True, signature=by_hand).notes)


def flash_process(bundle: Path, image: Path, fault: str | None = None) -> subprocess.Popen[str]:
    words = ("flash", str(bundle), f"image:{image}", "--in-place", "--no-gate", "--no-rehearse")
    return subprocess.Popen(
        edge_command(*words, fault=fault), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_killed_at_every_point_and_at_random_times(
    own: Made, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = cargo
    put(old, own.path, in_place=True)
    before = digest(own.path)
    shutil.copyfile(own.path, tmp_path / "kept.img")
    counter = tmp_path / "count"
    assert flash_process(new, own.path, f"count:{counter}").wait() == 0
    n_points = int(counter.read_text())
    assert n_points >= 5
    whole = {before}
    finished = 0
    for point in [*range(1, n_points + 1), *(0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)]:
        shutil.copyfile(tmp_path / "kept.img", own.path)
        if isinstance(point, int):
            process = flash_process(new, own.path, str(point))
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        else:
            process = flash_process(new, own.path)
            time.sleep(point)
            process.kill()
            process.communicate()
        if digest(own.path) in whole:
            with closing_board(own.path) as slots:
                assert slots.current() == open_bundle(old).id
        else:
            check(own.path, new)
            finished += 1
    assert finished >= 1, "the last points lie after the rename"
    assert put(new, own.path, in_place=True).previous in (open_bundle(old).id, open_bundle(new).id)
    check(own.path, new)
    assert not list(tmp_path.glob("*partial"))


@pytest.mark.engine
@pytest.mark.xdist_group("flash-boards")
def test_by_command_with_the_sample_model(
    pi: Made, sample: tuple[Path, Path], tmp_path: Path
) -> None:
    need("dir")
    output = tmp_path / "board.img"
    command = edge_command("flash", str(sample[0]), f"image:{pi.path}", "-o", str(output))
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == f"image:{output}#2"
    assert report["health"]["text"].strip() and report["health"]["decode_tps"] is None
    check(output, sample[0])
    listed = subprocess.run(
        edge_command("slots", "list", f"image:{output}", "--json"), capture_output=True, text=True
    )
    assert json.loads(listed.stdout)["role"] == "current", listed.stderr
    # A bundle that answers nothing leaves no image behind.
    mute = make_bundle(tmp_path / "mute", {"model.gguf": b"GGUF no model"})
    command = edge_command("flash", str(mute), f"image:{pi.path}", "-o", str(tmp_path / "x.img"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5 and "failed its health gate on this machine" in done.stderr
    assert not (tmp_path / "x.img").exists()


def test_options_of_other_targets_are_refused(cargo: tuple[Path, Path], tmp_path: Path) -> None:
    for target, option, said in (
        (f"dir:{tmp_path}", "--in-place", "--in-place is not for dir:"),
        ("image:x.img", "--image", "--image is not for image:"),
        ("card:/dev/null", "--overwrite", "--overwrite is not for card:"),
        ("image:", None, "needs a path"),
    ):
        extra = [] if option is None else [option]
        if option == "--image":
            (tmp_path / "x.img").write_bytes(b"")
            extra.append(str(tmp_path / "x.img"))
        done = subprocess.run(
            edge_command("flash", str(cargo[0]), target, *extra), capture_output=True, text=True
        )
        assert done.returncode == 2 and said in done.stderr, done.stderr


@pytest.mark.slow
def test_what_lies_beside_an_image_leads_nowhere(
    tools: None, own: Made, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    template = tmp_path / "before"
    template.mkdir()
    shutil.copyfile(own.path, template / "os.img")
    scenario = Scenario(
        template,
        lambda area: [
            "flash", cargo[0], f"image:{area / 'os.img'}#2", "--no-gate", "--no-rehearse",
            "-o", area / "out.img",
        ],
        ("out.img", "out.img.partial", "out.img.partial/image"),
        spare=("os.img",),
    )  # fmt: skip
    try_everything(scenario, tmp_path / "tried")


def test_photos_beside_an_image_and_in_it_stay(
    tools: None, own: Made, cargo: tuple[Path, Path]
) -> None:
    photos = default_output(own.path).with_name("own-boardfit.img.partial")
    photos.mkdir()
    (photos / "photo").write_bytes(b"mine")
    with pytest.raises(UsageError, match="did not make"):
        put(cargo[0], own.path)
    assert (photos / "photo").read_bytes() == b"mine"
    shutil.rmtree(photos)
    release = f"{OPT}/releases/{open_bundle(cargo[0]).id}"
    local = own.path.with_name("photo")
    local.write_bytes(b"mine")
    image = f"{own.path}?offset={root_start(own.path)}"
    for folder in (OPT, f"{OPT}/releases", release):
        run("debugfs", "-w", "-R", f"mkdir {folder}", image)
    run("debugfs", "-w", "-R", f"write {local} {release}/photo", image)
    with pytest.raises(UsageError, match="did not make"):
        put(cargo[0], own.path, in_place=True)
