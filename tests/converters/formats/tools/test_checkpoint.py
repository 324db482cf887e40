"""What tools of other formats get to read of a checkpoint as people have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from boardfit.converters.formats.tools.checkpoint import link_checkpoint
from boardfit.converters.source.checkpoint import INDEX, SafetensorsCheckpoint
from tests.field.model_folders import (
    PARTS,
    llama_config,
    weights,
    write_index,
    write_model,
    write_shards,
)


def stale_index(folder: Path) -> None:
    write_model(folder)
    write_index(folder, *PARTS)


def other_name(folder: Path) -> None:
    write_model(folder, file="model.fp16.safetensors")


def marked(folder: Path) -> None:
    """Wrapped names, a training in 4 bits, and byte order marks in front of the documents."""
    write_model(
        folder,
        rename=lambda name: "_orig_mod." + name,
        auto_map={"a": "code.py"},
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
    )
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text(), encoding="utf-8-sig")
    (folder / "code.py").write_text("raise SystemExit")


def shards(folder: Path) -> None:
    """Two parts without an index, whose names lack `model.`."""
    write_shards(folder, rename=lambda name: name.removeprefix("model."))


@pytest.mark.parametrize("write", [write_model, stale_index, other_name, marked, shards])
def test_tools_find_plain_names(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "source")
    linked = tmp_path / "copied"  # our own reader follows no link out of a folder
    shutil.copytree(link_checkpoint(tmp_path / "source", tmp_path / "linked"), linked)
    files = {path.name for path in linked.iterdir()}
    config = json.loads((linked / "config.json").read_text())
    assert not {"auto_map", "quantization_config"} & set(config) and "code.py" not in files
    json.loads((linked / "tokenizer_config.json").read_text())
    checkpoint = SafetensorsCheckpoint(linked, config)
    expected = weights(llama_config())
    assert checkpoint.plain_names() == {name: name for name in expected}
    assert not checkpoint.notes
    for name, (_, values) in expected.items():
        assert (checkpoint.tensor(name).data == values).all()
    if len(checkpoint.shards) == 1:
        assert checkpoint.shards == ["model.safetensors"] and INDEX not in files
    else:
        assert set(json.loads((linked / INDEX).read_text())["weight_map"]) == set(expected)
