"""Match what a board writes about itself with profiles. The facts are in `spellings.toml`."""

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from boardfit.device_profiles.toml_parser import load_toml

# `Rev 1.1`, `v2.1`, `Rev1.5`: two boards that differ only in this have one profile.
_REVISION = re.compile(r"\s+(?:rev|v)\s*\d[\d.]*[a-z]?\s*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class BoardNames:
    """What a system writes about its board, if anything; of `names`, the most telling first."""

    names: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()
    device: str | None = None
    soc: str | None = None
    cpu: str | None = None


@dataclass(frozen=True)
class Spelling:
    """One entry of `spellings.toml`, which explains the fields."""

    profiles: tuple[str, ...]
    compatible: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    socs: tuple[str, ...] = ()
    cpus: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def spellings() -> tuple[Spelling, ...]:
    """The table in its order. Raises TypeError for an unknown key, ValueError for a broken file."""
    entries = load_toml(__package__, "spellings.toml")["boards"]
    found = [Spelling(**{key: tuple(texts) for key, texts in e.items()}) for e in entries]
    return tuple(
        replace(
            entry,
            names=tuple(f"* {name}" for name in entry.names),
            devices=tuple(map(str.lower, entry.devices)),
        )
        for entry in found
    )


def find_profiles(board: BoardNames) -> tuple[str, ...]:
    """Ids of the profiles that the board's names allow, with any RAM; empty for none. `compatible`,
    which is for machines, counts most; then the names, Android's code name, the CPU.
    """
    steps = (
        (board.compatible, "compatible", str.lower),
        (board.names, "names", lambda text: f" {plain_name(text)}"),
        ((board.device,), "devices", str.lower),
        ((board.cpu,), "cpus", lambda text: " ".join(text.lower().split())),
    )
    for texts, field, spell in steps:
        for text in filter(None, texts):
            for entry in spellings():
                if any(fnmatchcase(spell(text), pattern) for pattern in getattr(entry, field)):
                    # A phone with another chip is sold under the same name elsewhere.
                    is_other = bool(entry.socs and board.soc and not _has_soc(entry, board.soc))
                    return () if is_other else entry.profiles
    return ()


def plain_name(text: str) -> str:
    """`Xunlong Orange Pi 3B v2.1` → `xunlong orange pi 3b`."""
    return re.sub(r"[^a-z0-9+]+", " ", _REVISION.sub("", text).lower()).strip()


def _has_soc(entry: Spelling, soc: str) -> bool:
    """Whether the chip is one of the entry's. Text that is no model number decides nothing."""
    is_number = re.match(r"(sm|s5e|mt|gs)\d{3}", soc.lower())
    return is_number is None or soc.upper().startswith(entry.socs)
