"""Open a model file once for every engine, if the pinned keys accept it: where keys are pinned, a
file inside a bundle is that bundle's, and a plain file is refused."""

import json
import os
from pathlib import Path

from boardfit.edge.bundle.bundle import KIND, MANIFEST, MAX_MANIFEST_BYTES, Bundle, open_bundle
from boardfit.edge.disk.opened_file import FileIdentity, OpenedFile, OpenedFolder, Source
from boardfit.edge.errors import EdgeError, IntegrityError
from boardfit.edge.trust.pins import list_folders, refuse_unsigned


def model_file(path: Source) -> OpenedFile:
    """The file that a user named, opened: verified as its bundle's where it lies in one. Raises
    IntegrityError where keys are pinned and it lies in none, else as `open_bundle` does.
    """
    if isinstance(path, OpenedFile):
        return path
    if bundle := bundle_around(path):
        return file_in(bundle, path)
    opened = OpenedFile.open(path)
    refuse_unsigned(path)
    return opened.replace(beside=_Neighbours(path.parent))


def built_file(path: Path) -> OpenedFile:
    """A file that this process has made and tries before it is signed; no key is asked for."""
    return OpenedFile.open(path).replace(beside=_Neighbours(path.parent))


def bundle_around(path: Path) -> Bundle | None:
    """The bundle that a file lies in, opened and checked; None where it lies in none."""
    if not os.path.exists(path):
        return None
    for folder in reversed(list_folders(path)):  # what it really is comes last
        for place in (folder, *folder.parents):
            if _is_bundle(place):
                return open_bundle(place)
    return None


def file_in(bundle: Bundle, path: Path) -> OpenedFile:
    """The file of a bundle that `path` leads to. Raises IntegrityError when it is none of them."""
    wanted = FileIdentity.from_stat(os.stat(path))[:2]
    folder = OpenedFolder(bundle.path)
    for file in bundle.files:
        if folder.open(file.name).identity[:2] == wanted:
            return bundle.open(file.name)
    raise IntegrityError(
        f"{path} is not a file of the bundle {bundle.path} that it lies in",
        next_step=f"edge run {bundle.path}",
    )


def _is_bundle(folder: Path) -> bool:
    """Whether a folder says that it is a bundle; manifest.json is the name of other things, too."""
    if not os.path.isfile(folder / MANIFEST):
        return False
    try:
        document = json.loads(OpenedFile.open(folder / MANIFEST).read(MAX_MANIFEST_BYTES))
    except (EdgeError, OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("kind") == KIND


class _Neighbours:
    """Files beside a plain one, each opened once, no link followed."""

    def __init__(self, folder: Path) -> None:
        self._path, self._opened = folder, dict[str, OpenedFile | None]()

    def __call__(self, name: str) -> OpenedFile | None:
        if name not in self._opened:
            self._opened[name] = OpenedFolder(self._path).find(name)
        return self._opened[name]
