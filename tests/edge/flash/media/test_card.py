"""`card:` targets: on real block devices (loop devices) where this machine has them; false cards as
the smallest object that lies about its size.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.errors import EdgeError, IntegrityError, UsageError
from boardfit.edge.flash.media.card import (
    DeviceMedium,
    mark_offsets,
    refuse_false_capacity,
    verify_image,
    write_image,
)
from boardfit.edge.flash.media.cards import Disk, find_disk, list_disks, parse_lsblk, refuse_disk
from tests.edge.flash.boards import edge_command
from tests.edge.flash.media.images import MIB, PROGRAMS, Made, make_image, run
from tests.edge.flash.media.test_image import check, need_mount
from tests.programs import require

# As `lsblk -J -b` prints them. The Pi with its card and a stick: fields of the list in
# github.com/mschlenstedt/Loxberry issue 205. The server with LVM: balena-io-modules/drivelist
# issue 292. SD card in a laptop's own reader (neither rm nor hotplug): drivelist issue 303 and
# util-linux issue 2379.
PI = {
    "blockdevices": [
        {"name": "sda", "path": "/dev/sda", "type": "disk", "size": 1043333120, "ro": False,
         "rm": True, "hotplug": True, "tran": "usb", "vendor": None, "model": "USB Flash Disk  ",
         "serial": None, "fstype": None, "label": None, "mountpoints": [None],
         "children": [{"name": "sda1", "path": "/dev/sda1", "type": "part", "size": 127830528,
                       "fstype": "vfat", "label": None, "mountpoints": [None]}]},
        {"name": "mmcblk0", "path": "/dev/mmcblk0", "type": "disk", "size": 3974103040,
         "ro": False, "rm": False, "hotplug": False, "tran": None, "mountpoints": [None],
         "children": [
             {"name": "mmcblk0p1", "path": "/dev/mmcblk0p1", "type": "part", "label": "boot",
              "mountpoints": ["/boot"]},
             {"name": "mmcblk0p2", "path": "/dev/mmcblk0p2", "type": "part",
              "mountpoints": ["/"]}]},
        {"name": "mmcblk1boot0", "path": "/dev/mmcblk1boot0", "type": "disk", "size": 4194304},
        {"name": "zram0", "path": "/dev/zram0", "type": "disk", "size": 1 << 30,
         "mountpoints": ["[SWAP]"]},
    ]
}  # fmt: skip
SERVER = {
    "blockdevices": [
        {"name": "sda", "type": "disk", "size": "240065183744", "ro": "0", "rm": "0",
         "mountpoint": None,
         "children": [
             {"name": "sda1", "type": "part", "mountpoint": "/boot/efi"},
             {"name": "sda3", "type": "part", "mountpoint": None,
              "children": [{"name": "centos-root", "type": "lvm", "mountpoint": "/"},
                           {"name": "centos-swap", "type": "lvm", "mountpoint": "[SWAP]"}]}]},
        {"name": "sdb", "type": "disk", "size": "", "ro": "0", "rm": "1", "mountpoint": None},
        {"name": "sdc", "type": "disk", "size": "31457280000", "ro": "0", "rm": "1",
         "mountpoint": "/run/media/DA2E4172/MK-BUILD"},
        {"name": "sdd", "type": "disk", "size": "31457280000", "ro": "1", "rm": "1",
         "mountpoint": None},
        {"name": "sde", "type": "disk", "size": "31457280000", "ro": "0", "rm": "1",
         "mountpoint": None,
         "children": [{"name": "sde1", "type": "part",
                       "children": [{"name": "md0", "type": "raid1", "mountpoint": None}]}]},
    ]
}  # fmt: skip
LAPTOP = {
    "blockdevices": [
        {"name": "mmcblk0", "path": "/dev/mmcblk0", "type": "disk", "size": 31914983424,
         "ro": False, "rm": False, "hotplug": False, "tran": "mmc", "mountpoints": [None]},
        {"name": "mmcblk1", "path": "/dev/mmcblk1", "type": "disk", "size": 62537072640,
         "ro": False, "rm": False, "hotplug": False, "tran": "mmc", "mountpoints": [None]},
    ]
}  # fmt: skip


def disks(listed: dict[str, Any]) -> dict[str, Disk]:
    soldered = {"mmcblk0": "SD", "mmcblk1": "MMC"}
    return {d.path: d for d in parse_lsblk(json.dumps(listed), soldered.get)}


def test_which_disks_are_offered() -> None:
    pi, server, laptop = disks(PI), disks(SERVER), disks(LAPTOP)
    assert {p for p, d in pi.items() if d.is_candidate} == {"/dev/sda"}
    assert pi["/dev/sda"].describe().split() == [
        "/dev/sda", "995.0", "MiB", "USB", "Flash", "Disk", "(no", "labels)"
    ]  # fmt: skip
    assert {p for p, d in server.items() if d.is_candidate} == set()
    assert {p for p, d in laptop.items() if d.is_candidate} == {"/dev/mmcblk0"}
    assert pi["/dev/mmcblk0"].is_system and server["/dev/sda"].is_system


@pytest.mark.parametrize(
    ("listed", "device", "said"),
    [
        (PI, "/dev/mmcblk0", "holds the running system"),
        (PI, "/dev/sda1", "is a partition"),
        (PI, "/dev/sdx", "does not exist"),
        (PI, "/dev/zram0", "is no disk|does not exist"),
        (SERVER, "/dev/sda", "holds the running system"),
        (SERVER, "/dev/sdb", "there is no card in"),
        (SERVER, "/dev/sdc", "mounted at /run/media/DA2E4172/MK-BUILD"),
        (SERVER, "/dev/sdd", "write-protected"),
        (SERVER, "/dev/sde", "raid1 md0 lies on it"),
        (LAPTOP, "/dev/mmcblk1", "no removable disk"),
    ],
)
def test_what_is_never_erased(listed: dict[str, Any], device: str, said: str) -> None:
    with pytest.raises(EdgeError, match=said) as caught:
        # Even by force; only a fixed disk that nobody uses may be forced.
        refuse_disk(find_disk(device, list(disks(listed).values())), force="removable" not in said)
    assert caught.value.next_step
    refuse_disk(disks(LAPTOP)["/dev/mmcblk1"], force=True)
    refuse_disk(disks(PI)["/dev/sda"], force=False)


def test_this_machine_is_listed() -> None:
    require("lsblk")
    root = os.stat("/").st_dev
    system = [d for d in list_disks() if d.is_system]
    for disk in system:
        with pytest.raises(UsageError, match="running system"):
            refuse_disk(disk, force=True)
    names = subprocess.run(["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True)
    if names.stdout.startswith("/dev/") and root:
        assert any(names.stdout.strip().startswith(d.path) for d in system)


class FalseCard:
    """Says `n_bytes`, has `real`. Behind that it begins again, or forgets what is written."""

    def __init__(self, n_bytes: int, real: int, *, wraps: bool, stuck: bytes = b"\0") -> None:
        self.n_bytes, self._real, self._wraps, self._stuck = n_bytes, real, wraps, stuck
        self._pages: dict[int, bytes] = {}

    def _page(self, number: int) -> int | None:
        if number * 4096 < self._real:
            return number
        return number % (self._real // 4096) if self._wraps else None

    def read(self, offset: int, length: int) -> bytes:
        assert offset % 4096 == length % 4096 == 0 and offset + length <= self.n_bytes
        return b"".join(
            self._stuck * 4096 if page is None else self._pages.get(page, bytes(4096))
            for number in range(offset // 4096, (offset + length) // 4096)
            for page in [self._page(number)]
        )

    def write(self, offset: int, data: bytes) -> None:
        assert offset % 4096 == len(data) % 4096 == 0 and offset + len(data) <= self.n_bytes
        for at in range(0, len(data), 4096):
            page = self._page((offset + at) // 4096)
            if page is not None:
                self._pages[page] = data[at : at + 4096]

    def settle(self) -> None:
        """Nothing is kept elsewhere."""


@settings(max_examples=25)
@given(power=st.integers(25, 36), times=st.integers(2, 20), extra=st.integers(0, 1000))
def test_cards_that_begin_again(power: int, times: int, extra: int) -> None:
    real = 1 << power
    card = FalseCard(real * times + extra * 4096, real, wraps=True)
    with pytest.raises(IntegrityError, match="begins again after"):
        refuse_false_capacity(card, "/dev/sdx")


@settings(max_examples=25)
@given(
    n_mib=st.integers(64, 200_000),
    share=st.floats(0.01, 0.99),
    stuck=st.sampled_from([b"\0", b"\xff"]),
)
def test_cards_that_forget(n_mib: int, share: float, stuck: bytes) -> None:
    real = max(1, int(n_mib * 256 * share)) * 4096
    card = FalseCard(n_mib * MIB, real, wraps=False, stuck=stuck)
    with pytest.raises(IntegrityError, match="keeps nothing behind"):
        refuse_false_capacity(card, "/dev/sdx")


@settings(max_examples=20)
@given(n_pages=st.integers(1, 1 << 24))
def test_honest_cards_of_any_size(n_pages: int) -> None:
    offsets = mark_offsets(n_pages * 4096)
    assert offsets[0] == 0 and offsets[-1] == (n_pages - 1) * 4096
    assert all(b - a >= 4096 for a, b in pairwise(offsets))
    refuse_false_capacity(FalseCard(n_pages * 4096, n_pages * 4096, wraps=False), "/dev/sdx")


def test_a_card_that_does_not_keep_what_is_written() -> None:
    class Worn(FalseCard):
        def write(self, offset: int, data: bytes) -> None:
            super().write(offset, data)
            if offset == 5 * MIB:  # chunks of 4 MiB from 1 MiB on
                self._pages[offset // 4096 + 7] = b"?" + self._pages[offset // 4096 + 7][1:]

    image = os.urandom(9 * MIB)
    worn = Worn(32 * MIB, 32 * MIB, wraps=False)
    told: list[tuple[int, int]] = []
    write_image(worn, io.BytesIO(image), len(image), "/dev/sdx", lambda *seen: told.append(seen))
    assert told[-1] == (len(image), len(image))
    with pytest.raises(IntegrityError, match=f"first at byte {5 * MIB + 7 * 4096} "):
        verify_image(worn, io.BytesIO(image), len(image), "/dev/sdx", lambda *_: None)

    class Dying(FalseCard):
        def write(self, offset: int, data: bytes) -> None:
            if offset > 2 * MIB:
                raise OSError(errno.EIO, "Input/output error")
            super().write(offset, data)

    dying = Dying(32 * MIB, 32 * MIB, wraps=False)
    with pytest.raises(IntegrityError, match=r"fails while .* Input/output error"):
        refuse_false_capacity(dying, "/dev/sdx")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A real block device of 96 MiB with old bytes on it."""
    need_mount()
    backing = tmp_path / "backing"
    backing.write_bytes(b"old stuff" * (96 * MIB // 9) + bytes(96 * MIB % 9))
    device = run("losetup", "-f", "--show", backing).strip()
    yield device
    subprocess.run(["umount", device], capture_output=True, check=False)
    run("losetup", "-d", device)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Made:
    require(*PROGRAMS)
    return make_image(tmp_path_factory.mktemp("base") / "os.img")


def card(bundle: Path, device: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        edge_command("flash", str(bundle), f"card:{device}", "--no-gate", "--no-rehearse", *more),
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_real_block_device(loop: str, base: Made, cargo: tuple[Path, Path], tmp_path: Path) -> None:
    image = ["--image", str(base.path)]
    done = card(cargo[0], loop, *image, "--yes-erase", "96MiB")
    assert done.returncode == 2 and "no removable disk" in done.stderr
    old = Path(loop).read_bytes()
    for typed, said in ((None, "no terminal to ask"), ("95 MiB", "is not the size of")):
        more = [] if typed is None else ["--yes-erase", typed]
        done = card(cargo[0], loop, *image, "--force", *more)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    done = card(cargo[0], f"{loop}#1", *image, "--force", "--yes-erase", "96MiB")
    assert done.returncode == 3 and "partition 1 holds vfat" in done.stderr, done.stderr
    done = card(cargo[0], loop, "--force", "--yes-erase", "96MiB")
    assert done.returncode == 2 and "so --image is required" in done.stderr
    assert Path(loop).read_bytes() == old

    done = card(cargo[0], loop, *image, "--force", "--yes-erase", "96.0 MiB", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == f"card:{loop}#2"
    shutil.copyfile(loop, tmp_path / "card.img")
    os.truncate(tmp_path / "card.img", base.path.stat().st_size)
    check(tmp_path / "card.img", cargo[0])
    assert base.part(1, tmp_path / "card.img") == base.part(1)
    assert not any(Path(loop).read_bytes()[-MIB:]), "an older GPT's backup would confuse"
    assert {p.name for p in base.path.parent.iterdir()} == {"os.img", "os.img.boot", "os.img.root"}
    # And it is looked into where it is.
    listed = subprocess.run(
        edge_command("slots", "list", f"card:{loop}", "--json"), capture_output=True, text=True
    )
    assert json.loads(listed.stdout)["role"] == "current", listed.stderr


def test_block_device_in_use(
    loop: str, base: Made, cargo: tuple[Path, Path], tmp_path: Path
) -> None:
    run("mke2fs", "-q", "-t", "ext4", loop)
    place = tmp_path / "mnt"
    place.mkdir()
    run("mount", loop, place)
    more = ["--image", str(base.path), "--force", "--yes-erase", "96MiB"]
    done = card(cargo[0], loop, *more)
    assert done.returncode == 2 and f"mounted at {place}" in done.stderr, done.stderr
    with pytest.raises(UsageError, match="the kernel reports it as busy"):
        DeviceMedium(loop)
    run("umount", place)
    holder = os.open(loop, os.O_RDWR | os.O_EXCL)  # as mdadm, LVM and swapon hold theirs
    try:
        done = card(cargo[0], loop, *more)
        assert done.returncode == 2 and "is in use" in done.stderr, done.stderr
    finally:
        os.close(holder)


def test_card_smaller_than_the_image(loop: str, base: Made, tmp_path: Path) -> None:
    from tests.edge.flash.cargo import make_bundle

    large = make_bundle(tmp_path / "large", {"model.gguf": os.urandom(100 * MIB)})
    before = Path(loop).read_bytes()
    done = card(large, loop, "--image", str(base.path), "--force", "--yes-erase", "96MiB")
    assert done.returncode == 4 and "holds 96.0 MiB; the image has" in done.stderr, done.stderr
    assert Path(loop).read_bytes() == before
