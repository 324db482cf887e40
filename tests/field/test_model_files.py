"""Models as people have them on disk: each is read, or refused by its true cause.

Rows are of `field_case`. Further inputs are in the other tables of this folder, and `test_places`
names the place of each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boardfit.edge.cli import main
from tests.converters.source.adapters import pair, write_peft
from tests.field.field_case import (
    BUILD,
    MEASURED,
    OFFLINE,
    PLAN,
    RUN,
    FieldCase,
    Write,
    file,
    folder,
    run_case,
)
from tests.field.model_folders import (
    INDEX,
    add_equal_head,
    edit_json,
    make_gptq,
    write_adapter,
    write_gguf,
    write_index,
    write_model,
)


def merged_with_adapter(path: Path) -> None:
    write_model(path)
    write_adapter(path)


def base_and_adapter(path: Path, width: int = 64) -> None:
    write_model(path)
    write_peft(path / "lora", pair("model.layers.0.mlp.up_proj", 128, width))


def training_run(path: Path) -> None:
    for step in (90, 500):
        write_model(path / f"checkpoint-{step}")
        (path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"PK\x03\x04")


def hub_cache(path: Path) -> None:
    write_model(path / "models--someone--base-1b" / "snapshots" / ("0" * 40))


def stale_index(path: Path) -> None:
    write_model(path)
    write_index(path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded_again(path: Path) -> None:
    """One whole set of shards, and the index of another number of them."""
    write_model(path, file="model-00001-of-00001.safetensors")
    write_index(path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def half_of_the_shards(path: Path) -> None:
    write_model(path, file="model-00001-of-00002.safetensors")
    write_index(path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def pad_past_the_rows(path: Path) -> None:
    write_model(path, pad_token_id=2048)
    token = {"id": 2048, "content": "[PAD]", "special": True, "normalized": False,
             "lstrip": False, "rstrip": False, "single_word": False}  # fmt: skip
    edit_json(path / "tokenizer.json", lambda t: t["added_tokens"].append(token))
    edit_json(path / "tokenizer_config.json", lambda t: t.update(pad_token="[PAD]"))


def word_past_the_rows(path: Path) -> None:
    write_model(path)
    token = {"id": 2048, "content": "[TOOL]", "special": False, "normalized": False,
             "lstrip": False, "rstrip": False, "single_word": False}  # fmt: skip
    edit_json(path / "tokenizer.json", lambda t: t["added_tokens"].append(token))


def two_templates(path: Path) -> None:
    write_model(path)
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}NEW{{ m.content }}<|im_end|>{% endfor %}"
    )


def encoded(encoding: str) -> Write:
    def write(path: Path) -> None:
        write_model(path)
        for name in ("config.json", "tokenizer_config.json"):
            (path / name).write_bytes((path / name).read_text().encode(encoding))

    return write


def without_weights(path: Path) -> None:
    write_model(path)
    (path / "model.safetensors").unlink()


def half_a_cache(place: Path) -> Path:
    """A download that was stopped before the weights, as the hub's cache keeps it."""
    commit = "c" * 40
    cache = place / "cache" / "hub" / "models--someone--base-1b"
    without_weights_there = cache / "snapshots" / commit
    without_weights(without_weights_there)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    return without_weights_there


def head(path: Path) -> None:
    write_model(path, add=lambda t: t.update({"score.weight": t["model.norm.weight"]}),
                architectures=["LlamaForSequenceClassification"])  # fmt: skip


def unmerged(path: Path) -> None:
    write_model(path, rename=lambda name: "base_model.model." + name, add=lambda t: t.update(
        {"model.layers.0.self_attn.q_proj.lora_A.default.weight":
         ("F32", np.zeros((8, 64), np.float32))}))  # fmt: skip


