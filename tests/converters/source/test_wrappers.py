"""What is around a language model is left out by name, and need not be there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from boardfit.converters.source.resolve import open_model
from boardfit.converters.source.wrappers import describe_left_out
from boardfit.edge.errors import InputError
from tests.converters.families.cases_qwen35 import qwen35, qwen35_shapes, with_tower, wrapped
from tests.converters.families.checkpoints import write_checkpoint
from tests.converters.source.conftest import SAMPLE, TOKENIZER_FILES


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """A Qwen3.5 with a vision tower and an MTP head; the tower is the last of four shards."""
    config = wrapped(qwen35(vocab_size=2048), "qwen3_5", "Qwen3_5ForConditionalGeneration")
    directory = tmp_path / "seeing"
    shapes = with_tower(qwen35_shapes(config["text_config"], mtp=True))
    ours = {name: shape for name, shape in shapes.items() if ".visual." not in name}
    write_checkpoint(directory, config, ours, n_shards=3)
    index = directory / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    tower = {name: shape for name, shape in shapes.items() if name not in ours}
    write_checkpoint(tmp_path / "tower", config, tower)
    shutil.move(tmp_path / "tower/model.safetensors", directory / "model-tower.safetensors")
    value["weight_map"] |= dict.fromkeys(tower, "model-tower.safetensors")
    index.write_text(json.dumps(value))
    for name in TOKENIZER_FILES:
        shutil.copy(SAMPLE / name, directory / name)
    return directory


def test_parts_are_named_with_tensors_and_bytes() -> None:
    notes = describe_left_out(
        [
            ("model.visual.blocks.0.attn.qkv.weight", 1024),
            ("vision_tower.encoder.weight", 1024),
            ("multi_modal_projector.linear_1.weight", 10),
            ("model.audio_tower.conv.weight", 4),
            ("mtp.fc.weight", 2048),
        ],
        can_keep_mtp=True,
    )
    assert notes == [
        "text only: left out the vision tower (2 tensors, 2.00 KiB) and the audio tower "
        "(1 tensor, 4 B) and the projector (1 tensor, 10 B)",
        "left out the MTP head (1 tensor, 2.00 KiB), which guesses tokens ahead; --mtp keep keeps "
        "it",
    ]
    assert describe_left_out([]) == []
    assert describe_left_out([("mtp.fc.weight", 1)])[0].endswith("guesses tokens ahead")


def test_the_notes_of_a_checkpoint_that_sees(seeing: Path) -> None:
    notes = open_model(seeing).notes
    assert any("the vision tower (3 tensors, " in note for note in notes)
    assert any("the MTP head (15 tensors, " in note for note in notes)
    kept = open_model(seeing, mtp="keep")
    assert not any("MTP" in note for note in kept.notes)
    assert kept.source.fingerprint != open_model(seeing, mtp="drop").source.fingerprint


def test_a_missing_tower_does_not_matter(seeing: Path) -> None:
    whole = open_model(seeing)
    (seeing / "model-tower.safetensors").unlink()
    spec = open_model(seeing)
    assert [t.name for t in spec.tensors] == [t.name for t in whole.tensors]
    assert any(
        "model-tower.safetensors is not here; its 3 tensors belong to a vision" in note
        for note in spec.notes
    )


def test_a_missing_part_of_the_text_model_matters(seeing: Path) -> None:
    (seeing / "model-tower.safetensors").unlink()
    (seeing / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors is missing"):
        open_model(seeing)
