"""Our own wheel for the board: `boardfit` without the host's side, `boardfit.converters`."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.board.engine.wheel_file import wheel_name, write_wheel
from boardfit.edge import __version__
from boardfit.edge.errors import EngineMissingError
from boardfit.edge.process.child import OUR_FOLDER
from boardfit.edge.requirements import split_requirements

# Only this build of the name `boardfit` lacks the converters; the tag distinguishes the two.
_BUILD = "1board"
# Extras that no board has; the others stand in the metadata, so that messages there can name them.
_OF_DEVELOPERS = ("test", "train")
_ROOMS = ("edge", "device_profiles")
_SKIPPED = ("__pycache__",)


@dataclass(frozen=True)
class OwnWheel:
    """File name, bytes, and what has to be beside it on the board: requirement strings."""

    name: str
    data: bytes
    requirements: tuple[str, ...]


def own_wheel(extra: str) -> OwnWheel:
    """The board's wheel of this very boardfit, with what the engine extra `extra` requires. Raises
    EngineMissingError when boardfit is not installed with its metadata, or in a version that does
    not know the extra.
    """
    try:
        distribution = importlib.metadata.distribution("boardfit")
    except importlib.metadata.PackageNotFoundError:
        raise EngineMissingError(
            "boardfit's own metadata is not installed", next_step="pip install -e ."
        ) from None
    base, extras = split_requirements(distribution.requires or [])
    if extra not in extras:
        raise EngineMissingError(
            f"the installed boardfit does not know the extra {extra!r}",
            next_step="install it again: pip install -e '.[host]'",
        )
    version = __version__
    requirements = (*base, *extras[extra])
    metadata = (
        f"Metadata-Version: 2.4\nName: boardfit\nVersion: {version}\n"
        "Summary: The board's side of boardfit: chat, run, bench, probe.\n"
        "License-Expression: Apache-2.0\nLicense-File: LICENSE\nRequires-Python: >=3.10\n"
        + "".join(f"Requires-Dist: {text}\n" for text in requirements)
        + "".join(extra_metadata(name, texts) for name, texts in sorted(extras.items()))
    )
    files = board_files(Path(OUR_FOLDER))
    info = {
        "entry_points.txt": (
            b"[console_scripts]\nedge = boardfit.edge.supervisor:main\n"
            b"boardfit = boardfit.edge.supervisor:main\n"
        ),
        "licenses/LICENSE": read_license(distribution),
    }
    data = write_wheel(
        "boardfit", version, "py3-none-any", metadata, files, dist_info=info, build=_BUILD
    )
    name = wheel_name("boardfit", version, "py3-none-any", _BUILD)
    return OwnWheel(name, data, requirements)


def extra_metadata(name: str, requirements: Sequence[str]) -> str:
    """The lines of one extra in a wheel's metadata."""
    if name in _OF_DEVELOPERS:
        return ""
    lines = [f"Provides-Extra: {name}\n"]
    for text in requirements:
        requirement, _, marker = text.partition(";")
        marker = f"{marker.strip()} and extra == '{name}'" if marker else f"extra == '{name}'"
        lines.append(f"Requires-Dist: {requirement.strip()}; {marker}\n")
    return "".join(lines)


def board_files(folder: Path) -> dict[str, bytes]:
    """The files of `boardfit` in `folder` that a board needs, by path in the wheel."""
    package = folder / "boardfit"
    paths = [*package.glob("*"), *(path for room in _ROOMS for path in (package / room).rglob("*"))]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and not any(part in _SKIPPED for part in path.parts)
    }


def read_license(distribution: importlib.metadata.Distribution) -> bytes:
    """Our licence's text, from the installed metadata or from the checkout."""
    text = distribution.read_text("licenses/LICENSE")
    if text is not None:
        return text.encode()
    path = Path(__file__).resolve().parents[3] / "LICENSE"
    if not path.is_file():
        raise EngineMissingError(
            "the licence file of boardfit is not installed", next_step="pip install -e ."
        )
    return path.read_bytes()
