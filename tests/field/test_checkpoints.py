"""Checkpoints of Hugging Face as fine-tuning, merging and downloading leave them.

A row is called as the input is. See `field_case` for its columns.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.families.cases_gemma import gemma2, gemma3, gemma_shapes
from tests.converters.families.cases_phi3 import phi3, phi3_shapes
from tests.converters.families.checkpoints import decoder_shapes
from tests.field.field_case import BUILD, PLAN, FieldCase, Write, folder, run_case
from tests.field.model_folders import (
    N_VOCAB,
    Tensors,
    add_equal_head,
    edit_json,
    llama_config,
    write_adapter,
    write_model,
    write_shards,
)

LISTS = (
    "{% for m in messages %}<|im_start|>{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
CRLF = (
    "{%- for m in messages %}\r\n{{- '<|im_start|>' + m.content + '<|im_end|>' }}\r\n{%- endfor %}"
    "\r\n{%- if add_generation_prompt %}\r\n{{- '<|im_start|>' }}\r\n{%- endif %}\r\n"
)
YARN = {"rope_type": "yarn", "type": "yarn", "factor": 4.0}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1192135096\n"
FAMILIES = ("qwen2_5_vl", "qwen3_5", "gemma4", "gpt_oss", "whisper")


def then(change: Callable[[Path], object], **options: Any) -> Write:
    """A whole checkpoint, changed afterwards."""

    def write(path: Path) -> None:
        write_model(path, **options)
        change(path)

    return write


def model(**options: Any) -> Write:
    return then(lambda path: None, **options)


def adding(name: str, values: np.ndarray, dtype: str) -> Write:
    return model(add=lambda tensors: tensors.update({name: (dtype, values)}))


def templates(value: object, file: str | None = None) -> Write:
    """A checkpoint with that chat template in its configuration, or in a file."""

    def change(path: Path) -> None:
        edit_json(
            path / "tokenizer_config.json",
            lambda t: t.pop("chat_template", None) if file else t.update(chat_template=value),
        )
        if file:
            (path / "chat_template.jinja").write_bytes(file.encode())

    return then(change)


def stray(path: Path) -> None:
    write_shards(path, index=True)
    write_model(path)


def two_sets(path: Path) -> None:
    write_shards(path)
    write_model(path)


def as_transformers_5(path: Path) -> None:
    edit_json(path / "tokenizer_config.json", lambda t: (
        t.pop("added_tokens_decoder", None), t.pop("bos_token", None),
        t.update(tokenizer_class="TokenizersBackend", backend="tokenizers", is_local=True,
                 extra_special_tokens=["<|im_start|>", "<|im_end|>"])))  # fmt: skip


def tekken(path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    (path / "tekken.json").write_text(json.dumps({"config": {"pattern": "x"}, "vocab": []}))


def many_rows(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"] = ("BF16", np.zeros((N_VOCAB + 49, 64), np.uint16))


def as_f64(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("norm.weight")]:
        tensors[name] = ("F64", np.ones(64))


def spoil(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][1][3, 5] = 0x7FC0


def linked(place: Path) -> Path:
    """A snapshot of the hub's cache, kept by itself."""
    write_model(place / "blobs")
    (place / "snapshot").mkdir()
    for file in sorted((place / "blobs").iterdir()):
        (place / "snapshot" / file.name).symlink_to(f"../blobs/{file.name}")
    return place / "snapshot"


