"""Find boards by id or alias: those that ship with boardfit, and those that the user has probed."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from boardfit.device_profiles.profile import DeviceProfile, ProfileError, suggest
from boardfit.device_profiles.toml import build_profile, merge, parse_sources, parse_toml

_HERE = Path(__file__).parent
THIS_MACHINE = "this-machine"


def load_profile(path: Path, socs: Path = _HERE / "socs") -> DeviceProfile:
    """The profile in one board file. Raises ProfileError that names the file and the key."""
    data, sources = _read(path)
    base_name = data.pop("extends", None)
    if base_name is not None:
        base_path = socs / f"{base_name}.toml"
        if not base_path.is_file():
            known = [p.stem for p in socs.glob("*.toml")]
            raise ProfileError(
                f"{path.name}: extends {base_name!r}, which is not in {socs.name}/."
                f"{suggest(base_name, known)}"
            )
        base, base_sources = _read(base_path)
        for key in ("id", "name", "aliases", "extends"):
            if key in base:
                raise ProfileError(f"{base_path.name}: a base file must not set {key!r}")
        # A list of the board's own replaces the base's, sources included.
        replaced = tuple(f"{key}." for key in data if isinstance(data[key], list))
        kept = {k: v for k, v in base_sources.items() if not (replaced and k.startswith(replaced))}
        data, sources = merge(base, data), {**kept, **sources}
    profile = build_profile(data, path.name, sources)
    if profile.id != path.stem:
        raise ProfileError(f"{path.name}: id {profile.id!r} must be the file's name, {path.stem!r}")
    return profile


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path.name}: cannot be read: {error}") from None
    return parse_toml(text, path.name), parse_sources(text)


def load_profiles(folder: Path) -> dict[str, DeviceProfile]:
    """All profiles of a folder by id. Raises ProfileError on an id or alias used twice."""
    profiles = {path.stem: load_profile(path) for path in sorted(folder.glob("*.toml"))}
    owner: dict[str, str] = {THIS_MACHINE: THIS_MACHINE}
    for profile in profiles.values():
        for name in (profile.id, *profile.aliases):
            if owner.setdefault(name, profile.id) != profile.id or name == THIS_MACHINE:
                raise ProfileError(f"the name {name!r} is used by {owner[name]} and {profile.id}")
    return profiles


@lru_cache(maxsize=1)
def shipped_profiles() -> dict[str, DeviceProfile]:
    """The boards in this package by id, without `this-machine`, which is probed."""
    return load_profiles(_HERE / "boards")


def user_boards_directory() -> Path:
    """Where `edge probe` keeps boards: the user's data folder (XDG_DATA_HOME), boardfit/boards."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(base) / "boardfit/boards"


def user_profiles() -> dict[str, DeviceProfile]:
    """The user's own boards by id; empty when there are none. Read anew on every call."""
    folder = user_boards_directory()
    return load_profiles(folder) if folder.is_dir() else {}


def all_profiles() -> dict[str, DeviceProfile]:
    """Shipped boards and the user's own by id. Raises ProfileError for a name of two boards."""
    shipped, own = shipped_profiles(), user_profiles()
    taken = {name: p.id for p in shipped.values() for name in (p.id, *p.aliases)}
    for profile in own.values():
        for name in (profile.id, *profile.aliases):
            if name in taken:
                raise ProfileError(
                    f"{user_boards_directory() / profile.id}.toml: the name {name!r} is that of the"
                    f" shipped board {taken[name]}; rename the file and its id"
                )
    return {**shipped, **own}


def find_profile(name: str) -> DeviceProfile:
    """A board by id or alias. Raises ProfileError for an unknown name, or one of two boards."""
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    folders = (_HERE / "boards", user_boards_directory())
    found = [profile for folder in folders if (profile := _find_in(folder, wanted)) is not None]
    if len(found) == 1:
        return found[0]
    profiles = all_profiles()  # two of one name: this distinguishes them
    if found:
        return found[0]
    names = [THIS_MACHINE, *profiles, *(a for p in profiles.values() for a in p.aliases)]
    raise ProfileError(
        f"unknown device {name!r}.{suggest(wanted, names)} `edge devices` lists all of them."
    )


def _find_in(folder: Path, wanted: str) -> DeviceProfile | None:
    direct = folder / f"{wanted}.toml"
    if wanted.replace("-", "").isalnum() and direct.is_file():
        return load_profile(direct)
    for path in sorted(folder.glob("*.toml")):
        # Parsing all boards to find one takes longer than planning does.
        if wanted and f'"{wanted}"' in path.read_text(encoding="utf-8", errors="replace"):
            profile = load_profile(path)
            if wanted in profile.aliases:
                return profile
    return None
