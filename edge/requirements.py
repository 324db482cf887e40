"""Which packages to install, by their own names, as boardfit's installed metadata states them.

Nothing of ours is published: `boardfit` on a package index would be a stranger's. Extras are taken
apart: `install_line("report")` is `pip install 'matplotlib>=3.9,<4' …`.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from boardfit.edge.errors import EngineMissingError

OURS = "boardfit"
_EXTRA = re.compile(r"""\bextra\s*==\s*["']([^"']+)["']""")
_PYTHON = re.compile(r"""python_version\s*(<=|>=|==|!=|<|>)\s*["'](\d+)\.(\d+)["']""")
_OURSELVES = re.compile(rf"{OURS}\s*\[([^\]]*)\]", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def explain_missing(error: ModuleNotFoundError, what: str, extra: str | None) -> Exception:
    """The error to raise when `what` cannot be imported: it names the packages, and the host
    where this is a board. A module of ours that is missing is a fault: `error` itself.
    """
    missing = error.name or ""
    is_board = missing == "boardfit.converters"
    if extra is None or (missing.split(".")[0] == OURS and not is_board):
        return error
    if is_board:
        return EngineMissingError(
            f"{what} runs on a host; this board has only the board's side of {OURS}",
            next_step=f"use a host with {OURS}'s sources and these packages: {install_line(extra)}",
        )
    return EngineMissingError(
        f"{what} needs the Python package {missing!r}, which is not installed",
        next_step=install_line(extra),
    )


def install_line(extra: str, *names: str) -> str:
    """A shell line that installs (some packages of) an extra; without metadata, from our own
    sources.
    """
    wanted = [text for text in _requirements(extra) if not names or normalize_name(text) in names]
    if not wanted:
        return f"in the folder of {OURS}'s sources: pip install -e '.[{extra}]'"
    return f"pip install {' '.join(map(shlex.quote, wanted))}"


def split_requirements(
    requires: Sequence[str],
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Requirements without an extra, and those of each extra, also through others of our extras."""
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    for text in requires:
        requirement, _, marker = text.partition(";")
        found = _EXTRA.search(marker)
        clauses = [part.strip(" ()") for part in re.split(r"\band\b", marker)]
        rest = " and ".join(part for part in clauses if part and not _EXTRA.search(part))
        kept = f"{requirement.strip()}; {rest}" if rest else requirement.strip()
        (extras.setdefault(found[1], []) if found else base).append(kept)
    return tuple(base), {name: tuple(_expand(name, extras, ())) for name in extras}


def is_true_for(marker: str, python: tuple[int, int]) -> bool:
    """Whether a marker holds on a Python version. Raises ValueError for one of another kind."""
    match = _PYTHON.fullmatch(marker.strip())
    if match is None:
        raise ValueError(marker)
    version = (int(match[2]), int(match[3]))
    return {
        "<": python < version, "<=": python <= version, ">": python > version,
        ">=": python >= version, "==": python == version, "!=": python != version,
    }[match[1]]  # fmt: skip


def _requirements(extra: str) -> Iterator[str]:
    from importlib import metadata

    try:
        stated = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:
        return
    for text in split_requirements(stated)[1].get(extra, ()):
        requirement, _, marker = text.partition(";")
        try:
            if not marker or is_true_for(marker, sys.version_info[:2]):
                yield requirement
        except ValueError:
            yield text  # pip can read it


def _expand(
    extra: str, extras: Mapping[str, Sequence[str]], above: tuple[str, ...]
) -> dict[str, None]:
    found: dict[str, None] = {}
    for text in extras.get(extra, ()) if extra not in above else ():
        ourselves = _OURSELVES.match(text)
        for name in ourselves[1].split(",") if ourselves else ():
            found |= _expand(name.strip(), extras, (*above, extra))
        if normalize_name(text) != OURS:
            found[text] = None
    return found


def normalize_name(requirement: str) -> str:
    """The package that a requirement names, as PEP 503 has it; "" for none."""
    match = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""
