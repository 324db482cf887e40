"""Ask an image's own first-boot system for a user and the ssh server.

Every family of systems reads something else, and an image that cannot be asked is refused by its
name. Raspberry Pi OS reads `userconf.txt` and `ssh` in the boot partition
(https://www.raspberrypi.com/documentation/computers/configuration.html), cloud-init `user-data`
(https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html), DietPi `dietpi.txt`.
Armbian makes its user in a dialogue, at the first login of root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from boardfit.edge.errors import InputError
from boardfit.edge.flash.media.ext4 import Volume
from boardfit.edge.flash.media.first_boot import BootFiles, list_boot_files, read_boot_file
from boardfit.edge.flash.media.partitions import Partition
from boardfit.edge.units import printable

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
        added += [
            "users:",
            "  - default",
            f"  - name: {wanted.user}",
            "    groups: [adm, sudo, video]",
            "    shell: /bin/bash",
            "    sudo: ALL=(ALL:ALL) ALL",
            "    lock_passwd: false",
            f'    passwd: "{wanted.password_hash}"',
        ]
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
