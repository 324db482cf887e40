"""Identify a board by its device tree, firmware tables or Android properties."""

import re
from dataclasses import dataclass

from boardfit.device_profiles.catalog import shipped_profiles
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.spellings import BoardNames, find_profiles, plain_name
from boardfit.edge.probe.cpu import find_field
from boardfit.edge.probe.system import System, first_text

_PROPERTY = re.compile(r"^\[([^\]\n]{1,256})\]: \[([^\]\n]{0,1024})\]\s*$", re.MULTILINE)
_TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")
# Values of DMI tables that the vendor did not fill in.
_PLACEHOLDERS = ("to be filled", "default string", "system product", "not specified", "o.e.m.")

# Less of its RAM than this share and a board is another one: firmware, carve-outs for a GPU and the
# kernel keep at most a quarter of it (a Raspberry Pi Zero 2 W shows 416 of 512 MiB).
_LEAST_RAM_SHARE = 0.6
# Names under which phones are sold, by the maker's own property.
_MARKETING_NAMES = (
    *("ro.product.marketname", "ro.config.marketing_name", "ro.vendor.oplus.market.name"),
    *("ro.vendor.oplus.market.enname", "ro.product.vendor.marketname"),
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
        maker, model = self.manufacturer or "", self.model or ""
        return (model if maker and model.startswith(maker) else f"{maker} {model}".strip()) or None


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


def read_board_names(system: System) -> BoardNames:
    """Everything by which the system names its board. `names` is empty in most virtual machines."""
    properties = parse_getprop(system.output("getprop"))
    android = android_facts(properties)
    cpuinfo = system.read("/proc/cpuinfo") or ""
    is_virtual = "hypervisor" in (find_field(cpuinfo, "flags") or "").split()
    tree = first_text(system, (f"{folder}/model" for folder in _TREES))
    compatible = first_text(system, (f"{folder}/compatible" for folder in _TREES)) or ""
    vendor, product = (_dmi_text(system, name) for name in ("sys_vendor", "product_name"))
    names = (
        android.name if android else None,
        tree,
        None if tree else find_field(cpuinfo, "Model"),
        " ".join(text for text in (vendor, product) if text),
        _dmi_text(system, "board_name"),
        *(properties.get(name) for name in _MARKETING_NAMES),
    )
    return BoardNames(
        names=tuple(dict.fromkeys(name for name in names if name and name.strip())),
        # Texts end in NUL; the reader over ssh sends newlines in their place.
        compatible=tuple(text for text in re.split(r"[\0\n]", compatible) if text),
        device=android.device if android else None,
        soc=android.soc if android else None,
        # A virtual machine shows its host's CPU and has another memory.
        cpu=None if is_virtual else find_field(cpuinfo, "model name"),
    )


def _dmi_text(system: System, name: str) -> str | None:
    text = first_text(system, (f"/sys/class/dmi/id/{name}",))
    return text if text and not text.lower().startswith(_PLACEHOLDERS) else None


def match_boards(board: BoardNames, ram_bytes: int) -> tuple[DeviceProfile, ...]:
    """The shipped profiles that this board can be, the likeliest first. MemTotal is less than what
    is soldered (firmware and kernel keep some), so the smallest profile that holds it is meant.
    """
    shipped = shipped_profiles()
    wanted = find_profiles(board)
    # Or those whose id or alias is this name, with the maker's name before it or without.
    slugs = {plain_name(name).replace(" ", "-") for name in board.names}
    slugs |= {slug.partition("-")[2] for slug in slugs}
    alike = [profile for profile in shipped.values() if slugs & {profile.id, *profile.aliases}]
    found = [shipped[name] for name in wanted] or alike
    fitting = [p for p in found if _LEAST_RAM_SHARE * p.ram_bytes <= ram_bytes <= p.ram_bytes]
    least = min((profile.ram_bytes for profile in fitting), default=0)
    return tuple(profile for profile in fitting if profile.ram_bytes == least)
