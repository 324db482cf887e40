"""Add optional parts to an operating system besides the release: a service that installs the
bundle's engine when the board starts, a user, and the ssh server. See `first_user` too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import EngineError, EngineMissingError, UsageError
from boardfit.edge.flash.gate import has_engine
from boardfit.edge.flash.media.filesystem import identify
from boardfit.edge.flash.media.partitions import Partition, PartitionTable, Read
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


def boot_partition(read: Read, table: PartitionTable) -> Partition | None:
    """The first FAT partition; None when there is none."""
    return next((p for p in table.partitions if identify(read, p) == "vfat"), None)


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