def cut(path: Path) -> None:
    write_gguf(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    path.with_name("model.gguf.part2of2").write_bytes(data[len(data) // 2 :])


def second_half(place: Path) -> Path:
    cut(place / "model.gguf.part1of2")
    return place / "model.gguf.part2of2"


def mmproj(path: Path) -> None:
    write_gguf(path, arch="clip", kind="mmproj", only=True,
               tensors={"v.patch_embd.weight": (32, 64)})  # fmt: skip


def lora(path: Path) -> None:
    write_gguf(path, kind="adapter", only=True, tensors={"blk.0.attn_q.weight.lora_a": (8, 64)})


def imatrix(path: Path) -> None:
    write_gguf(path, kind="imatrix", only=True, tensors={"blk.0.attn_q.weight.in_sum2": (1, 64)})


def lm_studio(path: Path) -> None:
    mmproj(path / "a-mmproj-model-f16.gguf")
    write_gguf(path / "small-Q8_0.gguf")


def vision_inside(path: Path) -> None:
    write_gguf(
        path,
        keys={"llama.vision.block_count": 1},
        tensors={"v.blk.0.attn_q.weight": (32, 32), "mm.input_projection.weight": (64, 32)},
    )


def bert(path: Path) -> None:
    write_gguf(path, arch="bert", keys={"bert.pooling_type": 2})


def as_tensor_type(number: int) -> Write:
    """A GGUF whose matrix has a type of that number."""

    def write(path: Path) -> None:
        from tests.edge.files.seeds import STR, gguf, kv, tensor

        arch = kv("general.architecture", STR, "llama")
        path.write_bytes(gguf([arch], [tensor("blk.0.w", (256,), number, 0)], bytes(512)))

    return write


CASES = [
    FieldCase("LoRA folder", folder(write_adapter), PLAN, 3,
              ("adapter", "edge build someone/base-1b --lora", "merge")),
    FieldCase("LoRA folder and its base", folder(base_and_adapter), f"{PLAN} --lora LORA", 0,
              ("an adapter is merged: LoRA of rank 4 in lora", "base-1b")),
    FieldCase("LoRA folder and another base", folder(lambda path: base_and_adapter(path, 72)),
              f"{PLAN} --lora LORA", 3, ("does not fit", "[4, 72]", "base-1b")),
    FieldCase("LoRA file", file("adapter/adapter_model.safetensors",
                                lambda path: write_adapter(path.parent)), PLAN, 3,
              ("adapter", "someone/base-1b", "merge")),
    FieldCase("merged with adapter", folder(merged_with_adapter), PLAN, 0, ("is not applied",)),
    FieldCase("unmerged adapter", folder(unmerged), PLAN, 3, ("not merged", "merge_and_unload")),
    FieldCase("leftover quantization_config", folder(lambda path: write_model(
        path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
        PLAN, 0, ("bitsandbytes", "is not used")),
    FieldCase("GPTQ without a word in config.json",
              folder(lambda path: write_model(path, add=make_gptq)), PLAN, 0,
              ("GPTQ, 4 bits", "quantized already")),
    FieldCase("GPTQ for a tool that reads files",
              folder(lambda path: write_model(path, add=make_gptq)), f"{PLAN} --format onnx", 3,
              ("onnx", "GPTQ, 4 bits", "--format gguf")),
    FieldCase("quantized by an unknown method", folder(lambda path: write_model(
        path, add=make_gptq, quantization_config={"quant_method": "squeeze"})), PLAN, 3,
        ("quant_method", "squeeze", "gptq")),
    FieldCase("stale index beside a whole file", folder(stale_index), PLAN, 0,
              (INDEX, "is not used")),
    FieldCase("stale index beside other shards", folder(sharded_again), PLAN, 0,
              (INDEX, "is not used")),
    FieldCase("half of the shards", folder(half_of_the_shards), PLAN, 3,
              ("model-00002-of-00002.safetensors", "missing")),
    FieldCase("tied head stored twice", folder(lambda path: write_model(path, add=add_equal_head)),
              PLAN, 0, ("left out",)),
    FieldCase("pad token past the rows", folder(pad_past_the_rows), PLAN, 0, ("[PAD]", "left out")),
    FieldCase("used token past the rows", folder(word_past_the_rows), PLAN, 3, ("[TOOL]", "rows")),
    FieldCase("prefix of torch.compile",
              folder(lambda path: write_model(path, rename=lambda name: "_orig_mod." + name)),
              PLAN, 0, ("taken off",)),
    FieldCase("prefix of a trainer",
              folder(lambda path: write_model(path, rename=lambda name: "student." + name)),
              PLAN, 0, ("taken off",)),
    FieldCase("wrappers in the middle", folder(lambda path: write_model(
        path, rename=lambda name: name.replace("layers.", "_fsdp_wrapped_module.layers."))),
        PLAN, 0, ("taken off",)),
    FieldCase("saved without a head", folder(lambda path: write_model(
        path, rename=lambda name: name.removeprefix("model."), architectures=["LlamaModel"])),
        PLAN, 0, ('lack "model."',)),
    FieldCase("classifier", folder(head), PLAN, 3, ("LlamaForSequenceClassification", "no text")),
    FieldCase("two templates", folder(two_templates), PLAN, 0, ("two chat templates differ",)),
    FieldCase("byte order marks", folder(encoded("utf-8-sig")), PLAN, 0),
    FieldCase("UTF-16", folder(encoded("utf-16")), PLAN, 3, ("UTF-16", "expected UTF-8")),
    FieldCase("folder called phi3", folder(write_model, "my-phi3-mini"), PLAN, 0, ("is called",)),
    FieldCase("yarn without the original length", folder(lambda path: write_model(
        path, rope_scaling={"rope_type": "yarn", "factor": 4.0})), PLAN, 0),
    FieldCase("folder of a training run", folder(training_run), PLAN, 3,
              ("no config.json", "checkpoint-500 (also: checkpoint-90)")),
    *(FieldCase(f"the hub's cache, {name}", lambda place, inner=inner: folder(hub_cache)(place)
                / inner, PLAN, 3, ("give the folder inside it", f"snapshots/{'0' * 40}"))
      for name, inner in (("all of it", "."), ("one model", "models--someone--base-1b"))),
    FieldCase("weights under another name", folder(lambda path: write_model(
        path, file="pytorch_model.safetensors")), PLAN, 3, ("rename", "pytorch_model.safetensors")),
    FieldCase("weights not downloaded", folder(without_weights), PLAN, 3,
              ("weights are missing", "hf download")),
    FieldCase("half a cache", half_a_cache, OFFLINE, 3, ("incomplete", "hf download")),
    FieldCase("original layout", folder(lambda path: (path / "params.json").write_text("{}")),
              PLAN, 3, ("original layout",)),
    FieldCase("Ollama's blob", file("blobs/sha256-00aa11bb", write_gguf), PLAN, 0),
    FieldCase("first piece", file("model.gguf.part1of2", cut), PLAN, 3, ("piece", "cat ")),
    FieldCase("second piece", second_half, PLAN, 3, ("piece", "cat ")),
    FieldCase("first piece, run", file("model.gguf.part1of2", cut), RUN, 3, ("cat ",)),
    FieldCase("second piece, run", second_half, RUN, 3, ("piece", "cat ")),
    FieldCase("vision part inside", file("model.gguf", vision_inside), PLAN, 0,
              ("text only: left out the vision tower (1 tensor", "projector (1 tensor")),
    FieldCase("vision part inside, run", file("model.gguf", vision_inside), RUN, 3,
              ("vision or audio part is inside", "edge build")),
    FieldCase("architecture of tomorrow",
              file("m.gguf", lambda path: write_gguf(path, arch="qwen9")), PLAN, 3,
              ("'qwen9'", "does not know")),
    FieldCase("encoder", file("m.gguf", bert), PLAN, 3, ("embedding model",)),
    FieldCase("embedding model of a decoder", file("m.gguf", lambda path: write_gguf(
        path, keys={"llama.pooling_type": 3})), PLAN, 3, ("embedding model",)),
    FieldCase("reranker", file("m.gguf", lambda path: write_gguf(
        path, keys={"llama.pooling_type": 4})), PLAN, 3, ("reranker",)),
    FieldCase("image model", file("m.gguf", lambda path: write_gguf(
        path, arch="flux", kind=None, only=True, tensors={"img_in.weight": (8, 64)})), PLAN, 3,
        ("image or video model",)),
    FieldCase("type of ik_llama.cpp", file("m.gguf", as_tensor_type(144)), PLAN, 3,
              ("ik_llama.cpp",), ("elsewhere",)),
    FieldCase("type of bitnet.cpp", file("m.gguf", as_tensor_type(36)), PLAN, 3,
              ("bitnet.cpp",), ("Q4_0",)),
    FieldCase("whisper's .bin", file("ggml-base.en.bin", lambda path: path.write_bytes(
        b"lmgg" + bytes(999))), PLAN, 3, ("whisper.cpp",), ("pickle",)),
    FieldCase("pickle without a suffix", file("weights", lambda path: path.write_bytes(
        b"\x80\x04" + bytes(99))), PLAN, 3, ("pickle",)),
    FieldCase("LFS pointer as .bin", file("pytorch_model.bin", lambda path: path.write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n")), PLAN, 3, ("LFS", "git lfs pull")),
    *(FieldCase(f"{name}, {command.split()[0]}", file("m.gguf", write), command, 3, words)
      for command in (PLAN, RUN)
      for name, write, words in (
          ("mmproj", mmproj, ("vision or audio part", "own GGUF file")),
          ("LoRA", lora, ("adapter", "llama-export-lora")),
          ("importance matrix", imatrix, ("importance matrix", "--imatrix")))),
    FieldCase("LM Studio's folder", folder(lm_studio), PLAN, 3, ("small-Q8_0.gguf",), ("mmproj",)),
    FieldCase("vision part inside, build", file("model.gguf", vision_inside), MEASURED, 0,
              ("note: text only: left out the vision tower", "quality: divergence")),
    FieldCase("absurd weights", file("model.gguf", lambda path: write_gguf(path, scale=2000.0)),
              MEASURED, 7, ("the source is no working model",)),
    FieldCase("absurd weights as they stand", file("m.gguf", lambda path: write_gguf(
        path, scale=2000.0)), f"{BUILD} --recipe as-is", 7, ("the source is no working model",)),
    FieldCase("name that the engine reads", file("m.gguf", lambda path: write_gguf(
        path, name="Phi-3 killer")), BUILD, 0, ("note:", "Phi 3 killer")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_field(
    case: FieldCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_case(case, tmp_path, monkeypatch, capsys)


def test_notes_are_printed_wherever_a_bundle_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    merged_with_adapter(tmp_path / "model")
    out = tmp_path / "bundle"
    for command in (BUILD, f"bundle show {out}", f"bundle show {out} --json"):
        places = {"MODEL": str(tmp_path / "model"), "OUT": str(out)}
        with pytest.raises(SystemExit) as left:
            main([places.get(word, word) for word in command.split()])
        printed = capsys.readouterr().out
        assert left.value.code == 0 and "is not applied" in printed, printed


def test_an_equal_head_is_no_second_matrix(tmp_path: Path) -> None:
    from boardfit.converters.source.resolve import open_model

    write_model(tmp_path / "plain")
    write_model(tmp_path / "twice", add=add_equal_head)
    plain, twice = open_model(tmp_path / "plain"), open_model(tmp_path / "twice")
    assert [t.name for t in plain.tensors] == [t.name for t in twice.tensors]
    write_model(
        tmp_path / "other",
        add=lambda t: t.update({"lm_head.weight": ("BF16", t["model.embed_tokens.weight"][1] + 1)}),
    )
    other = open_model(tmp_path / "other")
    assert any(t.name == "output.weight" for t in other.tensors)
    assert any("it is kept" in note for note in other.notes)


def test_the_template_file_wins(tmp_path: Path) -> None:
    from boardfit.converters.source.resolve import open_model

    two_templates(tmp_path)
    assert (open_model(tmp_path).chat_template or "").startswith("{% for m in messages %}NEW")


def test_wrapped_names_give_the_same_model(tmp_path: Path) -> None:
    from boardfit.converters.source.resolve import open_model

    write_model(tmp_path / "plain")
    write_model(tmp_path / "wrapped", rename=lambda name: "module._orig_mod." + name)
    plain, wrapped = open_model(tmp_path / "plain"), open_model(tmp_path / "wrapped")
    for a, b in zip(plain.tensors, wrapped.tensors, strict=True):
        assert a.name == b.name and np.array_equal(a.read(0, a.n_rows), b.read(0, b.n_rows))
