"""Checkpoints of no family of ours: refused in time, converted by upstream, built as all others."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.converters.formats.upstream import convert
from boardfit.converters.formats.upstream.tree import SCRIPT
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.source.hf import NoFamilyError, open_directory
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.chat.run_command import run
from boardfit.edge.errors import (
    DoesNotFitError,
    EngineMissingError,
    InputError,
    UnsafeInputError,
    UnsupportedModelError,
)
from boardfit.edge.process.child import OUR_FOLDER
from tests.converters.families.checkpoints import write_checkpoint
from tests.converters.formats.upstream.checkpoints import change_document, write_starcoder2

CONFIG = {"model_type": "other", "architectures": ["OtherForCausalLM"], "auto_map": {"A": "b.C"}}
SHAPES: dict[str, tuple[int, ...]] = {"embed.weight": (64, 32), "norm.weight": (32,)}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkpoint of a family that neither converter knows, with code beside it."""
    directory = tmp_path / "other"
    write_checkpoint(directory, CONFIG, SHAPES)
    for name in ("modeling_other.py", "training_args.bin", "optimizer.pt", "notes.md"):
        (directory / name).write_text("x")
    (directory / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["b.C"]}}')
    return directory


@pytest.fixture
def known(other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, called an architecture that upstream knows; its converter is not run."""
    (tmp_path / SCRIPT).touch()
    monkeypatch.setenv("BOARDFIT_LLAMA_CPP", str(tmp_path))
    change_document(other / "config.json", architectures=["StableLmForCausalLM"])
    return other


def checkpoint_in(directory: Path) -> SafetensorsCheckpoint:
    return SafetensorsCheckpoint(directory, json.loads((directory / "config.json").read_text()))


def refuse_to_make(name: str, **options: Any) -> Path:
    raise EngineMissingError("no network", next_step="go online")


def test_what_no_converter_knows_is_refused_before_an_environment_is_made(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "converter_tree", refuse_to_make)
    with pytest.raises(UnsupportedModelError, match="OtherForCausalLM") as caught:
        convert.open_any_model(other)
    assert "does not know it either" in str(caught.value)


def test_offline_names_the_two_ways_out(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "tool_python", refuse_to_make)
    with pytest.raises(
        EngineMissingError, match=r"model_type 'other'\) goes through upstream's"
    ) as caught:
        convert.open_any_model(known)
    step = str(caught.value.next_step)
    assert "go online once" in step and f"python {SCRIPT}" in step


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [(convert, "available_bytes", "of memory"), (shutil, "disk_usage", "the converted")],
    ids=["memory", "disk"],
)
def test_memory_and_disk_are_refused_before_anything_is_fetched(
    known: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, message: str
) -> None:
    def fetch(say: object) -> Path:
        raise AssertionError("fetched")

    short: Any = type("Usage", (), {"free": 100}) if "disk" in name else 100
    monkeypatch.setattr(module, name, lambda *arguments: short)
    monkeypatch.setattr(convert, "converter_tree", fetch)
    with pytest.raises(DoesNotFitError, match=message) as caught:
        convert.open_any_model(known)
    assert caught.value.shortfall_bytes


def test_pickles_are_refused(known: Path) -> None:
    (known / "model.safetensors").rename(known / "pytorch_model.bin")
    with pytest.raises(UnsafeInputError, match="pickle"):
        convert.open_any_model(known)


def test_the_converter_gets_no_code_and_no_pickle(other: Path, tmp_path: Path) -> None:
    linked = convert.link_checkpoint(checkpoint_in(other), tmp_path / "linked")
    found = sorted(path.name for path in linked.iterdir())
    assert found == ["config.json", "model.safetensors", "tokenizer_config.json"]
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((linked / name).read_text())


@pytest.mark.parametrize(
    ("dtype", "expected", "width"), [("BF16", "bf16", 2), ("F16", "f16", 2), ("F32", "f32", 4)]
)
def test_no_bit_is_lost_on_the_way(tmp_path: Path, dtype: str, expected: str, width: int) -> None:
    write_checkpoint(tmp_path / "one", CONFIG, SHAPES, dtype=dtype)
    checkpoint = checkpoint_in(tmp_path / "one")
    assert convert.choose_type(checkpoint) == expected
    weights = convert.file_bytes(checkpoint) - convert._VOCABULARY_BYTES
    assert weights == 64 * 32 * width + 32 * 4


def test_experts_of_a_layer_are_held_together(tmp_path: Path) -> None:
    experts = {f"layers.0.experts.{i}.up.weight": (64, 64) for i in range(4)}
    write_checkpoint(tmp_path / "moe", CONFIG, SHAPES | experts)
    held = convert.conversion_bytes(checkpoint_in(tmp_path / "moe")) - convert._BASE_BYTES
    assert held == 4 * 64 * 64 * convert._BYTES_PER_HELD_VALUE


def test_a_changed_checkpoint_is_converted_again(other: Path) -> None:
    checkpoint = checkpoint_in(other)
    before = convert._key(checkpoint, "same", "name")
    assert convert._key(checkpoint, "same", "other") != before
    (other / "model.safetensors").touch()
    assert convert._key(checkpoint, "same", "name") != before


# ---- with upstream's converter -------------------------------------------------------------------


@pytest.fixture
def upstream(oracle_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOARDFIT_UPSTREAM_PYTHON", str(oracle_python))


def invoke(command: Any, *words: str | Path) -> Any:
    done = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return done


@pytest.mark.oracle
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.usefixtures("upstream")
def test_a_starcoder2_checkpoint_is_built_and_runs(tmp_path: Path, llama_cpp_tree: Path) -> None:
    source = write_starcoder2(tmp_path / "tiny-coder", llama_cpp_tree)
    change_document(  # as transformers 5 writes it
        source / "tokenizer_config.json",
        tokenizer_class="TokenizersBackend", extra_special_tokens=["<fim_prefix>"],
    )  # fmt: skip
    with pytest.raises(NoFamilyError):
        open_directory(source)
    board, first, second = "raspberry-pi-5-8gb", tmp_path / "first", tmp_path / "second"
    done = invoke(build_command, source, "-d", board, "-o", first, "--threads", "1")
    assert "without a cage" not in done.stderr
    assert f"converting with upstream's {SCRIPT}" in done.stderr
    manifest = open_bundle(first).manifest
    assert manifest["model"]["family"] == manifest["model"]["arch"] == "starcoder2"
    assert manifest["model"]["source"]["kind"] == "hf-directory"
    assert SCRIPT in manifest["tools"] and "transformers" in manifest["tools"]
    assert any(SCRIPT in note for note in manifest["model"]["notes"])
    assert manifest["checks"]["vocabulary"]["pre"] == "starcoder"
    assert manifest["quality"]["within_bounds"]
    answer = json.loads(invoke(run, first, "def main", "--max-tokens", "4", "--json").stdout)
    assert answer["n_out"] == 4
    again = invoke(build_command, source, "-d", board, "-o", second, "--no-quality")
    assert "converting with upstream" not in again.stderr


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.usefixtures("upstream")
def test_what_upstream_fails_on_is_named(tmp_path: Path, llama_cpp_tree: Path) -> None:
    source = write_starcoder2(tmp_path / "broken", llama_cpp_tree)
    change_document(
        source / "config.json", architectures=["Starcoder2ForCausalLM"], num_hidden_layers=1
    )
    with pytest.raises(InputError, match="upstream's converter fails") as caught:
        convert.open_any_model(source)
    assert "layers.1." in str(caught.value)


REMOTE = """
import sys
from boardfit.converters.formats.upstream.worker.convert import refuse_remote_code
import transformers
if sys.argv[2] == "refused":
    refuse_remote_code(transformers)
try:
    transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.oracle
@pytest.mark.slow
def test_code_of_a_repository_is_never_run(tmp_path: Path, oracle_python: Path) -> None:
    source, ran = tmp_path / "remote", tmp_path / "ran"
    write_checkpoint(source, {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, SHAPES)
    (source / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PretrainedConfig\n"
        "class Own(PretrainedConfig):\n    model_type = 'own'\n"
    )

    def load(how: str) -> Sequence[str]:
        done = subprocess.run(
            [oracle_python, "-c", REMOTE, source, how], capture_output=True, text=True, timeout=120,
            env={"PYTHONPATH": OUR_FOLDER, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert load("refused") == ["ValueError"] and not ran.exists()
    load("trusted")
    assert ran.exists(), "the test would not notice code that is run"
