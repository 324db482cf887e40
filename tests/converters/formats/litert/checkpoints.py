"""Small random checkpoints of the families in docs/formats.md: true architecture, real
tokenizers, widths that blocks of 32 divide.
"""

from __future__ import annotations

from pathlib import Path

from tests.converters.families.cases_gemma import gemma3, gemma_shapes
from tests.converters.families.cases_gemma4 import gemma4, gemma4_shapes
from tests.converters.families.cases_granite import granite
from tests.converters.families.cases_hybrid import (
    falcon_h1,
    falcon_shapes,
    granite_hybrid,
    granite_hybrid_shapes,
    nemotron,
    nemotron_shapes,
)
from tests.converters.families.cases_lfm2 import KINDS, lfm2, lfm2_shapes
from tests.converters.families.cases_llama import LLAMA3_ROPE, config
from tests.converters.families.cases_phi3 import phi3, phi3_shapes
from tests.converters.families.cases_qwen35 import qwen35, qwen35_shapes
from tests.converters.families.checkpoints import Case, decoder_shapes, write_case
from tests.converters.families.oracle import write_tokenizer

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_LLAMA = config(
    "LlamaForCausalLM",
    "llama",
    **{**_SMALL, "vocab_size": 128256, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
)
_QWEN2 = config("Qwen2ForCausalLM", "qwen2", **_SMALL, vocab_size=151936, tie_word_embeddings=True)
_QWEN3 = config("Qwen3ForCausalLM", "qwen3", **_SMALL, vocab_size=151936, head_dim=32)
_GEMMA3 = gemma3(
    **{**_SMALL, "vocab_size": 32064, "head_dim": 32, "query_pre_attn_scalar": 32,
       "num_hidden_layers": 7, "sliding_window": 16}
)  # fmt: skip
_GEMMA4 = gemma4(
    **{**_SMALL, "vocab_size": 32000, "vocab_size_per_layer_input": 32000, "head_dim": 32,
       "global_head_dim": 64, "hidden_size_per_layer_input": 32, "sliding_window": 16}
)  # fmt: skip
_PHI3 = phi3(**_SMALL, vocab_size=32064)
_SMOLLM3 = config(
    "SmolLM3ForCausalLM",
    "smollm3",
    **_SMALL,
    vocab_size=128256,
    num_hidden_layers=4,
    no_rope_layers=[1, 1, 1, 0],
    tie_word_embeddings=True,
)
_GRANITE = granite(**_SMALL, vocab_size=49216, tie_word_embeddings=True)
_QWEN35 = qwen35(
    **{**_SMALL, "vocab_size": 151936, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
)
_LFM2 = lfm2(**{**_SMALL, "vocab_size": 128256})
_GRANITE_HYBRID = granite_hybrid(
    **{**_SMALL, "hidden_size": 96, "shared_intermediate_size": 96},
    vocab_size=49216,
    mamba_n_heads=6,
    mamba_d_head=32,
)
_NEMOTRON = nemotron("M-M*-M-", **_SMALL, vocab_size=128256, head_dim=32, chunk_size=128)
del _NEMOTRON["auto_map"]
_FALCON_H1 = falcon_h1(**{**_SMALL, "vocab_size": 128256, "head_dim": 32, "rope_theta": 1e6})

CASES = {
    case.name: case
    for case in (
        Case("llama", _LLAMA, decoder_shapes(_LLAMA), vocabulary="llama-bpe"),
        Case("qwen2", _QWEN2, decoder_shapes(_QWEN2, attention_bias="qkv"), vocabulary="qwen2"),
        Case("qwen3", _QWEN3, decoder_shapes(_QWEN3, head_norms=True), vocabulary="qwen2"),
        Case("gemma3", _GEMMA3, gemma_shapes(_GEMMA3, head_norms=True), vocabulary="gemma"),
        # Upstream's tree has Gemma 4's vocabulary too; this one is an eighth of it, of its kind.
        Case("gemma4", _GEMMA4, gemma4_shapes(_GEMMA4), vocabulary="llama-hf"),
        Case("phi3", _PHI3, phi3_shapes(_PHI3), vocabulary="phi-3"),
        Case("smollm3", _SMOLLM3, decoder_shapes(_SMOLLM3), vocabulary="smollm3"),
        Case("granite", _GRANITE, decoder_shapes(_GRANITE), vocabulary="granite"),
        Case("qwen35", _QWEN35, qwen35_shapes(_QWEN35), vocabulary="qwen35"),
        Case(
            "granite-hybrid",
            _GRANITE_HYBRID,
            granite_hybrid_shapes(_GRANITE_HYBRID),
            vocabulary="granite",
        ),
        Case("nemotron-h", _NEMOTRON, nemotron_shapes(_NEMOTRON), vocabulary="tekken"),
        Case("falcon-h1", _FALCON_H1, falcon_shapes(_FALCON_H1), vocabulary="falcon-h1"),
        Case("lfm2", _LFM2, lfm2_shapes(_LFM2, 96, kinds=KINDS), vocabulary="lfm2"),
    )
}


def write(name: str, directory: Path, llama_cpp: Path) -> Path:
    """The checkpoint of a family in `directory`; `llama_cpp` is a tree with vocabularies."""
    case = CASES[name]
    write_case(case, directory)
    write_tokenizer(case, directory, llama_cpp)
    return directory
