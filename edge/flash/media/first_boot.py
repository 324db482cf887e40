"""Add optional parts to an operating system besides the release: a service that installs the
bundle's engine when the board starts, a user, and the ssh server. See `first_user` too.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import EngineError, EngineMissingError, InputError, UsageError
from boardfit.edge.flash.gate import has_engine
from boardfit.edge.flash.media.ext4 import Volume
from boardfit.edge.flash.media.partitions import Partition, PartitionTable, identify
from boardfit.edge.flash.service_units import INSTALLER, SERVICE, install_unit, service_unit
from boardfit.edge.process.child import child_environment, decode_output, find_program, run_child
from boardfit.edge.units import printable

UNIT_FOLDER = "/etc/systemd/system"
WANTS_FOLDER = f"{UNIT_FOLDER}/multi-user.target.wants"
#: As Debian's adduser allows them.
_USER = re.compile(r"[a-z][a-z0-9_-]{0,30}")


@dataclass(frozen=True)
class BootFiles:
    """What goes into the boot partition: a user (name and password hash), the ssh server."""

    user: str | None = None
    password_hash: str | None = None
    enable_ssh: bool = False

    def __bool__(self) -> bool:
        return self.user is not None or self.enable_ssh

    def contents(self) -> dict[str, bytes]:
        """File name → bytes, as Raspberry Pi OS reads them."""
        found = {}
        if self.user is not None:
            found["userconf.txt"] = f"{self.user}:{self.password_hash}\n".encode()
        if self.enable_ssh:
            found["ssh"] = b""
        return found


def unit_files(bundle: Bundle, uid: int, gid: int) -> dict[str, bytes]:
    """Units for the image, made here: the installer and the service. Name → text. Raises UsageError
    when the bundle brings no engine to install.
    """
    if not has_engine(bundle):
        raise UsageError(
            "--first-boot installs the bundle's engine on the board, but this bundle has none",
            next_step="edge build … --with-engine",
        )
    return {
        INSTALLER: install_unit(bundle.id, uid, gid).encode(),
        SERVICE: service_unit(bundle.name, bundle.plan).encode(),
    }


def strange_units(bundle: Bundle) -> list[str]:
    """Units that a bundle carries and that no bundle of ours would; they are never installed."""
    ours = f"board/{SERVICE}"
    return [file.name for file in bundle.files if file.role == "unit" and file.name != ours]


def check_user(name: str) -> str:
    """Raises UsageError for what is no user name on Debian."""
    if not _USER.fullmatch(name) or name == "root":
        raise UsageError(
            f"not a user name: {printable(name)!r}; lower-case letters, digits, - and _ are allowed"
        )
    return name


def hash_password(password: str) -> str:
    """SHA-512 crypt, as /etc/shadow has it, made by openssl: Python 3.13 has no module for it.
    Raises UsageError for an empty password, EngineMissingError without openssl.
    """
    if not password or "\n" in password:
        raise UsageError("a password must be one line and not empty")
    program = find_program("openssl")
    if program is None:
        raise EngineMissingError(
            "openssl is not installed; it hashes the password", next_step="apt install openssl"
        )
    done = run_child([program, "passwd", "-6", "-stdin"], input=f"{password}\n".encode())
    hashed = decode_output(done.stdout).strip()
    if done.returncode or not hashed.startswith("$6$"):
        why = printable(decode_output(done.stderr).strip())
        raise EngineError(f"openssl cannot hash the password: {why}")
    return hashed


def boot_partition(path: Path, table: PartitionTable) -> Partition | None:
    """The first FAT partition; None when there is none."""
    return next((p for p in table.partitions if identify(path, p) == "vfat"), None)


def list_boot_files(work: Path, partition: Partition) -> dict[str, str]:
    """Names in the top folder of a FAT partition of the file `work`/image: in lower case, since FAT
    does not distinguish it → as they are written.
    """
    listing = _mtools(work, ["mdir", "-b", "-i", _image(partition), "::"])
    names = [line.removeprefix("::/") for line in decode_output(listing).splitlines()]
    return {name.lower(): name for name in names if name and "/" not in name}


def read_boot_file(work: Path, partition: Partition, name: str) -> bytes:
    return _mtools(work, ["mcopy", "-i", _image(partition), f"::{name}", "-"])


def write_boot_files(work: Path, partition: Partition, contents: Mapping[str, bytes]) -> None:
    """Write into a FAT partition of the file `work`/image, in place of what has these names. Raises
    EngineMissingError without mtools, EngineError when they fail.
    """
    for name, data in contents.items():
        _mtools(work, ["mcopy", "-o", "-i", _image(partition), "-", f"::{name}"], data)
        if read_boot_file(work, partition, name) != data:
            raise EngineError(f"{name} reads back from the boot partition with other bytes")


def _image(partition: Partition) -> str:
    return f"image@@{partition.start}"


def _mtools(work: Path, command: Sequence[str], data: bytes = b"") -> bytes:
    if find_program(command[0]) is None:
        raise EngineMissingError(
            f"{command[0]} is not installed; it writes into the boot partition",
            next_step="apt install mtools (brew install mtools)",
        )
    quiet = child_environment(LC_ALL="C", MTOOLSRC=os.devnull)
    done = run_child(command, cwd=work, input=data, env=quiet)
    if done.returncode:
        raise EngineError(
            "the boot partition cannot be read or written: "
            + printable(done.stderr.decode("utf-8", "replace").strip())
        )
    return done.stdout


_MAX_TEXT = 1024 * 1024
# The top level of a YAML mapping; what is below it is indented.
_KEY = re.compile(r"^([A-Za-z_][\w-]*):", re.MULTILINE)
# What an earlier flash has added is replaced.
_BEGIN, _END = "# Added by edge flash:", "# End of what edge flash added."
_OURS = re.compile(rf"^{_BEGIN}\n.*?^{_END}\n", re.MULTILINE | re.DOTALL)
_DIETPI_SSH = re.compile(r"^[#; ]*AUTO_SETUP_SSH_SERVER_INDEX=(-?\d*).*$", re.MULTILINE)
_MANUALLY = "leave --user and --enable-ssh out, and set them up on the board"


@dataclass(frozen=True)
class FirstUser:
    """What to write into the boot partition, and who reads it there."""

    reader: str
    contents: Mapping[str, bytes]


def plan_first_user(
    volume: Volume, boot: Partition | None, wanted: BootFiles, place: str
) -> FirstUser:
    """What this image's first-boot system reads. Raises InputError that names a system which cannot
    be asked, or why this image of it cannot.
    """
    name = _system_name(volume)
    names = {} if boot is None else list_boot_files(volume.work, boot)
    if _is_armbian(volume, names):
        raise _refuse(
            place,
            f"{name}, an Armbian, makes its first user at the first login of root (password 1234), "
            "and runs the ssh server already",
        )
    if "dietpi.txt" in names or volume.node("/boot/dietpi.txt") is not None:
        return _ask_dietpi(volume, boot, names, wanted, place)
    if boot is None:
        raise InputError(
            f"{place}: {name} has no FAT boot partition, in which a first user is asked for",
            next_step=_MANUALLY,
        )
    if _is_raspberry_pi_os(volume):
        _refuse_without_userconf(volume, wanted, place)
        return FirstUser("Raspberry Pi OS", wanted.contents())
    if {"user-data", "meta-data"} <= set(names):
        if volume.node("/var/lib/cloud/instance") is not None:
            raise _refuse(
                place, f"{name} has been started before, and cloud-init makes users only once"
            )
        text = read_boot_file(volume.work, boot, names["user-data"])
        changed = extend_user_data(text.decode("utf-8", "replace"), wanted, place)
        return FirstUser("cloud-init", {names["user-data"]: changed.encode()})
    raise _refuse(place, f"{name} has no first-boot system that boardfit knows")


def extend_user_data(text: str, wanted: BootFiles, place: str) -> str:
    """A cloud-config with our keys at its end. Raises InputError where it has such keys already:
    YAML takes a key once.
    """
    if not text.startswith("#cloud-config"):
        raise _refuse(place, "the image's user-data is no #cloud-config")
    body, added = _OURS.sub("", text), list[str]()
    if wanted.user is not None:
        words = {"user": wanted.user, "password_hash": wanted.password_hash}
        added += read_text_beside(__file__, "user_data.yaml", **words).splitlines()
    if wanted.enable_ssh:
        body = re.sub(r"^ssh_pwauth:.*\n?", "", body, flags=re.MULTILINE)
        added += ["ssh_pwauth: true", "runcmd:", "  - [systemctl, enable, --now, ssh]"]
    ours = {match[1] for match in _KEY.finditer("\n".join(added))}
    if taken := sorted(ours & set(_KEY.findall(body))):
        raise InputError(
            f"{place}: the image's user-data has {' and '.join(taken)} of its own already",
            next_step="add the user there by hand, or take an image as it was published",
        )
    if body and not body.endswith("\n"):
        body += "\n"
    return body + "\n".join([_BEGIN, *added, _END, ""])


def _ask_dietpi(
    volume: Volume, boot: Partition | None, names: Mapping[str, str], wanted: BootFiles, place: str
) -> FirstUser:
    """DietPi makes the users root and dietpi itself; its ssh server is a setting."""
    if wanted.user is not None:
        raise _refuse(
            place,
            "DietPi makes its users, root and dietpi, itself; AUTO_SETUP_GLOBAL_PASSWORD in "
            "dietpi.txt is their password",
        )
    if boot is None or "dietpi.txt" not in names:
        raise _refuse(place, "DietPi's dietpi.txt is not in a FAT partition of this image")
    text = read_boot_file(volume.work, boot, names["dietpi.txt"]).decode("utf-8", "replace")
    setting = "AUTO_SETUP_SSH_SERVER_INDEX=-2"  # OpenSSH; 0 is none, -1 Dropbear
    if _DIETPI_SSH.search(text):
        text = _DIETPI_SSH.sub(setting, text, count=1)
    else:
        text = text.rstrip("\n") + f"\n{setting}\n"
    return FirstUser("DietPi", {names["dietpi.txt"]: text.encode()})


def _refuse(place: str, why: str) -> InputError:
    return InputError(f"{place}: {why}", next_step=_MANUALLY)


def _system_name(volume: Volume) -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        text = (volume.read(path, _MAX_TEXT) or b"").decode("utf-8", "replace")
        for name in ("PRETTY_NAME", "NAME"):
            if match := re.search(rf'^{name}="?([^"\n]{{1,100}})"?$', text, re.MULTILINE):
                return printable(match[1])
    return "the image's system"


def _is_armbian(volume: Volume, names: Mapping[str, str]) -> bool:
    marks = ("/etc/armbian-release", "/root/.not_logged_in_yet", "/boot/armbianEnv.txt")
    return (
        "armbianenv.txt" in names
        or any(volume.node(path) is not None for path in marks)
        or "armbian" in _system_name(volume).lower()
    )


def _is_raspberry_pi_os(volume: Volume) -> bool:
    marks = ("/etc/rpi-issue", "/usr/lib/userconf-pi", "/usr/lib/raspberrypi-sys-mods")
    name = _system_name(volume).lower()
    return "raspberry pi os" in name or "raspbian" in name or any(map(volume.node, marks))


def _refuse_without_userconf(volume: Volume, wanted: BootFiles, place: str) -> None:
    """Systems made from Raspberry Pi OS often leave out the package that reads `userconf.txt`."""
    packages = volume.listing("/var/lib/dpkg/info")
    if wanted.user is not None and packages and "userconf-pi.list" not in packages:
        raise _refuse(
            place,
            f"{_system_name(volume)} lacks the package userconf-pi, which makes the first user",
        )
