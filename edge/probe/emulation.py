"""The memory of a program under qemu-user, separated from the emulator's.

qemu-user maps the guest at the guest's own addresses, which stay below 2^40; its own program, heap
and translated code lie far above. So one process's smaps hold both, and the address shows which.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_MAPPING = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ ")
_GUEST_END = 1 << 40
_EMULATOR = re.compile(r"/qemu-[a-z0-9_]+(-static)?$", re.MULTILINE)


@dataclass(frozen=True)
class GuestMemory:
    """Bytes resident: the guest's (and of it anonymous), and the emulator's own."""

    guest: int
    guest_anonymous: int
    emulator: int


def parse_smaps(text: str) -> GuestMemory:
    """Sum /proc/<pid>/smaps of a qemu-user process by owner."""
    guest = anonymous = emulator = 0
    is_guest = False
    for line in text.splitlines():
        if match := _MAPPING.match(line):
            is_guest = int(match[1], 16) < _GUEST_END
        elif line.startswith("Rss:"):
            n_bytes = int(line.split()[1]) * 1024
            guest, emulator = guest + n_bytes * is_guest, emulator + n_bytes * (not is_guest)
        elif is_guest and line.startswith("Anonymous:"):
            anonymous += int(line.split()[1]) * 1024
    return GuestMemory(guest, anonymous, emulator)


def own_emulated_memory(smaps: Path = Path("/proc/self/smaps")) -> GuestMemory | None:
    """This process's memory if qemu-user runs it, else None. qemu fakes /proc/self/maps and
    /proc/self/exe for its guest, but smaps is the host's own.
    """
    try:
        text = smaps.read_text(errors="replace")
    except OSError:
        return None
    return parse_smaps(text) if _EMULATOR.search(text) else None