def inside(name: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """What `make` writes, in a folder of its own."""
    return lambda place: make((place / name).absolute())


def link_to_a_neighbour(place: Path) -> Path:
    snapshot = linked(place)
    (place / "letters").mkdir()
    return snapshot


def without_blobs(place: Path) -> Path:
    snapshot = linked(place)
    shutil.rmtree(place / "blobs")
    return snapshot


def phi4(**settings: Any) -> dict[str, Any]:
    config = phi3(original_max_position_embeddings=None, **settings)
    return {key: value for key, value in config.items() if value is not None}


def long_rope(*, original: bool = True) -> Write:
    """Phi-4-mini's: factors for three quarters of each head, as transformers 5 writes them."""
    factors = {"long_factor": [1.0 + i for i in range(6)], "short_factor": [1.0] * 6}
    rope: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    rope |= {"partial_rotary_factor": 0.75}
    if original:
        rope |= {"original_max_position_embeddings": 512}
    return model(
        family=phi4, shapes=phi3_shapes, rope_parameters=rope, vocab_size=N_VOCAB, hidden_size=64,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2,
        intermediate_size=128,
    )  # fmt: skip


def gemma(family: Callable[..., dict[str, Any]], *, head_norms: bool) -> Write:
    """A tied model whose head is in the file a second time."""
    return model(
        family=family, shapes=lambda c: gemma_shapes(c, head_norms=head_norms), add=add_equal_head,
        vocab_size=N_VOCAB, hidden_size=64, intermediate_size=128, head_dim=16, eos_token_id=2,
        query_pre_attn_scalar=16,
    )  # fmt: skip


def mistral3(**settings: Any) -> dict[str, Any]:
    """A wrapper with a vision tower around a text model."""
    text = llama_config(
        architectures=None, model_type="ministral3", head_dim=16, sliding_window=None,
        max_position_embeddings=262144, rope_parameters={
            **YARN, "factor": 16.0, "original_max_position_embeddings": 16384, "rope_theta": 1e6,
            "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0,
            "beta_slow": 1.0})  # fmt: skip
    return {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
            "text_config": text, "vision_config": {"model_type": "pixtral", "hidden_size": 32},
            "tie_word_embeddings": True, "eos_token_id": 2, **settings}  # fmt: skip


def mistral3_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    text = decoder_shapes(config["text_config"], prefix="language_model.")
    return {"vision_tower.patch_conv.weight": (32, 3, 14, 14),
            "multi_modal_projector.linear_1.weight": (64, 32), **text}  # fmt: skip


def of_family(kind: str) -> Write:
    return model(family=lambda **settings: {
        "architectures": ["OtherModel"], "model_type": kind, "text_config": llama_config()},
        shapes=lambda config: decoder_shapes(llama_config()))  # fmt: skip


CASES = [
    FieldCase("hf/lora-with-config", folder(lambda path: (
        write_adapter(path), (path / "config.json").write_text(json.dumps(llama_config())))),
        PLAN, 3, ("adapter", "someone/base-1b", "merge")),
    FieldCase("hf/stray-single", folder(stray), PLAN, 0, (), ("is not used",)),
    FieldCase("hf/stray-noindex", folder(two_sets), PLAN, 3, ("is in both", "another download")),
    FieldCase("hf/vocab-padded", folder(model(add=many_rows)), PLAN, 3,
              ("config.json implies [2048, 64]",)),
    FieldCase("hf/jinja-crlf", folder(templates(None, CRLF)), BUILD, 0),
    FieldCase("hf/template-list-only", folder(templates(LISTS)), BUILD, 0),
    FieldCase("hf/template-named-nodefault", folder(templates(
        [{"name": name, "template": CRLF} for name in ("tool_use", "rag")])), BUILD, 0),
    FieldCase("hf/tokenizer-v5", folder(then(
        as_transformers_5, torch_dtype=None, dtype="bfloat16",
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"})), BUILD, 0),
    FieldCase("hf/five-eos", folder(model(eos_token_id=[2, 300, 301, 302, 303])), PLAN, 3,
              ("ends a turn", "at most three")),
    FieldCase("hf/tekken-only", folder(then(tekken)), PLAN, 3,
              ("tekken.json", "default_num_special_tokens")),
    FieldCase("hf/generation-config-missing", folder(model()), BUILD, 0),
    FieldCase("hf/generation-config-odd", folder(then(
        lambda path: (path / "generation_config.json").write_text(json.dumps(
            {"eos_token_id": 2, "temperature": "0.7", "top_k": None, "do_sample": "true"})))),
        PLAN, 0),
    *(FieldCase(f"hf/rope-{name}", folder(model(rope_scaling=scaling, **more)), PLAN, code, words)
      for name, scaling, more, code, words in (
          ("yarn", {**YARN, "original_max_position_embeddings": 2048},
           {"max_position_embeddings": 8192}, 0, ()),
          ("dynamic", {"type": "dynamic", "factor": 2.0}, {}, 0, ()),
          ("linear-text", {"type": "linear", "factor": "4.0"}, {}, 3,
           ("factor is '4.0'", "correct it in config.json")),
          ("linear-int", {"type": "linear", "factor": 4}, {}, 0, ()),
          ("mrope", {"type": "mrope", "mrope_section": [2, 3, 3]}, {}, 0, ()),
          ("default", {"rope_type": "default"}, {}, 0, ()))),
    FieldCase("hf/phi4-rope-parameters", folder(long_rope()), PLAN, 0),
    FieldCase("hf/phi4-rope-parameters-no-original", folder(long_rope(original=False)), PLAN, 0),
    FieldCase("hf/inv-freq", folder(adding(
        "model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(8, np.float32), "F32")), PLAN, 0),
    FieldCase("hf/position-ids", folder(adding("model.position_ids", np.arange(8), "I64")),
              PLAN, 3, ("model.position_ids is unknown",)),
    FieldCase("hf/f64-norms", folder(model(add=as_f64)), PLAN, 3, ("is F64", "through a GGUF")),
    FieldCase("hf/nan", folder(model(add=spoil)), BUILD, 3,
              ("holds nan at row 3, column 5", "Download the checkpoint again")),
    FieldCase("hf/gemma2-with-head", folder(gemma(gemma2, head_norms=False)), PLAN, 0),
    FieldCase("hf/gemma3-1b-with-head", folder(gemma(gemma3, head_norms=True)), PLAN, 0,
              ("left out",)),
    FieldCase("hf/ministral3", folder(model(family=mistral3, shapes=mistral3_shapes)), PLAN, 0,
              ("text only: left out",)),
    *(FieldCase(f"hf/family-{kind}", folder(of_family(kind)), PLAN, 3) for kind in FAMILIES),
    FieldCase("hf/family-smolvlm", folder(of_family("smolvlm")), PLAN, 0),
    FieldCase("hf/modèle à moi 模型", folder(model(), "modèle à moi 模型"), BUILD, 0),
    FieldCase("hf/snapshot-links", inside("cache", linked), PLAN, 0),
    FieldCase("hf/snapshot-links, beside letters", inside("home", link_to_a_neighbour), PLAN, 3,
              ("leads out of its folder",)),
    FieldCase("hf/snapshot-links, without blobs", inside("cache", without_blobs), PLAN, 3,
              ("which is not there", "cp -rL")),
    FieldCase("hf/name-fp16-variant", folder(model(file="model.fp16.safetensors")), PLAN, 0),
    FieldCase("hf/name-both-variants", folder(then(lambda path: shutil.copy(
        path / "model.safetensors", path / "model.fp16.safetensors"))), PLAN, 3,
        ("is in both", "remove")),
    FieldCase("hf/cut-off", folder(then(lambda path: (path / "model.safetensors").write_bytes(
        (path / "model.safetensors").read_bytes()[:-5000]))), PLAN, 3,
        ("truncated", "5000 missing")),
    FieldCase("hf/lfs-pointer", folder(then(
        lambda path: (path / "model.safetensors").write_text(POINTER))), PLAN, 3,
        ("Git-LFS pointer", "git lfs pull")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_checkpoint(
    case: FieldCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_case(case, tmp_path, monkeypatch, capsys)
