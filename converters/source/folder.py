"""What a folder without `config.json` is, so that a refusal names its true cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

from boardfit.converters.documents import has_file
from boardfit.converters.source.checkpoint import refuse_adapter
from boardfit.edge.errors import EdgeError, InputError, UnsupportedModelError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.gguf.purpose import find_purpose
from boardfit.edge.units import printable

_GIVE_DIRECTORY = "give the directory that holds config.json and model.safetensors, or a .gguf file"
_MODEL_CONFIGS = ("config.json", "adapter_config.json")
# A folder of other things may have many; opening them all is of no use.
_MOST_FILES = 200


def refuse_without_config(directory: Path) -> NoReturn:
    """Raises InputError that names what the folder is, and the path to give instead."""
    refuse_adapter(directory)
    # A file that cannot be read names its own fault when it is given.
    models = language_models(directory) or sorted(directory.glob("*.gguf"))[:1]
    if models:
        more = f" (also here: {', '.join(p.name for p in models[1:4])})" if models[1:] else ""
        raise _without_config(directory, f"give edge the GGUF file itself: {models[0]}{more}")
    original = next((n for n in ("params.json", "tekken.json") if has_file(directory / n)), None)
    if original or any(directory.glob("consolidated*")):
        raise UnsupportedModelError(
            f"{directory}: a checkpoint in its author's original layout "
            f"({original or 'consolidated weights'}), without config.json",
            next_step="use the checkpoint in Hugging Face's layout, with config.json and "
            "model.safetensors",
        )
    if has_file(directory / "model_index.json"):
        raise UnsupportedModelError(
            f"{directory}: a diffusers pipeline (model_index.json), not a language model"
        )
    inner = inner_models(directory)
    if inner:
        more = f" (also: {', '.join(p.name for p in inner[1:4])})" if inner[1:] else ""
        raise _without_config(directory, f"give the folder inside it: {inner[0]}{more}")
    raise _without_config(directory, _GIVE_DIRECTORY)


def language_models(directory: Path) -> list[Path]:
    """The GGUF files of a folder that hold a language model, the first part of a split one."""
    paths = sorted(directory.glob("*.gguf"))[:_MOST_FILES]
    return [path for path in paths if _is_language_model(path)]


def inner_models(directory: Path) -> list[Path]:
    """Folders inside that hold a model or an adapter, the latest of a training run first."""
    found = list(islice(_inner_folders(directory), _MOST_FILES))
    return sorted(found, key=lambda path: (-_last_number(path.name), path.name))


def _inner_folders(directory: Path) -> Iterator[Path]:
    # Of the hub's cache: a model's folder, all of them, and the folder around.
    for pattern in ("*", "snapshots/*", "models--*/snapshots/*", "hub/models--*/snapshots/*"):
        for path in directory.glob(pattern):
            if path.is_dir() and any(has_file(path / name) for name in _MODEL_CONFIGS):
                yield path


def _last_number(name: str) -> int:
    digits = re.findall(r"\d{1,9}", name)
    return int(digits[-1]) if digits else 0


def _is_language_model(path: Path) -> bool:
    if (match := re.search(r"-(\d{5})-of-\d{5}\.gguf$", path.name)) and match[1] != "00001":
        return False
    try:
        return find_purpose(read_header(path)) is None
    except (EdgeError, OSError):
        return False


def _without_config(directory: Path, next_step: str) -> InputError:
    return InputError(
        f"{printable(str(directory))}: no config.json, so this is not a Hugging Face model "
        "directory",
        next_step=next_step,
    )
