"""`--user` and `--enable-ssh` on images of several systems: what each reads, or its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.errors import InputError
from boardfit.edge.flash.flash import FlashReport
from boardfit.edge.flash.media.first_boot import BootFiles, extend_user_data
from boardfit.edge.flash.media.image import ImageOptions, ImageTarget, flash_image
from boardfit.edge.terminal.progress import Reporter
from tests.edge.flash.cargo import make_bundle
from tests.edge.flash.media.images import PROGRAMS, Made, digest, make_image, run
from tests.programs import require

HASH = "$6$salt$hash"
BOTH = BootFiles("kim", HASH, enable_ssh=True)
SSH = BootFiles(enable_ssh=True)
UBUNTU = b'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 26.04 LTS"\nID=ubuntu\n'
DEBIAN = b'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n'
SEED = {"user-data": "#cloud-config\n# hostname: x\nssh_pwauth: false\n", "meta-data": "i: 1\n"}


def image(
    folder: Path, release: bytes, boot: dict[str, str], files: dict[str, bytes] | None = None
) -> Made:
    require(*PROGRAMS, "mtype", "mdir")
    made = make_image(folder / "own.img", files={"etc/os-release": release, **(files or {})})
    for name, text in boot.items():
        run("mcopy", "-i", f"{made.path}@@{made.parts[1][0]}", "-", f"::{name}", input=text)
    return made


def put(made: Made, boot: BootFiles) -> FlashReport:
    bundle = made.path.parent / "bundle"
    if not bundle.exists():
        make_bundle(bundle, {"model.gguf": b"x"})
    options = ImageOptions(in_place=True, boot=boot)
    return flash_image(open_bundle(bundle), ImageTarget(made.path), options, Reporter())


def read(made: Made, name: str) -> str:
    return run("mtype", "-i", f"{made.path}@@{made.parts[1][0]}", f"::{name}")


def names(made: Made) -> str:
    return run("mdir", "-b", "-i", f"{made.path}@@{made.parts[1][0]}", "::")


@pytest.mark.parametrize("release", [UBUNTU, DEBIAN])
def test_cloud_init_gets_user_data(tmp_path: Path, release: bytes) -> None:
    made = image(tmp_path, release, SEED)
    for _ in range(2):  # a second flash replaces what the first one added
        report = put(made, BOTH)
        text = read(made, "user-data")
        assert text.startswith("#cloud-config\n# hostname: x\n")
        assert text.count("\nusers:") == text.count("name: kim") == 1
        assert f'passwd: "{HASH}"' in text
        assert text.count("ssh_pwauth:") == 1 and "ssh_pwauth: true" in text
        assert "userconf" not in names(made)
        assert "at its first start cloud-init reads user-data" in report.notes


def test_raspberry_pi_os_gets_its_files(tmp_path: Path) -> None:
    made = image(tmp_path, DEBIAN, SEED, {"etc/rpi-issue": b"Raspberry Pi reference 2025\n"})
    report = put(made, BOTH)
    assert read(made, "userconf.txt") == f"kim:{HASH}\n"
    assert read(made, "user-data") == SEED["user-data"]
    assert any("Raspberry Pi OS reads userconf.txt and ssh" in note for note in report.notes)


def test_dietpi_gets_its_ssh_server(tmp_path: Path) -> None:
    settings = "AUTO_SETUP_LOCALE=C\nAUTO_SETUP_SSH_SERVER_INDEX=0\nAUTO_SETUP_NET=1\n"
    made = image(tmp_path, DEBIAN, {"dietpi.txt": settings})
    put(made, SSH)
    assert read(made, "dietpi.txt") == settings.replace("INDEX=0", "INDEX=-2")


@pytest.mark.parametrize(
    ("release", "boot", "files", "wanted", "message"),
    [
        (DEBIAN, {"dietpi.txt": "A=1\n"}, {}, BOTH, "DietPi makes its users"),
        (b'PRETTY_NAME="Armbian 26.2"\n', {}, {}, BOTH, "Armbian 26.2.*first login of root"),
        (DEBIAN, {"armbianEnv.txt": "a=1\n"}, {}, SSH, "an Armbian"),
        (DEBIAN, {}, {"etc/armbian-release": b"BOARD=x\n"}, BOTH, "an Armbian"),
        (DEBIAN, {}, {}, BOTH, r"Debian GNU/Linux 13 \(trixie\) has no first-boot system"),
        (UBUNTU, {**SEED, "user-data": "#!/bin/sh\n"}, {}, BOTH, "no #cloud-config"),
        (UBUNTU, {**SEED, "user-data": "#cloud-config\nusers: []\n"}, {}, BOTH, "has users of"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_its_name(
    tmp_path: Path,
    release: bytes,
    boot: dict[str, str],
    files: dict[str, bytes],
    wanted: BootFiles,
    message: str,
) -> None:
    made = image(tmp_path, release, boot, files)
    before = digest(made.path)
    with pytest.raises(InputError, match=message) as caught:
        put(made, wanted)
    assert caught.value.next_step
    assert digest(made.path) == before


def test_keys_of_the_image_are_not_doubled() -> None:
    text = "#cloud-config\nruncmd:\n  - [true]\n"
    with pytest.raises(InputError, match="has runcmd of its own"):
        extend_user_data(text, SSH, "image")
    user = extend_user_data(text, BootFiles("kim", HASH), "image")
    assert user.startswith(text) and "ssh_pwauth" not in user
    nested = "#cloud-config\nchpasswd:\n  users:\n    - name: ubuntu"
    assert extend_user_data(nested, BOTH, "image").startswith(nested + "\n")
