"""Memory of a LiteRT model at run time: pure functions, each with what it was measured on.

Measured: Qwen2 0.5B (24 layers, 2 KV heads of 64, 14 heads, signatures 128, 512 and decode, cache
of 2,048) and the sample model (4 layers, signatures 128 and decode, cache of 1,024) in the litert
engine on x86-64, litert-lm-api 0.18.1, RssAnon and RssFile of /proc/self/status.
"""

from __future__ import annotations

from collections.abc import Sequence

from boardfit.device_profiles.shape import ModelShape

MIB = 1024**2

# Interpreter, tensors and delegates: 0.5B took 65 MiB for 24 layers in 3 signatures, the sample 10
# MiB for 4 in 2.
_RUNTIME = 6 * MIB
_PER_LAYER_AND_SIGNATURE = 4 * MIB // 5
_F32 = 4
# Scores, masked scores and their softmax share an arena that reuses what is no longer needed: the
# 0.5B model's 512-token prefill took 107 MiB, 1.75 times its scores of 56 MiB and some for the MLP.
_SCORES = 1.75
_MLP_TENSORS = 3


def kv_cache_bytes(shape: ModelShape, cache_length: int) -> int:
    """Compute the KV cache: float32 in these graphs, plus the state of recurrent layers.

    Every attention layer holds the whole exported length; sliding windows are masked, not cut.
    """
    values = sum(
        layer.n_head_kv * (layer.head_dim_k + layer.head_dim_v) * cache_length
        if layer.n_head_kv
        else layer.state_values
        for layer in shape.layers
    )
    return values * _F32


def compute_bytes(shape: ModelShape, prefill_lengths: Sequence[int], cache_length: int) -> int:
    """The largest graph's arena, and the logits."""
    longest = max(prefill_lengths, default=1)
    scores = int(longest * shape.n_head * cache_length * _F32 * _SCORES)
    mlp = longest * shape.n_ff * _F32 * _MLP_TENSORS
    return scores + mlp + shape.n_vocab * _F32


def runtime_bytes(shape: ModelShape, n_signatures: int) -> int:
    """Interpreter and kernels, without weights; the process itself not counted."""
    return _RUNTIME + _PER_LAYER_AND_SIGNATURE * shape.n_layer * n_signatures


def packed_bytes(weights_bytes: int, n_signatures: int) -> int:
    """Weights in the layout of XNNPACK's kernels: private memory, or a mapped file where the engine
    keeps a weight cache beside the model. Every prefill signature packs its own copy (0.5B with two
    prefills: 2.1 times the file; the sample with one: 1.2 times).
    """
    return int(1.1 * weights_bytes * max(1, n_signatures - 1))


def litert_memory(
    shape: ModelShape,
    weights_bytes: int,
    *,
    prefill_lengths: Sequence[int],
    cache_length: int,
    weight_cache: bool,
) -> dict[str, int]:
    """Bytes by the kinds of `Plan.memory`. With a weight cache the packed weights are mapped and
    the originals are read once, so that one copy is resident; without, both are.
    """
    n_signatures = len(prefill_lengths) + 1
    packed = packed_bytes(weights_bytes, n_signatures)
    return {
        "weights_mapped": packed if weight_cache else weights_bytes,
        "weights_repacked": 0 if weight_cache else packed,
        "kv_cache": kv_cache_bytes(shape, cache_length),
        "compute_buffers": compute_bytes(shape, prefill_lengths, cache_length),
        "engine_and_interpreter": runtime_bytes(shape, n_signatures),
    }
