"""The part of the engine's source distribution that upstream's converter is made of."""

from __future__ import annotations

import ast
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from boardfit.converters.board.engine.source import PACKAGE, VERSION, fetch_sdist
from boardfit.converters.formats.tools.environments import one_maker
from boardfit.edge.disk.rooted import work_beside
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.terminal.progress import Say
from boardfit.edge.units import printable

#: A tree of llama.cpp to take in place of the one that lies in the source distribution.
OVERRIDE = "BOARDFIT_LLAMA_CPP"
SCRIPT = "convert_hf_to_gguf.py"
_PARTS = (SCRIPT, "conversion/", "gguf-py/gguf/", "LICENSE")
_TABLE = "TEXT_MODEL_MAP"


#: Families that neither we nor the pinned engine know, by model_type, and why.
NOT_YET = {"lfm3": "needs an engine of llama.cpp b11960 or later"}


def find_tree() -> Path | None:
    """The folder with upstream's converter if it is here, else None."""
    own = os.environ.get(OVERRIDE)
    tree = Path(own).expanduser() if own else cache_directory() / "converter" / VERSION
    return tree if (tree / SCRIPT).is_file() else None


def converter_tree(say: Say) -> Path:
    """The folder with upstream's converter, fetched and unpacked when it is first needed.

    Raises EngineMissingError when it cannot be fetched, IntegrityError for another file than the
    pinned one.
    """
    if own := os.environ.get(OVERRIDE):
        tree = Path(own).expanduser().absolute()
        if not (tree / SCRIPT).is_file():
            raise UsageError(
                f"{OVERRIDE} is {printable(own)!r}, where no {SCRIPT} lies",
                next_step="name a tree of llama.cpp, or unset it and boardfit fetches one",
            )
        return tree
    tree = cache_directory() / "converter" / VERSION
    if not tree.is_dir():
        tree.parent.mkdir(parents=True, exist_ok=True)
        with one_maker(tree.parent / f".{VERSION}.lock", say):
            if not tree.is_dir():
                _unpack(fetch_sdist(say), tree)
    return tree


def list_architectures(tree: Path) -> Mapping[str, str]:
    """The architectures of config.json that upstream converts, and the module for each.

    The table is read, not run.
    """
    path = tree / "conversion/__init__.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id == _TABLE and node.value:
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise InputError(f"{path} has no {_TABLE}: it is not the converter that this version knows")


def _unpack(sdist: Path, tree: Path) -> None:
    inside = f"{PACKAGE}-{VERSION}/vendor/llama.cpp/"

    def select(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        name = member.name.removeprefix(inside)
        if name == member.name or not name.startswith(_PARTS):
            return None
        plain = member.replace(name=PurePosixPath(name).as_posix(), deep=False)
        return tarfile.data_filter(plain, path)

    with work_beside(tree, "unpacking") as work:
        made = work.path / "made"
        made.mkdir()
        with tarfile.open(sdist) as archive:
            archive.extractall(made, filter=select)
        list_architectures(made)
        work.publish("made")
