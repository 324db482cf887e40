"""The engine's scratch memory: activations of the largest micro-batch, and the CPU work buffer.

The graph of a decoder is laid out operation by operation, as the engine does when it reserves, and
handed to a model of its allocator. `Features` lists what a family's graph has beyond the common
parts; it is read off the names of the tensors, so that a new family needs no new code as long as it
is made of known parts. What is not modelled: mixtures of several graphs (encoders, MLA, Mamba), for
which the result is an estimate with attention and feed-forward parts only.

Sources: src/llama-graph.cpp (build_attn, build_ffn, build_moe_ffn, build_inp_*), src/models/*.cpp
(order of operations), src/llama-context.cpp (graph_reserve: every token of the batch has logits).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from boardfit.device_profiles.cost.arena import ComputeGraph, GraphBytes
from boardfit.device_profiles.cost.memory import StoredTensor, kv_cells
from boardfit.device_profiles.shape import LayerShape, ModelShape

# Layers beyond this many repeat what the ones before have shown: the longest pattern of windows
# among known families is six (Gemma 3), and the last layer differs.
_LAYERS_LAID_OUT = 7


@dataclass(frozen=True)
class Features:
    """A family's graph as read off the tensors.

    It has norms on queries and keys, norms behind attention and feed-forward, one matrix for Q, K
    and V, one for gate and up. The widths are those of dense and expert feed-forward blocks (0:
    none).
    """

    qk_norm: bool = False
    post_norm: bool = False
    pre_norm: bool = True
    fused_qkv: bool = False
    fused_gate_up: bool = False
    n_ff: int = 0
    n_ff_expert: int = 0


def read_features(tensors: Iterable[StoredTensor]) -> Features:
    """Features of a model from its tensors' GGUF names and shapes."""
    widths: dict[str, int] = {}
    for tensor in tensors:
        base = tensor.name.split(".")[-2] if "." in tensor.name else tensor.name
        widths[base] = max(widths.get(base, 0), tensor.n_rows)
    up, fused = widths.get("ffn_up", 0), "ffn_gate" not in widths and "ffn_up" in widths
    return Features(
        qk_norm="attn_q_norm" in widths,
        post_norm="post_attention_norm" in widths or "post_ffw_norm" in widths,
        pre_norm="attn_norm" in widths or "ffn_norm" in widths or not widths,
        fused_qkv="attn_qkv" in widths,
        fused_gate_up=fused,
        n_ff=up,
        n_ff_expert=widths.get("ffn_up_exps", 0),
    )


def graph_bytes(
    shape: ModelShape,
    features: Features,
    n_ctx: int,
    n_ubatch: int,
    kv_type: str = "f16",
    *,
    swa_full: bool = False,
) -> GraphBytes:
    """The compute buffer for micro-batches of `n_ubatch` tokens in a context of `n_ctx`, with fused
    attention (the engine's default on CPUs). `reserved` is what the engine's log calls "compute
    buffer size"; `resident` what a full context touches when only the last token's logits are
    asked for, as chatting does.
    """
    n_ubatch = min(n_ubatch, n_ctx)
    heads = {(x.head_dim_k, x.head_dim_v) for x in shape.layers if x.n_head_kv}
    rotate = kv_type not in _FLOAT_KV and len(heads) == 1 and all(n % 64 == 0 for n in max(heads))
    return _graph_bytes(shape, features, n_ctx, n_ubatch, rotate, swa_full)


# Families that add the residual stream to a block's result and not the other way round, behind
# attention and behind feed-forward: it decides whose memory the sum takes over.
_STREAM_FIRST = {"phi3": (False, True), "lfm2": (True, True), "lfm2moe": (True, True)}
_SCALED_EMBEDDINGS = ("gemma", "granite", "minicpm")
_FLOAT_KV = ("f32", "f16", "bf16")


@lru_cache(maxsize=512)
def _graph_bytes(
    shape: ModelShape,
    features: Features,
    n_ctx: int,
    n_ubatch: int,
    rotate: bool,
    swa_full: bool,
) -> GraphBytes:
    layout = _Layout(shape, features, n_ubatch, rotate)
    layers = shape.layers
    if len(layers) > _LAYERS_LAID_OUT:
        layers = (*layers[: _LAYERS_LAID_OUT - 1], layers[-1])
    cells = {
        layer.window: kv_cells(n_ctx, layer.window, n_ubatch, swa_full=swa_full)
        for layer in layers
        if layer.n_head_kv
    }
    return layout.measure(layers, cells)


class _CacheInputs(NamedTuple):
    rotate_k: int | None
    rotate_v: int | None
    k_places: int
    v_places: int
    mask: int


