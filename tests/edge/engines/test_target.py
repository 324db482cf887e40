"""A bundle or a plain file, opened with the right settings; files the engine itself refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import gguf
import pytest

from boardfit.edge.bundle.bundle import seal_bundle
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.target import engine_of, open_model
from boardfit.edge.errors import (
    DoesNotFitError,
    EngineError,
    InputError,
    UnsafeInputError,
    UnsupportedModelError,
    UsageError,
)
from boardfit.edge.types import GenerationConfig, Message, Plan
from tests.edge.engines import tiny_gguf
from tests.edge.engines.conftest import Models
from tests.edge.engines.engine_models import CHAT_REPLY, ModelShelf

pytestmark = pytest.mark.engine

PLAN = Plan(
    engine="llama_cpp", recipe="f32", device="this-machine", n_ctx=512, kv_type="q8_0",
    n_threads=1, n_batch=128, n_ubatch=64, use_mmap=True, repack=False, artifact_bytes=1,
    memory={"weights_mapped": 1 << 20}, budget_bytes=1 << 30,
)  # fmt: skip


def make_bundle(folder: Path, model: Path, plan: Plan = PLAN) -> Path:
    folder.mkdir()
    shutil.copy(model, folder / "model.gguf")
    manifest = {"model": {"name": "tiny"}, "plan": plan.to_dict(), "recipe": {"id": "f32"}}
    seal_bundle(folder, manifest, {"model.gguf": "model"}, {})
    return folder


def test_bundle_opens_as_planned(models: Models, tmp_path: Path) -> None:
    opened = open_model(make_bundle(tmp_path / "b", models.random))
    info = opened.engine.describe()
    assert (opened.name, info.n_ctx, info.kv_type, info.n_batch) == ("tiny", 512, "q8_0", 128)
    assert info.details["n_ubatch"] == 64 and info.details["repack"] is False
    assert opened.plan == PLAN and opened.manifest
    opened.engine.close()


def test_options_override_the_plan(models: Models, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", models.random)
    opened = open_model(bundle, n_ctx=256, kv_type=None, n_threads=2)
    info = opened.engine.describe()
    assert (info.n_ctx, info.kv_type, info.n_threads) == (256, "q8_0", 2)
    opened.engine.close()


def test_a_plan_too_large_for_now_is_refused(models: Models, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, memory={"weights_mapped": 1 << 50})
    bundle = make_bundle(tmp_path / "b", models.random, plan)
    with pytest.raises(DoesNotFitError):
        open_model(bundle)
    open_model(bundle, check_memory=False).engine.close()


def test_plain_file_gets_defaults(models: Models) -> None:
    opened = open_model(models.random, n_threads=1)
    assert opened.bundle is None and opened.plan is None and opened.name == "random"
    assert opened.engine.n_ctx == 1024
    opened.engine.close()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_model(tmp_path / "absent")


# ---- other formats ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["litert", "tflite"])
def test_a_file_opens_in_the_engine_of_its_format(
    model_shelf: ModelShelf, tmp_path: Path, engine: str
) -> None:
    source = model_shelf[engine].random
    opened = open_model(source, n_threads=1)
    assert opened.engine.describe().name == engine
    opened.engine.close()
    folder = tmp_path / "renamed"
    shutil.copytree(source.parent, folder, ignore=shutil.ignore_patterns("*.litertlm", ".*"))
    odd = Path(shutil.copy(source, folder / "model.bin"))
    assert engine_of(odd) == engine, "the first bytes decide, not the name"


def test_a_file_of_no_known_kind_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a")
    assert engine_of(path) == "onnx"
    page = tmp_path / "model.litertlm.html"
    page.write_bytes(b"<!doctype html><html>")
    with pytest.raises(InputError, match="web page"):
        open_model(page)


@pytest.mark.parametrize("engine", ["litert", "tflite"])
def test_a_bundle_of_another_format_opens_as_planned(
    model_shelf: ModelShelf, tmp_path: Path, engine: str
) -> None:
    source = model_shelf[engine].scripted
    folder = tmp_path / "b"
    folder.mkdir()
    name = f"model{source.suffix}"
    shutil.copy(source, folder / name)
    roles = {name: "model"}
    if engine == "tflite":
        for path in source.parent.glob("*.json"):
            shutil.copy(path, folder / path.name)
            roles[path.name] = "tokenizer"
    plan = dataclasses.replace(PLAN, engine=engine, kv_type="f32")
    manifest = {"model": {"name": "tiny"}, "plan": plan.to_dict(), "recipe": {"id": "f32"}}
    seal_bundle(folder, manifest, roles, {})
    opened = open_model(folder)
    assert (opened.engine.describe().name, opened.engine.n_ctx) == (engine, 512)
    tokens = opened.engine.render([Message("user", "hello")])
    events = list(opened.engine.stream(tokens, GenerationConfig()))
    assert "".join(event.text for event in events) == CHAT_REPLY
    opened.engine.close()


# ---- what passes the linter and not the engine --------------------------------------------------


def test_unknown_architecture(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf.finish(
        tiny_gguf.start(path, "nonesuch", n_ctx=64, add_bos=True, template=None),
        {"token_embd.weight": tiny_gguf.np.zeros((4, 4), "f4")},
    )
    with pytest.raises(UnsupportedModelError, match="architecture"):
        open_engine("llama_cpp", path)


def test_missing_tensor_is_named(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = tiny_gguf.start(path, "llama", n_ctx=64, add_bos=True, template=None)
    tiny_gguf.attention_keys(writer, 64, 2, 128)
    tensors = tiny_gguf.llama_tensors(tiny_gguf.np.random.default_rng(0), 64, 2, 128)
    del tensors["blk.1.ffn_up.weight"]
    tiny_gguf.finish(writer, tensors)
    with pytest.raises(EngineError, match=r"llama\.cpp reported.*blk\.1\.ffn_up\.weight"):
        open_engine("llama_cpp", path)


def test_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = tiny_gguf.start(path, "llama", n_ctx=64, add_bos=True, template=None)
    tiny_gguf.attention_keys(writer, 64, 2, 128)
    tiny_gguf.finish(writer, {})
    with pytest.raises(UnsafeInputError):
        open_engine("llama_cpp", path)


@pytest.mark.parametrize("n_layer", [0, 2**31, 2**32 - 1])
def test_impossible_number_of_layers(tmp_path: Path, n_layer: int) -> None:
    """The library aborts the process for 0, and hangs on the others."""
    path = tmp_path / "m.gguf"
    writer = tiny_gguf.start(path, "llama", n_ctx=64, add_bos=True, template=None)
    tiny_gguf.attention_keys(writer, 64, n_layer, 128)
    tensors = tiny_gguf.llama_tensors(tiny_gguf.np.random.default_rng(0), 64, 2, 128)
    tiny_gguf.finish(writer, tensors)
    with pytest.raises(UnsafeInputError, match="layers"):
        open_engine("llama_cpp", path)


def test_split_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    writer = tiny_gguf.start(path, "llama", n_ctx=64, add_bos=True, template=None)
    writer.add_key_value("split.count", 2, gguf.GGUFValueType.UINT16)
    tiny_gguf.finish(writer, {"token_embd.weight": tiny_gguf.np.zeros((4, 4), "f4")})
    with pytest.raises(UnsupportedModelError, match="2 files"):
        open_engine("llama_cpp", path)


def test_no_template_says_so(tmp_path: Path) -> None:
    path = tiny_gguf.random_llama(tmp_path / "base.gguf", template=None)
    engine = open_engine("llama_cpp", path)
    with pytest.raises(UnsupportedModelError, match="template"):
        engine.render([Message("user", "x")])
    assert len(list(engine.stream([5], GenerationConfig(max_tokens=2, ignore_eos=True)))) == 2
    engine.close()


def test_what_is_switched_here_replaces_the_plans_switch() -> None:
    stored = EngineSettings(thinking="off", template_variables={"thinking": False, "level": 3})
    switched = stored.replace(thinking="on", template_variables={"name": "x"})
    assert switched.thinking == "on"
    assert switched.template_variables == {"level": 3, "name": "x"}
    assert stored.replace(n_threads=1).template_variables == stored.template_variables
    with pytest.raises(UsageError, match="thinking"):
        stored.replace(thinking="maybe")


@pytest.mark.parametrize(
    "entries", [{"template_variables": [1]}, {"thinking": "maybe"}, {"thinking": ["on"]}]
)
def test_a_plan_with_odd_template_settings_is_refused(entries: dict[str, object]) -> None:
    with pytest.raises(InputError, match="plan"):
        Plan.from_dict(entries)
