"""Decide whether the engine's table of graph nodes can hold a model's graph.

If it cannot, llama.cpp (of llama-cpp-python 0.3.36) aborts the process (ggml_hash_find_or_insert).
The table has room for the smallest prime of a list that is no less than the nodes foreseen, eight
for each tensor. A quantized KV cache adds a dozen nodes to every layer; mixtures of experts have
many nodes for few tensors: granite-3.1-1b-a400m opens with an f16 cache and aborts with q8_0.

Sources: src/llama-context.cpp (graph_max_nodes), ggml/src/ggml-backend.cpp (ggml_backend_sched_new,
with its FIXME), ggml/src/ggml.c (ggml_hash_size). Nodes by part of the graph were read off the
engine's log ("graph: nodes = ...") and are exact for the families that the tests hold against it.
"""

from collections import defaultdict
from collections.abc import Iterable

_FLOAT_KV = ("f32", "f16", "bf16")
_NODES_PER_TENSOR, _LEAST_NODES = 8, 1024
# Architectures with more nodes foreseen: for each token of a micro-batch, and for each tensor.
_LARGE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("qwen35", "qwen35moe", "qwen3next", "qwen4exp", "nanbeige"), (40, 32)),
    **dict.fromkeys(("bailingmoe3", "kimi-linear", "minimax-01", "minimax-m3"), (40, 32)),
    **dict.fromkeys(("deepseek4", "hy_v4"), (40, 32)),
    **dict.fromkeys(("kimi-k3", "glm5-next"), (160, 64)),
    "hrm_text": (80, 64),
}
# Metadata of one node foreseen, in the two graphs that a context keeps: a tensor with its object,
# pointers, and its places in a hash table (src/llama-graph.cpp, llm_graph_result::reset;
# ggml_graph_overhead_custom). What up to this many nodes take is part of `ENGINE_BASE_BYTES`.
_NODE_BYTES, _NODES_OF_BASE = 2 * (368 + 54), 2500
_PRIMES = (1031, 2053, 4099, 8209, 16411, 32771, 65537, 131101)

# Nodes of one layer, norms of attention and feed-forward included.
_ATTENTION_LAYER = 31
_CONVOLUTION_LAYER = 33
_ROTATION = 12  # of Q, K, V and the result, for a quantized cache
_EXPERTS, _PER_EXPERT_USED = 12, 2  # in place of a dense feed-forward
_NORM = 2
# Beyond the layers: embedding, rows of the tokens asked for, last norm, logits; and inputs.
_ENDS, _INPUTS, _WINDOW_INPUTS, _STATE_ENDS = 6, 8, 5, 2


def can_hold_graph(
    arch: str, tensor_names: Iterable[str], n_expert_used: int, kv_type: str, head_dim: int
) -> bool:
    """Whether a model opens with this type of cache. `head_dim` is of K or V."""
    names = list(tensor_names)
    room = table_size(foresee_nodes(arch, len(names)))
    rotated = kv_type not in _FLOAT_KV and head_dim > 0 and head_dim % 64 == 0
    return count_graph(arch, names, n_expert_used, rotated=rotated) <= room


def foresee_nodes(arch: str, n_tensors: int, n_ubatch: int = 1) -> int:
    """Nodes that the engine foresees for a graph (src/llama-context.cpp, graph_max_nodes)."""
    per_token, per_tensor = _LARGE.get(arch, (0, _NODES_PER_TENSOR))
    return max(_LEAST_NODES, per_token * n_ubatch, per_tensor * n_tensors)


def metadata_bytes(arch: str, n_tensors: int, n_ubatch: int) -> int:
    """Memory of the nodes foreseen, beyond what every model has."""
    return _NODE_BYTES * max(0, foresee_nodes(arch, n_tensors, n_ubatch) - _NODES_OF_BASE)


def table_size(n_foreseen: int) -> int:
    """Nodes and leaves that the scheduler's table has room for."""
    return next((prime for prime in _PRIMES if prime >= n_foreseen), n_foreseen)


def count_graph(arch: str, names: list[str], n_expert_used: int, *, rotated: bool) -> int:
    layers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if name.startswith("blk."):
            _, number, part = name.split(".", 2)
            layers[number].add(part)
    total = _ENDS + _scales(arch) + _INPUTS + len(names)
    if "output.weight" not in names:
        total += 1  # a tied head that is repacked is a tensor of its own
    if any("shortconv.conv.weight" in parts for parts in layers.values()):
        total += _STATE_ENDS
    if arch.startswith("gemma"):
        total += _WINDOW_INPUTS
    return total + sum(_layer(arch, parts, n_expert_used, rotated) for parts in layers.values())


def _layer(arch: str, parts: set[str], n_expert_used: int, rotated: bool) -> int:
    """Nodes of one layer and the tensors of its cache."""
    bases = {part.rsplit(".", 1)[0] for part in parts}
    if "shortconv.conv" in bases:
        nodes, caches = _CONVOLUTION_LAYER, 1
    else:
        nodes, caches = _ATTENTION_LAYER, 2
        nodes += _ROTATION if rotated else 0
        nodes += sum(part.startswith("attn_") and part.endswith(".bias") for part in parts)
    if "attn_qkv" in bases:  # one product in place of three
        nodes -= 1
    if "ffn_gate" not in bases and "ffn_up" in bases:
        nodes -= 1
    if "ffn_up_exps" in bases:
        nodes += _EXPERTS + _PER_EXPERT_USED * n_expert_used
    extra = ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")
    nodes += _NORM * sum(norm in bases for norm in extra)
    nodes -= _NORM * sum(norm not in bases for norm in ("attn_norm", "ffn_norm"))
    if arch.startswith("granite"):
        nodes += 2  # both sums are scaled
    if arch.startswith("gemma"):
        nodes += 1  # queries are scaled by a factor of the model's own
    return nodes + caches


def _scales(arch: str) -> int:
    """Embeddings and logits multiplied or squeezed."""
    if arch == "gemma2":
        return 4
    return 2 if arch.startswith("granite") else 1 if arch.startswith("gemma") else 0
