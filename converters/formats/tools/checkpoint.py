"""A checkpoint as the tools of other formats read it, made of one as people have it: a stale index,
a wrapper's part of each name, the settings of a training in 4 bits and a byte order mark are put
right.
"""

import codecs
import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boardfit.converters.documents import check_folder, has_file, read_bytes, read_json_object
from boardfit.converters.source.checkpoint import INDEX, SafetensorsCheckpoint
from boardfit.edge.files.safetensors import SafetensorsHeader

# Never code or pickles.
_DOCUMENTS = (".json", ".model", ".jinja", ".txt")
# Code, and a quantization that the tensors do not have: `SafetensorsCheckpoint` has looked.
_LEFT_OUT = ("auto_map", "quantization_config", "quantization", "compression_config")


def link_checkpoint(directory: Path, target: Path) -> Path:
    """A new folder `target` of links to the weights and documents of a checkpoint. Its
    configuration names no code and no quantization. Weights whose names differ are copied.

    Raises InputError for a broken checkpoint.
    """
    check_folder(directory)
    config = read_json_object(directory / "config.json")
    checkpoint = SafetensorsCheckpoint(directory, config)
    target.mkdir(parents=True)
    for path in sorted(directory.iterdir()):
        if path.suffix in _DOCUMENTS and path.name not in ("config.json", INDEX) and has_file(path):
            _link_document(path, target / path.name)
    # A context that generation_config.json or the tokenizer contradicts is the model's own affair.
    _write_json(target / "config.json", {k: v for k, v in config.items() if k not in _LEFT_OUT})
    _link_weights(checkpoint, target)
    return target


def _link_document(path: Path, link: Path) -> None:
    data = read_bytes(path)
    if data.startswith(codecs.BOM_UTF8):
        link.write_bytes(data.removeprefix(codecs.BOM_UTF8))
    else:
        link.symlink_to(path.resolve())


def _link_weights(checkpoint: SafetensorsCheckpoint, target: Path) -> None:
    plain = checkpoint.plain_names()
    weight_map: dict[str, str] = {}
    alone = len(checkpoint.shards) == 1
    for shard in checkpoint.shards:
        name = "model.safetensors" if alone else shard
        source, header = checkpoint.directory / shard, checkpoint.headers[shard]
        weight_map |= {plain[stored]: name for stored in header.tensors}
        if all(stored == plain[stored] for stored in header.tensors):
            (target / name).symlink_to(source.resolve())
        else:
            _copy_renamed(source, header, plain, target / name)
    if not alone:
        _write_json(target / INDEX, {"metadata": {}, "weight_map": weight_map})


def _copy_renamed(
    source: Path, header: SafetensorsHeader, plain: Mapping[str, str], target: Path
) -> None:
    """A shard with other names of its tensors; the data is copied as it is."""
    document: dict[str, Any] = {"__metadata__": dict(header.metadata)}
    for stored, entry in header.tensors.items():
        document[plain[stored]] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [entry.start, entry.end],
        }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as file, target.open("xb") as copy:
        copy.write(struct.pack("<Q", len(text)) + text)
        file.seek(header.data_offset)
        shutil.copyfileobj(file, copy, 1 << 24)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
