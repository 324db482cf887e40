"""Small model folders and GGUF files as people have them on disk, written in each test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.converters.families.checkpoints import (
    Shapes,
    decoder_shapes,
    random_values,
    write_safetensors,
)
from tests.converters.source.layouts import gptq

SAMPLE = Path(__file__).parents[2] / "converters" / "sample" / "model"
INDEX = "model.safetensors.index.json"
N_VOCAB = 2048
Tensors = dict[str, tuple[str, np.ndarray]]
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def llama_config(**settings: Any) -> dict[str, Any]:
    """A two-layer Llama for the sample's tokenizer; None takes a key out."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": N_VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        **settings,
    }
    return {key: value for key, value in config.items() if value is not None}


def weights(
    config: Mapping[str, Any], shapes: Callable[[Mapping[str, Any]], Shapes] = decoder_shapes
) -> Tensors:
    """Seeded BF16 tensors by the names that transformers gives them."""
    rng = np.random.default_rng(7)
    return {
        name: ("BF16", random_values(rng, shape, "BF16")) for name, shape in shapes(config).items()
    }


def write_model(
    folder: Path,
    *,
    rename: Callable[[str], str] = lambda name: name,
    add: Callable[[Tensors], object] = lambda tensors: None,
    file: str = "model.safetensors",
    family: Callable[..., dict[str, Any]] = lambda **settings: llama_config(**settings),
    shapes: Callable[[Mapping[str, Any]], Shapes] = decoder_shapes,
    **settings: Any,
) -> None:
    """A whole checkpoint. `add` changes the tensors, and `rename` their names."""
    folder.mkdir(parents=True, exist_ok=True)
    config = family(**settings)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = weights(config, shapes)
    add(tensors)
    write_safetensors(folder / file, {rename(name): entry for name, entry in tensors.items()})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SAMPLE / name, folder / name)


PARTS = tuple(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def write_shards(folder: Path, *, index: bool = False, **options: Any) -> None:
    """The same checkpoint in two files, which share its tensors out by turns."""
    for i, part in enumerate(PARTS):

        def keep_own(tensors: Tensors, i: int = i) -> None:
            for name in list(tensors)[1 - i :: 2]:
                del tensors[name]

        write_model(folder, file=part, add=keep_own, **options)
    if index:
        write_index(folder, *PARTS)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def write_adapter(folder: Path) -> None:
    """What a LoRA training leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "someone/base-1b", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    values = ("F32", np.zeros((8, 64), np.float32))
    write_safetensors(folder / "adapter_model.safetensors", {"q_proj.lora_A.weight": values})


def add_equal_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]


def make_gptq(tensors: Tensors) -> None:
    """Every projection as integers with their scales."""
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        layout = gptq()(rng, *tensors.pop(name)[1].shape)
        module = name.removesuffix(".weight")
        tensors |= {module + ending: stored for ending, stored in layout.tensors.items()}


def write_index(folder: Path, *files: str) -> None:
    """An index that spreads this checkpoint's tensors over `files`."""
    names = list(weights(llama_config()))
    places = {name: files[i % len(files)] for i, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_gguf(
    path: Path,
    *,
    arch: str = "llama",
    kind: str | None = "model",
    name: str = "Small",
    keys: Mapping[str, int | bool] | None = None,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    only: bool = False,
    scale: float = 0.05,
    eos: int = 2,
    n_ff: int = 128,
    types: Mapping[str, int] | None = None,
    template: str | None = TEMPLATE,
    weights: bool = True,
    per_part: int = 0,
) -> None:
    """A two-layer Llama with a byte-level vocabulary. `tensors` are added; with `only` they are
    all that there is. `types` maps the end of a tensor's name to its type; its bytes are random.
    `per_part` is the number of tensors in each part of a split file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), arch, split_max_tensors=per_part)
    if name:
        writer.add_name(name)
    if kind is not None:
        writer.add_type(kind)
    if not only:
        add_sizes(writer, n_ff)
        add_vocabulary(writer, eos, template)
    for key, value in (keys or {}).items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(key, value)
    rng = np.random.default_rng(7)
    for tensor, shape in (llama_tensors(n_ff) if weights and not only else {}).items() | (
        tensors or {}
    ).items():
        kinds = [kind for ending, kind in (types or {}).items() if tensor.endswith(ending)]
        if kinds:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kinds[0])]
            raw = rng.integers(0, 50, (shape[0], shape[1] // block * size), dtype=np.uint8)
            writer.add_tensor(tensor, raw, raw_dtype=gguf.GGMLQuantizationType(kinds[0]))
            continue
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        is_vector = len(shape) == 1
        writer.add_tensor(tensor, values * 0 + 1 if is_vector else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, n_ff: int) -> None:
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)


def add_vocabulary(writer: gguf.GGUFWriter, eos: int, template: str | None) -> None:
    tokenizer = json.loads((SAMPLE / "tokenizer.json").read_text())
    texts = dict(tokenizer["model"]["vocab"])
    texts |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(sorted(texts, key=texts.__getitem__))
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_token_types([3 if i in special else 1 for i in range(len(texts))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(eos)
    if template is not None:
        writer.add_chat_template(template)


def llama_tensors(n_ff: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, 64)}
    for i in range(2):
        layer = f"blk.{i}."
        shapes |= {
            f"{layer}attn_norm.weight": (64,),
            f"{layer}attn_q.weight": (64, 64),
            f"{layer}attn_k.weight": (32, 64),
            f"{layer}attn_v.weight": (32, 64),
            f"{layer}attn_output.weight": (64, 64),
            f"{layer}ffn_norm.weight": (64,),
            f"{layer}ffn_gate.weight": (n_ff, 64),
            f"{layer}ffn_up.weight": (n_ff, 64),
            f"{layer}ffn_down.weight": (64, n_ff),
        }
    return shapes | {"output_norm.weight": (64,)}
