"""The files beside the weights: JSON, YAML front matter, templates, licences. All untrusted.

Every one is opened by `read_bytes`, which follows no link out of the checkpoint's folder and reads
no more than the name's limit.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boardfit.edge.disk.input_folder import is_file_below
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.files.kind import read_regular, read_regular_text
from boardfit.edge.units import format_bytes, printable

MAX_CARD_BYTES = 4 * 1024**2
# PyYAML reads 80 KB a second. Long lists of evaluations have 200 KB.
_MAX_HEADER_CHARACTERS = 256 * 1024
# Configurations have some KiB, lists of merges some MiB.
_MAX_DOCUMENT_BYTES = 16 * 1024**2
_LIMITS = {
    # The largest tokenizer.json in the wild (262,144 tokens, 500,000 merges) is 33 MB.
    "tokenizer.json": 128 * 1024**2,
    "tekken.json": 64 * 1024**2,
    "tokenizer.model": 64 * 1024**2,
    "model.safetensors.index.json": 64 * 1024**2,
    "chat_template.jinja": 4 * 1024**2,
    "chat_template.json": 4 * 1024**2,
    "README.md": MAX_CARD_BYTES,
    # A dense layer behind an embedding model; the model's own weights are mapped.
    "model.safetensors": 64 * 1024**2,
}
# Copied into the bundle when the checkpoint has them, under the role on the right.
_COMPANIONS = {
    **dict.fromkeys(("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING", "NOTICE"), "license"),
    "README.md": "card",
}
MAX_COMPANION_BYTES = 1024 * 1024
#: What sentence-transformers does with a model's vectors: a list of modules, each in a folder.
MODULES = "modules.json"
MODULE_FOLDER = re.compile(r"\d{1,2}_[A-Za-z]{1,40}")
MODULE_FILES = ("config.json", "model.safetensors")
# Files that the tools of other formats read by themselves, under any name.
_READ_BY_TOOLS = (".json", ".model", ".jinja", ".txt", ".safetensors")


def has_file(path: Path) -> bool:
    """Whether a checkpoint has the file. Raises UnsafeInputError for one that leads elsewhere."""
    return is_file_below(path.parent, path.name)


def read_bytes(path: Path, limit: int | None = None, *, below: Path | None = None) -> bytes:
    """The content of a checkpoint's file, of at most `limit` bytes (None: what the name allows).
    `below` is the checkpoint's folder where it is not the file's own.

    Raises InputError otherwise, UnsafeInputError for a link that leads out of the folder.
    """
    return read_regular(path, limit or _limit(path), below=below or path.parent)


def read_text(path: Path, limit: int | None = None, *, below: Path | None = None) -> str:
    """The UTF-8 text of a checkpoint's file. Raises like `read_bytes`."""
    return read_regular_text(path, limit or _limit(path), below=below or path.parent)


def _limit(path: Path) -> int:
    return _LIMITS.get(path.name, _MAX_DOCUMENT_BYTES)


def module_files(directory: Path) -> list[str]:
    """The files of sentence-transformers' modules (pooling, dense layers) below a checkpoint, which
    modules.json names. Empty where it is absent.

    Raises UnsafeInputError for a module whose folder is not a plain name.
    """
    found = []
    for module in read_modules(directory):
        folder = str(module.get("path", ""))
        if folder and not MODULE_FOLDER.fullmatch(folder):
            raise UnsafeInputError(
                f"{directory / MODULES}: a module lies in {printable(folder)!r}; expected a folder "
                "such as 1_Pooling"
            )
        names = (f"{folder}/{name}" for name in MODULE_FILES) if folder else ()
        found += [name for name in names if is_file_below(directory, name)]
    return found


def read_modules(directory: Path) -> list[dict[str, Any]]:
    """What modules.json lists. Raises InputError where it is no list of modules."""
    if not has_file(directory / MODULES):
        return []
    value = read_json(directory / MODULES)
    if not isinstance(value, list) or not all(isinstance(module, dict) for module in value):
        raise InputError(f"{directory / MODULES}: expected a list of modules")
    return value


def copy_document(path: Path, target: Path) -> None:
    """Copy a checkpoint's file. Raises like `read_bytes`."""
    target.write_bytes(read_bytes(path))


def check_folder(directory: Path) -> None:
    """Raise UnsafeInputError if a file that a converter reads leads out of the checkpoint."""
    for path in sorted(directory.iterdir()):
        if path.suffix in _READ_BY_TOOLS or path.name in _COMPANIONS:
            has_file(path)


def companions(directory: Path) -> Iterator[tuple[str, str]]:
    """Name and role of each licence and card that goes into the bundle."""
    for name, role in _COMPANIONS.items():
        path = directory / name
        if has_file(path) and 0 < path.stat().st_size <= MAX_COMPANION_BYTES:
            yield name, role


def companion_notes(directory: Path) -> list[str]:
    """Notes about licences and cards that are too large for the bundle."""
    return [
        f"{name} is left out of the bundle: {format_bytes((directory / name).stat().st_size)}, "
        f"more than {format_bytes(MAX_COMPANION_BYTES)}"
        for name in _COMPANIONS
        if has_file(directory / name) and (directory / name).stat().st_size > MAX_COMPANION_BYTES
    ]


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError when it is not one."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises InputError when there is none."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise UnsafeInputError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON: {printable(str(error))}",
            next_step="download the file again; a log-in page saved as a file looks like this",
        ) from None


def read_front_matter(path: Path) -> dict[str, Any]:
    """The YAML header of a model card; empty when there is none. Raises InputError when the YAML
    is broken.

    "no" as a list entry stays the language and tabs count as two spaces, as in gguf's
    `Metadata.load_model_card`: both occur in published cards.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """Takes no aliases: a few lines of them stand for gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it has aliases (*name)")
            return super().compose_node(parent, index)

    lines = read_text(path).splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    text = "\n".join(lines[1:end]) + "\n"
    if len(text) > _MAX_HEADER_CHARACTERS:
        raise InputError(
            f"{path}: its YAML header has {len(text)} characters; {_MAX_HEADER_CHARACTERS} is the "
            "most"
        )
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        value = yaml.load(text, Loader=PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: broken YAML header: {printable(first)}") from None
    return value if isinstance(value, dict) else {}