class _Layout:
    """Lays out one graph. Sizes are of float32 rows for all tokens of the micro-batch."""

    def __init__(self, shape: ModelShape, features: Features, n_tokens: int, rotate: bool) -> None:
        self.shape, self.features, self.n_tokens = shape, features, n_tokens
        self.rotate = rotate
        self.only_outputs = False
        self.graph = ComputeGraph()

    def rows(self, width: int) -> int:
        return 4 * width * self.n_tokens

    def measure(self, layers: tuple[LayerShape, ...], cells: dict[int | None, int]) -> GraphBytes:
        graph, n, d = self.graph, self.n_tokens, self.rows(self.shape.n_embd)
        tokens = graph.input(4 * n)
        graph.input(d, written=0)  # embeddings handed in instead of tokens: reserved, not used
        self.positions = graph.input(4 * n)
        self.caches = {window: self._cache_inputs(n_cells) for window, n_cells in cells.items()}
        outputs = graph.input(4 * n, written=4)
        stream = graph.run(d, tokens)
        if self.shape.arch.startswith(_SCALED_EMBEDDINGS):
            stream = graph.run(d, stream, in_place=True)
        for number, layer in enumerate(layers):
            stream = self._layer(layer, stream, outputs if number == len(layers) - 1 else None)
        normed = self._norm(stream, d)
        logits = self._run(self.rows(self.shape.n_vocab), normed)
        graph.view(logits)  # read by the caller: stays to the end
        return graph.measure()

    def _cache_inputs(self, n_cells: int) -> _CacheInputs:
        """Add what attention reads beside the cache itself, once for each kind of cache.

        These are the Hadamard matrices that a quantized cache rotates K and V with
        (src/llama-kv-cache.cpp, attn_rot), places in the cache (64-bit) and the mask (f16).
        """
        graph, n = self.graph, self.n_tokens
        rotate_k = rotate_v = None
        if self.rotate:
            width = max(layer.head_dim_k for layer in self.shape.layers)
            width &= -width  # the largest power of two that divides it
            rotate_k, rotate_v = graph.input(4 * width * width), graph.input(4 * 64 * 64)
        places = graph.input(8 * n), graph.input(8 * n)
        return _CacheInputs(rotate_k, rotate_v, *places, graph.input(2 * n_cells * n))

    def _run(self, size: int, *sources: int, in_place: bool = False) -> int:
        """An operation over the tokens of the batch, or, behind the last attention, over those
        whose logits are wanted.
        """
        written = size // self.n_tokens if self.only_outputs else size
        return self.graph.run(size, *sources, in_place=in_place, written=written)

    def _norm(self, source: int, size: int) -> int:
        normed = self._run(size, source, in_place=True)
        return self._run(size, normed, in_place=True)

    def _layer(self, layer: LayerShape, stream: int, outputs: int | None) -> int:
        d = self.rows(self.shape.n_embd)
        normed = self._norm(stream, d) if self.features.pre_norm else stream
        mix = self._attention if layer.n_head_kv else self._short_convolution
        mixed = mix(layer, normed)
        if outputs is not None:
            self.only_outputs = True
            mixed, stream = self._run(d, mixed, outputs), self._run(d, stream, outputs)
        if self.features.post_norm:
            mixed = self._norm(mixed, d)
        behind_mix, behind_block = _STREAM_FIRST.get(self.shape.arch, (False, False))
        residual = self._add(mixed, stream, swapped=behind_mix)
        normed = self._norm(residual, d) if self.features.pre_norm else residual
        block = self._experts if self.features.n_ff_expert else self._feed_forward
        made = block(normed)
        if self.features.post_norm:
            made = self._norm(made, d)
        return self._add(made, residual, swapped=behind_block)

    def _add(self, made: int, stream: int, *, swapped: bool) -> int:
        """The sum takes over its first operand if it can, and then its second."""
        first, second = (stream, made) if swapped else (made, stream)
        return self._run(self.rows(self.shape.n_embd), first, second, in_place=True)

    def _attention(self, layer: LayerShape, normed: int) -> int:
        graph = self.graph
        sizes = {
            "q": self.rows(self.shape.n_head * layer.head_dim_k),
            "k": self.rows(layer.n_head_kv * layer.head_dim_k),
            "v": self.rows(layer.n_head_kv * layer.head_dim_v),
        }
        heads: dict[str, int] = {}
        inputs = self.caches[layer.window]
        if self.features.fused_qkv:
            fused = self._run(sum(sizes.values()), normed)
            for name in "qkv":
                heads[name] = graph.view(fused)
        for name in "qvk":
            if not self.features.fused_qkv:
                heads[name] = graph.view(self._run(sizes[name], normed))
            if name != "v":
                if self.features.qk_norm:
                    heads[name] = self._norm(heads[name], sizes[name])
                heads[name] = self._run(sizes[name], heads[name], self.positions, in_place=True)
            heads[name] = self._rotate(
                heads[name], sizes[name], inputs.rotate_v if name == "v" else inputs.rotate_k
            )
        graph.run(0, heads["k"], inputs.k_places)
        graph.run(0, heads["v"], inputs.v_places)
        attended_size = self.rows(self.shape.n_head * layer.head_dim_v)
        query = graph.view(graph.view(heads["q"]))
        attended = graph.view(self._run(attended_size, query, inputs.mask))
        attended = self._rotate(attended, attended_size, inputs.rotate_v)
        return self._run(self.rows(self.shape.n_embd), attended)

    def _rotate(self, source: int, size: int, rotation: int | None) -> int:
        if rotation is None:
            return source
        return self.graph.view(self._run(size, rotation, self.graph.view(source)))

    def _short_convolution(self, layer: LayerShape, normed: int) -> int:
        """LFM2's gated convolution (src/models/lfm2.cpp, build_shortconv_block)."""
        graph, d = self.graph, self.rows(self.shape.n_embd)
        parts = self._run(3 * d, graph.view(normed))
        b, c, x = graph.view(parts), graph.view(parts), graph.view(parts)
        product = graph.view(self._run(d, b, x, in_place=True))
        state = graph.run(4 * layer.state_values)
        joined = self._run(d + 4 * layer.state_values, graph.view(state), product)
        graph.run(0, graph.view(joined))
        convolved = self._run(d, joined)
        gated = self._run(d, c, convolved, in_place=True)
        return graph.view(self._run(d, gated))

    def _feed_forward(self, normed: int) -> int:
        wide = self.rows(self.features.n_ff or self.shape.n_ff)
        if self.features.fused_gate_up:
            both = self._run(wide, normed)
            activated = self._run(wide // 2, both)
        else:
            up = self._run(wide, normed)
            gate = self._run(wide, normed)
            activated = self._run(wide, gate, up)
        return self._run(self.rows(self.shape.n_embd), activated)

    def _experts(self, normed: int) -> int:
        graph, used = self.graph, self.shape.n_expert_used
        d, wide = self.rows(self.shape.n_embd), used * self.rows(self.features.n_ff_expert)
        all_experts = self.rows(self.shape.n_expert)
        logits = self._run(all_experts, normed)
        chances = self._run(all_experts, logits, in_place=True)
        chosen = graph.view(self._run(all_experts, chances))
        weights = graph.view(self._run(self.rows(used), graph.view(chances), chosen))
        total = self._run(self.rows(1), self._run(self.rows(1), weights), in_place=True)
        weights = graph.view(self._run(self.rows(used), weights, total, in_place=True))
        spread = graph.view(normed)
        up = self._run(wide, spread, chosen)
        gate = self._run(wide, spread, chosen)
        activated = self._run(wide, gate, up)
        results = self._run(used * d, activated, chosen)
        results = self._run(used * d, results, weights, in_place=True)
        views = [graph.view(results) for _ in range(used)]
        summed = views[0]
        for view in views[1:]:
            summed = self._run(d, summed, view, in_place=True)
        return summed


def work_bytes(shape: ModelShape, features: Features, n_ubatch: int, n_threads: int) -> int:
    """Compute the CPU backend's work buffer.

    It holds the activations of one product quantized to 8 bits (292 bytes per 256 values at most),
    or each thread's tiles of fused attention (64 queries x 64 keys).

    Source: ggml/src/ggml-cpu/ggml-cpu.c, ggml_graph_plan (MUL_MAT, FLASH_ATTN_EXT).
    """
    widest = max(
        features.n_ff or shape.n_ff, shape.n_expert_used * features.n_ff_expert, shape.n_embd
    )
    product = n_ubatch * widest * 292 // 256
    tiles = 0
    for layer in shape.layers:
        k, v = layer.head_dim_k, layer.head_dim_v
        tiles = max(tiles, 4 * 64 * (k + 2 * 64 + v + v + k) * n_threads)
    return max(product, tiles)


def compute_bytes(
    shape: ModelShape,
    features: Features,
    n_ctx: int,
    n_ubatch: int,
    n_threads: int,
    kv_type: str = "f16",
    *,
    swa_full: bool = False,
) -> int:
    """Resident bytes of graph and work buffer: what the plan calls `compute_buffers`."""
    graph = graph_bytes(shape, features, n_ctx, n_ubatch, kv_type, swa_full=swa_full)
    return graph.resident + work_bytes(shape, features, min(n_ubatch, n_ctx), n_threads)
