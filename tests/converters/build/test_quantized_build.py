"""`edge build` of checkpoints that are not their own floats: manifest and card name from what."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.bundle.quality_text import quality_lines
from boardfit.edge.errors import UnsupportedModelError, UsageError
from boardfit.edge.files.gguf import read_header
from tests.converters.build.test_build import build
from tests.converters.source.adapters import pair, write_peft
from tests.field.model_folders import make_gptq, write_model

pytestmark = pytest.mark.engine


def test_manifest_and_card_name_what_the_source_was(tmp_path: Path) -> None:
    write_model(tmp_path / "model", add=make_gptq)
    text = tmp_path / "text.txt"
    text.write_text("The lamp in the hall is on. Turn it off at ten, please. " * 60)
    out = tmp_path / "out"
    build(tmp_path / "model", "-d", "raspberry-pi-5-8gb", "-o", out, "--recipe", "q4_0",
          "--quality-text", text, quality=True)  # fmt: skip
    manifest = open_bundle(out).manifest
    stated = "GPTQ, 4 bits, groups of 32 (14 tensors)"
    assert manifest["model"]["source"]["quantized"] == stated
    assert any(stated in note for note in manifest["model"]["notes"])
    assert manifest["quality"]["reference"]["quantized"] == stated
    assert any(stated in line for line in quality_lines(manifest))


def test_an_adapter_is_merged_into_the_artifact(tmp_path: Path) -> None:
    """One tensor of the file differs from the base's, and the manifest names the adapter."""
    model, lora = tmp_path / "base-1b", tmp_path / "my-lora"
    write_model(model)
    write_peft(lora, pair("model.layers.1.mlp.up_proj", 128, 64))
    common = ("-d", "raspberry-pi-5-8gb", "--recipe", "q8_0")
    build(model, *common, "-o", tmp_path / "plain")
    build(model, *common, "-o", tmp_path / "merged", "--lora", lora, "--lora-scale", "0.5")
    contents = []
    for name in ("plain", "merged"):
        path = tmp_path / name / "model.gguf"
        header, data = read_header(path), path.read_bytes()
        starts = {t.name: (header.data_offset + t.offset, t.nbytes) for t in header.tensors}
        contents.append({n: data[at : at + size] for n, (at, size) in starts.items()})
    plain, merged = contents
    assert [name for name in plain if plain[name] != merged[name]] == ["blk.1.ffn_up.weight"]
    stated = open_bundle(tmp_path / "merged").manifest["model"]["source"]["adapter"]
    assert stated.startswith("LoRA of rank 4 in my-lora, 1 weights changed, at 0.5")
    with pytest.raises(UnsupportedModelError, match="my-lora"):
        build(model, *common[:2], "-o", tmp_path / "o", "--lora", lora, "--format", "onnx")


@pytest.mark.parametrize("words", [("--lora-scale", "2"), ("--lora-scale", "nan")])
def test_a_strength_needs_an_adapter(words: tuple[str, str], tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    with pytest.raises(UsageError, match="--lora-scale"):
        build(tmp_path / "model", "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out", *words)
