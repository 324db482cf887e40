"""Find the profile of a published row: by the device's name, else by its SoC.

People write one board in many ways ("RPi 4B", "Raspberry Pi 4 Model B Rev 1.5 (8GB)", "Jetson Orin
Nano Developer Kit"); names are compared without makers, housings and punctuation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from boardfit.device_profiles.catalog import all_profiles
from boardfit.device_profiles.profile import DeviceProfile
from lab.speed.published_rows import Row

# Words that do not distinguish boards.
_NOISE = re.compile(
    r"\b(?:nvidia|google|samsung|intel|qualcomm|rockchip|broadcom|mediatek|processor|model|board"
    r"|developer|development|dev|devkit|kit|phone|smartphone|device|qrd|reference|android|sbc|5g"
    r"|mini pc|cpu|soc|for galaxy|rev(?:ision)? ?\d+(?: \d+)?)\b"
)
# Larger or dearer versions of a board around the same SoC, where no profile of their own exists.
_VERSION = re.compile(r"(?:proxl|plus|pro|ultra|max|xl)$")
_RAM = re.compile(r"(?<=[a-z0-9 -])[ -](\d{1,3}) ?gb?\b|\((\d{1,3}) ?gb?\b")


def board_key(text: str) -> str:
    """What is left of a device's name: `Raspberry Pi 4 Model B (8GB)` → `raspberrypi4b`."""
    words = re.sub(r"\([^)]*\)", " ", text.lower()).replace("+", " plus ")
    words = _RAM.sub(" ", words)
    words = re.sub(r"[^a-z0-9]+", " ", words)
    words = _NOISE.sub(" ", words.replace("compute module", "cm"))
    joined = re.sub(r"\s+", "", words)
    joined = re.sub(r"^(?:raspberrypi|rpi|raspi|pi)(?=\d|zero|cm)", "raspberrypi", joined)
    return re.sub(r"^raspberrypi5b$", "raspberrypi5", joined)


def soc_key(text: str) -> str:
    """`Qualcomm Snapdragon 8 Gen 3 (SM8650)` → `snapdragon8gen3`; RK3588S is the RK3588's die."""
    return re.sub(r"^(rk3588)s$", r"\1", board_key(text))


def bare_id(profile: DeviceProfile) -> str:
    """A board's id without its RAM size: what rows of several sizes are counted under."""
    return re.sub(r"-\d+gb$", "", profile.id)


@dataclass
class _Boards:
    by_name: dict[str, list[DeviceProfile]] = field(default_factory=dict)
    by_soc: dict[str, list[DeviceProfile]] = field(default_factory=dict)


@lru_cache(maxsize=1)
def _boards() -> _Boards:
    boards = _Boards()
    for profile in all_profiles().values():
        if profile.id.startswith("phone-"):
            continue  # a class, not a board that was measured
        names = {bare_id(profile), profile.name.split(",")[0], *profile.aliases}
        for known in {board_key(name) for name in names}:
            boards.by_name.setdefault(known, []).append(profile)
        for known in _soc_keys(profile):
            boards.by_soc.setdefault(known, []).append(profile)
    return boards


def _soc_keys(profile: DeviceProfile) -> set[str]:
    """A SoC's name and, where it names one SoC alone, the maker's code in brackets."""
    soc = profile.soc or ""
    codes = re.findall(r"\((sm\d+|mt\d+)\)", soc.lower())
    return {soc_key(soc), *codes} - {""}


def find_board(row: Row) -> DeviceProfile | None:
    """The profile of a row's device: by its name, else any board with the SoC; of several, the one
    with the nearest RAM (the largest if the row does not say).
    """
    found = next((boards for boards in _candidates(row) if boards), None)
    if not found:
        return None
    ram = row.number("ram_gb") or _stated_ram(row.device) or math.inf
    best = min(found, key=lambda p: (abs(min(ram, 1e6) - p.ram_bytes / 2**30), p.id))
    other_maker = "exynos" in row.soc.lower() and "exynos" not in (best.soc or "").lower()
    return None if other_maker else best


def _candidates(row: Row) -> Iterator[list[DeviceProfile] | None]:
    boards, name, soc = _boards(), board_key(row.device), soc_key(row.soc)
    # "RK3588 board" is an alias of one size, but all sizes are meant; a reference design is itself.
    named = boards.by_name.get(name, [])
    yield [profile for profile in named if profile.id.endswith("-reference")]
    yield boards.by_soc.get(name)
    yield named
    without = re.sub(r"plus$", "", name)
    if without not in boards.by_soc:  # a SoC with a plus is another one
        yield boards.by_name.get(without)
    if soc:
        yield boards.by_soc.get(soc)
        yield boards.by_name.get(soc) or boards.by_name.get(f"jetson{soc}")
        return
    yield boards.by_name.get(_VERSION.sub("", name))


def _stated_ram(device: str) -> float | None:
    stated = _RAM.search(device.lower())
    return float(stated[1] or stated[2]) if stated else None
