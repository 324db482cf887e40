"""The part of the engine's source distribution that upstream's converter is made of."""

import functools
import os
import tarfile
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


#: Families that neither we nor the pinned engine know, by model_type, and why.
NOT_YET = {"lfm3": "needs an engine of llama.cpp b11960 or later"}


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


@functools.cache
def known_architectures() -> tuple[str, ...]:
    """The architectures of config.json that the pinned converter takes. Listing them needs none."""
    text = Path(__file__).with_name("architectures.txt").read_text(encoding="utf-8")
    return tuple(text.split())


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
        if not (made / SCRIPT).is_file():
            raise InputError(f"{sdist} is not laid out like the {PACKAGE} that this version knows")
        work.publish("made")
