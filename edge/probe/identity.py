"""Identify a board by its device tree, firmware tables or Android properties."""

from __future__ import annotations

import re
from dataclasses import dataclass

from boardfit.device_profiles.catalog import shipped_profiles
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.probe.cpu import cpuinfo_model
from boardfit.edge.probe.system import System, first_text

_PROPERTY = re.compile(r"^\[([^\]\n]{1,256})\]: \[([^\]\n]{0,1024})\]\s*$", re.MULTILINE)
# Values of DMI tables that the vendor did not fill in.
_PLACEHOLDERS = ("to be filled", "default string", "system product", "not specified", "o.e.m.")

# How a device tree names boards that have a profile; the RAM decides between a family's sizes.
# Longer names first: "Orange Pi 5 Plus" is no "Orange Pi 5".
_BOARD_FAMILIES = (
    ("Raspberry Pi Zero 2 W", "raspberry-pi-zero-2-w"),
    ("Raspberry Pi 3 Model B Plus", "raspberry-pi-3b-plus"),
    ("Raspberry Pi 4 Model B", "raspberry-pi-4b-"),
    ("Raspberry Pi 400", "raspberry-pi-400"),
    ("Raspberry Pi Compute Module 4", "raspberry-pi-cm4-"),
    ("Raspberry Pi 5 Model B", "raspberry-pi-5-"),
    ("Raspberry Pi 500", "raspberry-pi-500"),
    ("Raspberry Pi Compute Module 5", "raspberry-pi-cm5-"),
    ("Orange Pi 5 Plus", None),
    ("Orange Pi 5", "orange-pi-5-"),
    ("Xunlong Orange Pi 5", "orange-pi-5-"),
    ("Radxa ROCK 5B", "rock-5b-"),
    ("NVIDIA Jetson Nano", "jetson-nano-"),
    ("NVIDIA Jetson TX2", "jetson-tx2"),
    ("NVIDIA Jetson Xavier NX", "jetson-xavier-nx-"),
    ("Jetson-AGX", "jetson-agx-xavier"),
    ("NVIDIA Jetson AGX Xavier", "jetson-agx-xavier"),
    ("NVIDIA Jetson Orin Nano", "jetson-orin-nano-"),
    ("NVIDIA Jetson Orin NX", "jetson-orin-nx-"),
    ("NVIDIA Orin NX", "jetson-orin-nx-"),
    ("NVIDIA Jetson AGX Orin", "jetson-agx-orin-"),
    ("NVIDIA Jetson AGX Thor", "jetson-agx-thor"),
)


@dataclass(frozen=True)
class AndroidFacts:
    """Facts from an Android system's properties; None where they lack one."""

    manufacturer: str | None
    model: str | None
    device: str | None
    soc: str | None
    release: str | None

    @property
    def name(self) -> str | None:
        parts = [part for part in (self.manufacturer, self.model) if part]
        if self.manufacturer and self.model and self.model.startswith(self.manufacturer):
            parts = [self.model]
        return " ".join(parts) or None


def parse_getprop(text: str | None) -> dict[str, str]:
    """`[name]: [value]` lines; values that run over several lines are left out."""
    return dict(_PROPERTY.findall((text or "").replace("\r\n", "\n")))


def android_facts(properties: dict[str, str]) -> AndroidFacts | None:
    """The facts among a system's properties; None for a system without any, which is no Android."""
    if not properties:
        return None

    def first(*names: str) -> str | None:
        return next((value for name in names if (value := properties.get(name, "").strip())), None)

    return AndroidFacts(
        first("ro.product.manufacturer", "ro.product.vendor.manufacturer", "ro.product.brand"),
        first("ro.product.model", "ro.product.vendor.model"),
        first("ro.product.device", "ro.product.vendor.device"),
        first("ro.soc.model", "ro.hardware.chipname", "ro.board.platform", "ro.hardware"),
        first("ro.build.version.release"),
    )


def read_board_model(system: System) -> str | None:
    """The board's name: device tree, /proc/cpuinfo, Android's properties, DMI; None in most VMs."""
    tree = first_text(system, ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"))
    android = android_facts(parse_getprop(system.output("getprop")))
    if android is not None and android.name:
        return android.name
    return tree or cpuinfo_model(system.read("/proc/cpuinfo") or "") or _dmi_name(system)


def _dmi_name(system: System) -> str | None:
    vendor = first_text(system, ("/sys/class/dmi/id/sys_vendor",))
    product = first_text(system, ("/sys/class/dmi/id/product_name",))
    words = [
        text for text in (vendor, product) if text and not text.lower().startswith(_PLACEHOLDERS)
    ]
    return " ".join(words) or None


def match_board(model: str | None, ram_bytes: int) -> DeviceProfile | None:
    """The shipped profile of this board: same family, nearest RAM size not below what is seen.

    MemTotal is less than what is soldered (firmware and kernel keep some), so the smallest profile
    that holds it is meant. None for boards without a profile.
    """
    if not model:
        return None
    rule = next((rule for rule in _BOARD_FAMILIES if model.startswith(rule[0])), None)
    if rule and rule[1] is None:
        return None
    shipped = shipped_profiles().values()
    family = (rule[1] if rule else None) or _slug(model)
    # Phones are called by their maker's name and without it: "Google Pixel 8", "Pixel 8".
    names = {family} if rule else {family, family.partition("-")[2]}
    sizes = [p for p in shipped if (rule and p.id.startswith(family)) or names & {p.id, *p.aliases}]
    fitting = [profile for profile in sizes if profile.ram_bytes >= ram_bytes]
    return min(fitting, key=lambda p: p.ram_bytes, default=None)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
