"""The small text files beside the weights: JSON, YAML front matter, templates. All untrusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge.errors import InputError, UnsafeInputError
from edge.filekind import open_regular
from edge.units import format_bytes, printable

# tokenizer.json of a 256k vocabulary is 33 MB; nothing else comes near.
MAX_DOCUMENT_BYTES = 128 * 1024**2
MAX_CARD_BYTES = 4 * 1024**2


def read_text(path: Path, limit: int = MAX_DOCUMENT_BYTES) -> str:
    """The UTF-8 text of a regular file of at most `limit` bytes. Raises InputError otherwise."""
    file, size = open_regular(path)
    with file:
        if size > limit:
            raise UnsafeInputError(
                f"{path}: {format_bytes(size)}, more than the {format_bytes(limit)} that such a "
                "file may have"
            )
        data = file.read(limit + 1)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError when it is not one."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except RecursionError:
        raise UnsafeInputError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON: {printable(str(error))}",
            next_step="download the file again; a log-in page saved as a file looks like this",
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_front_matter(path: Path) -> dict[str, Any]:
    """The YAML header of a model card; empty when there is none. Raises InputError when the YAML
    is broken.

    "no" as a list entry stays the language and tabs count as two spaces, as in gguf's
    `Metadata.load_model_card`: both occur in published cards.
    """
    import yaml

    lines = read_text(path, MAX_CARD_BYTES).splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    text = "\n".join(lines[1:end]) + "\n"
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: broken YAML header: {printable(first)}") from None
    return value if isinstance(value, dict) else {}
