"""Models at their true sizes that no family here converts: the keys of their GGUF files, the
tensors that the engine takes for them, and no weights.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from boardfit.converters.families.shape import find_shape
from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity, TargetTensor
from boardfit.edge.files.gguf import read_header
from lab.memory.header_engine import list_tensors, write_header

# Stand for the vocabulary and the experts while the engine lists tensors: it reserves all of them.
_FEW_TOKENS, _FEW_EXPERTS = 251, 7
_NORM = {"attention.layer_norm_rms_epsilon": 1e-6}


@dataclass(frozen=True)
class HeaderModel:
    """One model. `left_out` matches optional tensors that its files do not have."""

    arch: str
    n_vocab: int
    keys: Mapping[str, Any]
    left_out: str = r"\.(scale|input_scale)$"
    untied: bool = False


_NO_BIASES = r"\.(scale|input_scale)$|(attn_\w+|ffn_\w+)\.bias$"
_QWEN35 = {
    "block_count": 24, "context_length": 262144, "embedding_length": 1024,
    "feed_forward_length": 3584, "attention.head_count": 8, "attention.head_count_kv": 2,
    "attention.key_length": 256, "attention.value_length": 256, **_NORM,
    "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0],
    "rope.freq_base": 1e7, "full_attention_interval": 4, "ssm.conv_kernel": 4,
    "ssm.inner_size": 2048, "ssm.state_size": 128, "ssm.time_step_rank": 16,
    "ssm.group_count": 16,
}  # fmt: skip
_GEMMA4_E2B = {
    "block_count": 35, "context_length": 131072, "embedding_length": 1536,
    "feed_forward_length": [6144] * 15 + [12288] * 20,
    "attention.head_count": 8, "attention.head_count_kv": 1, "attention.key_length": 512,
    "attention.value_length": 512, "attention.key_length_swa": 256,
    "attention.value_length_swa": 256, **_NORM, "rope.dimension_count": 512,
    "rope.dimension_count_swa": 256, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
    "attention.sliding_window": 512,
    "attention.sliding_window_pattern": [int(i % 5 != 4) for i in range(35)],
    "attention.shared_kv_layers": 20, "embedding_length_per_layer_input": 256,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
_GRANITE_H_TINY = {
    "block_count": 40, "context_length": 131072, "embedding_length": 1536,
    "feed_forward_length": 512, "attention.head_count": 12,
    "attention.head_count_kv": [4 if i % 10 == 5 else 0 for i in range(40)], **_NORM,
    "expert_count": 64, "expert_used_count": 6, "expert_feed_forward_length": 512,
    "expert_shared_feed_forward_length": 1024, "ssm.conv_kernel": 4, "ssm.state_size": 128,
    "ssm.group_count": 1, "ssm.inner_size": 3072, "ssm.time_step_rank": 48,
    "rope.scaling.finetuned": False, "rope.dimension_count": 128, "embedding_scale": 12.0,
    "residual_scale": 0.22, "attention.scale": 0.0078125, "logit_scale": 6.0,
}  # fmt: skip
_FALCON_H1 = {
    "block_count": 36, "context_length": 16384, "embedding_length": 1024,
    "feed_forward_length": 2048, "attention.head_count": 8, "attention.head_count_kv": 2,
    "attention.key_length": 64, "attention.value_length": 64, **_NORM,
    "rope.dimension_count": 64, "rope.freq_base": 1e11, "ssm.conv_kernel": 4,
    "ssm.state_size": 128, "ssm.group_count": 1, "ssm.inner_size": 1536,
    "ssm.time_step_rank": 24,
}  # fmt: skip

#: Published sizes. Qwen/Qwen3.5-0.8B and google/gemma-4-E2B-it: `config.json`, as in
#: device_profiles/models.toml. ibm-granite/granite-4.0-h-tiny: a dump of its GGUF file in
#: github.com/danbev/learning-ai (notes on Granite). tiiuae/Falcon-H1-0.5B: the table in
#: transformers' docs/source/en/model_doc/falcon_h1.md, and width and vocabulary by its 0.52 billion
#: weights.
HEADER_MODELS: Mapping[str, HeaderModel] = {
    "qwen3.5-0.8b": HeaderModel("qwen35", 248320, _QWEN35, _NO_BIASES),
    "qwen3.5-0.8b-mtp": HeaderModel(
        "qwen35",
        248320,
        {**_QWEN35, "block_count": 25, "nextn_predict_layers": 1},
        _NO_BIASES + r"|nextn\.(embed_tokens|shared_head_head)",
    ),
    "gemma-4-e2b": HeaderModel("gemma4", 262144, _GEMMA4_E2B),
    "granite-4.0-h-tiny": HeaderModel(
        "granitehybrid", 100352, _GRANITE_H_TINY, _NO_BIASES + r"|rope_freqs"
    ),
    "falcon-h1-0.5b": HeaderModel(
        "falcon-h1", 32784, _FALCON_H1, _NO_BIASES + r"|rope_freqs", untied=True
    ),
}


def header_spec(name: str, model: HeaderModel, vocabulary: list[KeyValue]) -> ModelSpec:
    """A model as a spec to plan for and to write."""
    keys = {**model.keys, "vocab_size": model.n_vocab}
    tensors = tuple(_tensors(model, keys))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        write_header(path, model.arch, keys)
        header = read_header(path, arrays="full")
    metadata = [
        KeyValue("general.architecture", model.arch, GGUFValueType.STRING),
        KeyValue("general.name", name, GGUFValueType.STRING),
        *(
            KeyValue(
                key,
                header.kv[key],
                GGUFValueType(kind.value_type),
                None if kind.item_type is None else GGUFValueType(kind.item_type),
            )
            for key, kind in header.kv_types.items()
            if not key.startswith("general.")
        ),
        *vocabulary,
    ]
    return ModelSpec(
        name,
        model.arch,
        find_shape(model.arch, header.kv, tensors),
        tuple(metadata),
        tensors,
        SourceIdentity("hf-directory", "nowhere", {}, "0" * 64),
    )


def _tensors(model: HeaderModel, keys: Mapping[str, Any]) -> list[TargetTensor]:
    few = {**keys, "vocab_size": _FEW_TOKENS, "tokenizer.ggml.model": "no_vocab"}
    true = {_FEW_TOKENS: model.n_vocab}
    if keys.get("expert_count"):
        few |= {"expert_count": _FEW_EXPERTS}
        true[_FEW_EXPERTS] = keys["expert_count"]
    found: dict[str, TargetTensor] = {}
    for name, dims in list_tensors(model.arch, few):
        if re.search(model.left_out, name) or (name == "output.weight" and not model.untied):
            continue
        shape = tuple(true.get(n, n) for n in reversed(dims))
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        is_matrix = len(shape) > 1 and name.endswith(".weight") and "ssm_conv1d" not in name
        kind = "BF16" if is_matrix and "ffn_gate_inp" not in name else "F32"
        found.setdefault(
            name,
            TargetTensor(name, shape, kind, _read_nothing, None if kind == "BF16" else "F32"),
        )
    return list(found.values())


def _read_nothing(start: int, stop: int) -> Any:
    raise AssertionError(f"rows {start} to {stop} of a tensor without values")
