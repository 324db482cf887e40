"""The engine's scratch memory: activations of the largest micro-batch, and the CPU work buffer.

The graph of a decoder is laid out operation by operation, as the engine does when it reserves, and
handed to a model of its allocator. `Features`, what a family's graph has beyond the common parts,
is read off the names of the tensors. Not modelled are mixtures of several graphs (encoders, MLA,
RWKV, the first Mamba): their result is an estimate from attention and feed-forward.

Sources: src/llama-graph.cpp (build_attn, build_ffn, build_moe_ffn, build_inp_*), src/models/*.cpp
(order of operations), src/llama-context.cpp (graph_reserve: every token of the batch has logits).
"""

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

    Widths are those of dense, expert and shared feed-forward blocks (0: none), and of per-layer
    embeddings. A state-space layer convolves `conv_channels` over `conv_kernel` tokens and computes
    `n_inner` values in `n_ssm_heads`, from one product of `n_ssm_in` rows (Mamba 2) or several.
    """

    qk_norm: bool = False
    post_norm: bool = False
    pre_norm: bool = True
    fused_qkv: bool = False
    fused_gate_up: bool = False
    n_ff: int = 0
    n_ff_expert: int = 0
    n_ff_shared: int = 0
    gated_query: bool = False
    per_layer: int = 0
    conv_channels: int = 0
    conv_kernel: int = 0
    n_inner: int = 0
    n_ssm_heads: int = 0
    n_ssm_in: int = 0
    is_delta: bool = False


def read_features(tensors: Iterable[StoredTensor]) -> Features:
    widths: dict[str, int] = {}
    rows: dict[str, int] = {}  # lengths of one row
    for tensor in tensors:
        base = tensor.name.split(".")[-2] if "." in tensor.name else tensor.name
        if tensor.name.endswith(".bias") and base != "ssm_dt":
            continue
        widths[base] = max(widths.get(base, 0), tensor.n_rows)
        rows[base] = max(rows.get(base, 0), tensor.n_per_row)
    up, fused = widths.get("ffn_up", 0), "ffn_gate" not in widths and "ffn_up" in widths
    is_delta = "ssm_alpha" in widths or "ssm_ba" in widths
    # Behind attention where another norm stands before feed-forward, else before it.
    is_behind = "ffn_norm" in widths and "post_attention_norm" in widths
    return Features(
        qk_norm="attn_q_norm" in widths,
        post_norm=is_behind or "post_ffw_norm" in widths,
        pre_norm="attn_norm" in widths or "ffn_norm" in widths or not widths,
        fused_qkv="attn_qkv" in widths and "attn_q" not in widths,
        fused_gate_up=fused,
        n_ff=up,
        # Gate and up of all experts may be one matrix, of as many rows as both.
        n_ff_expert=widths.get("ffn_up_exps", widths.get("ffn_gate_up_exps", 0) // 2),
        n_ff_shared=widths.get("ffn_up_shexp", 0),
        # A query beside its gate in one matrix: twice what the output takes.
        gated_query=is_delta and widths.get("attn_q", 0) == 2 * rows.get("attn_output", 0) > 0,
        per_layer=widths.get("inp_gate", 0),
        conv_channels=widths.get("ssm_conv1d", 0),
        conv_kernel=rows.get("ssm_conv1d", 0),
        n_inner=rows.get("ssm_out", 0),
        n_ssm_heads=rows.get("ssm_dt", 0),
        n_ssm_in=widths.get("ssm_in", 0),
        is_delta=is_delta,
    )


# Families that add the residual stream to a block's result and not the other way round, behind
# attention and behind feed-forward: it decides whose memory the sum takes over.
_STREAM_FIRST = {"phi3": (False, True), "lfm2": (True, True), "lfm2moe": (True, True)}
# Families that leave out the rows without wanted logits behind the last norm only.
_ROWS_LAST = (
    *("gemma4", "gpt-oss", "nemotron_h", "nemotron_h_moe"),
    *("qwen35", "qwen35moe", "qwen3next"),
)
_SCALED_EMBEDDINGS = ("gemma", "granite", "minicpm")
_FLOAT_KV = ("f32", "f16", "bf16")


@lru_cache(maxsize=512)
def graph_bytes(
    shape: ModelShape,
    features: Features,
    n_ctx: int,
    n_ubatch: int,
    kv_type: str = "f16",
) -> GraphBytes:
    """The compute buffer with fused attention (the engine's default on CPUs). `reserved` is the
    "compute buffer size" of the engine's log; `resident` what a full context touches when only the
    last token's logits are asked for.
    """
    n_ubatch = min(n_ubatch, n_ctx)
    layout = _Layout(shape, features, n_ubatch, kv_type not in _FLOAT_KV)
    layers = shape.layers
    if len(layers) > _LAYERS_LAID_OUT:
        layers = (*layers[: _LAYERS_LAID_OUT - 1], layers[-1])
    cells = {
        layer.window: kv_cells(n_ctx, layer.window, n_ubatch) for layer in layers if layer.n_head_kv
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
        self.d = self.rows(shape.n_embd)

    def rows(self, width: int) -> int:
        return 4 * width * self.n_tokens

    def measure(self, layers: tuple[LayerShape, ...], cells: dict[int | None, int]) -> GraphBytes:
        graph, n, d = self.graph, self.n_tokens, self.d
        tokens = graph.input(4 * n)
        graph.input(d, written=0)  # embeddings handed in instead of tokens: reserved, not used
        self.positions = graph.input(4 * n)
        self.caches = {
            window: self._cache_inputs(window, n_cells) for window, n_cells in cells.items()
        }
        outputs = graph.input(4 * n, written=4)
        stream = graph.run(d, tokens)
        if self.shape.arch.startswith(_SCALED_EMBEDDINGS):
            stream = graph.run(d, stream, in_place=True)
        self.per_layer = self._per_layer_inputs(stream) if self.features.per_layer else None
        rows_last = self.shape.arch in _ROWS_LAST
        for number, layer in enumerate(layers):
            is_last = number == len(layers) - 1 and not rows_last
            stream = self._layer(layer, stream, outputs if is_last else None)
        normed = self._norm(stream, d)
        if rows_last:
            self.only_outputs = True
            normed = self._run(d, normed, outputs)
        logits = self._run(self.rows(self.shape.n_vocab), normed)
        graph.view(logits)  # read by the caller: stays to the end
        return graph.measure()

    def _cache_inputs(self, window: int | None, n_cells: int) -> _CacheInputs:
        """Add what attention reads beside a kind of cache: Hadamard matrices that rotate a
        quantized cache of equal heads (src/llama-kv-cache.cpp, attn_rot), places (64-bit) and the
        mask (f16).
        """
        graph, n = self.graph, self.n_tokens
        rotate_k = rotate_v = None
        cached = [x for x in self.shape.layers if x.has_cache and x.window == window]
        heads = {(x.head_dim_k, x.head_dim_v) for x in cached}
        if self.rotate and len(heads) == 1 and all(n % 64 == 0 for n in max(heads)):
            width = max(heads)[0]
            width &= -width  # the largest power of two that divides it
            rotate_k, rotate_v = graph.input(4 * width * width), graph.input(4 * 64 * 64)
        places = graph.input(8 * n), graph.input(8 * n)
        return _CacheInputs(rotate_k, rotate_v, *places, graph.input(2 * n_cells * n))

    def _run(self, size: int, *sources: int, in_place: bool = False) -> int:
        """An operation over the batch's tokens; behind the last attention, over the outputs."""
        written = size // self.n_tokens if self.only_outputs else size
        return self.graph.run(size, *sources, in_place=in_place, written=written)

    def _norm(self, source: int, size: int) -> int:
        normed = self._run(size, source, in_place=True)
        return self._run(size, normed, in_place=True)

    def _per_layer_inputs(self, stream: int) -> int:
        """Gemma 4's table rows and projected embeddings (src/models/gemma4.cpp)."""
        graph, size = self.graph, self.rows(self.features.per_layer * self.shape.n_layer)
        rows = graph.run(size, graph.input(4 * self.n_tokens))
        rows = graph.run(size, graph.view(rows), in_place=True)
        projected = graph.run(size, graph.run(size, stream), in_place=True)
        projected = graph.run(size, graph.view(projected), in_place=True)
        projected = graph.run(size, projected, in_place=True)
        both = graph.run(size, graph.run(size, projected, rows, in_place=True), in_place=True)
        return graph.run(size, graph.view(both))

    def _layer(self, layer: LayerShape, stream: int, outputs: int | None) -> int:
        normed = self._norm(stream, self.d) if self.features.pre_norm else stream
        if layer.n_head_kv and layer.state_values:
            return self._parallel(layer, normed, stream, outputs)
        if not layer.n_head_kv and not layer.state_values and self.features.n_inner:
            made = self._any_feed_forward(normed)  # a block of Nemotron-H: nothing else
            return self._add(made, stream, swapped=False)
        mixed = self._mix(layer, normed)
        if outputs is not None:
            mixed, stream = self._choose_rows(mixed, stream, outputs)
        if self.features.post_norm:
            mixed = self._norm(mixed, self.d)
        behind_mix, behind_block = _STREAM_FIRST.get(self.shape.arch, (False, False))
        residual = self._add(mixed, stream, swapped=behind_mix)
        if self.shape.arch.startswith("nemotron_h"):
            return residual
        normed = self._norm(residual, self.d) if self.features.pre_norm else residual
        made = self._any_feed_forward(normed)
        if self.features.post_norm:
            made = self._norm(made, self.d)
        stream = self._add(made, residual, swapped=behind_block)
        return stream if self.per_layer is None else self._add_per_layer(stream, self.per_layer)

    def _mix(self, layer: LayerShape, normed: int) -> int:
        if layer.n_head_kv:
            return self._attend(layer, *self._query(layer, normed))
        if self.features.is_delta:
            return self._delta_net(layer, normed)
        if self.features.n_ssm_in:  # Mamba 2 (src/models/mamba-base.cpp, build_mamba2_layer)
            return self._end_scan(*self._scan(layer, normed))
        return self._short_convolution(layer, normed)

    def _choose_rows(self, mixed: int, stream: int, outputs: int) -> tuple[int, int]:
        self.only_outputs = True
        return self._run(self.d, mixed, outputs), self._run(self.d, stream, outputs)

    def _any_feed_forward(self, normed: int) -> int:
        if not self.features.n_ff_expert:
            return self._feed_forward(normed, self.features.n_ff or self.shape.n_ff)
        made = self._experts(normed)
        if self.features.n_ff_shared:
            shared = self._feed_forward(normed, self.features.n_ff_shared)
            made = self._add(made, shared, swapped=False)
        return made

    def _parallel(self, layer: LayerShape, normed: int, stream: int, outputs: int | None) -> int:
        """A layer of Falcon-H1 (src/models/falcon-h1.cpp): attention and Mamba side by side."""
        # Both begin, as far as caches and states are written, before either ends.
        query = self._query(layer, normed)
        scanned = self._scan(layer, self._norm(stream, self.d))
        attended = self._attend(layer, *query)
        mixed = self._end_scan(*scanned)
        both = self._add(attended, mixed, swapped=False)
        stream = self._run(self.d, both, stream, in_place=True)
        if outputs is not None:
            _, stream = self._choose_rows(both, stream, outputs)
        made = self._feed_forward(self._norm(stream, self.d), self.features.n_ff)
        return self._add(made, stream, swapped=False)

    def _add_per_layer(self, stream: int, inputs: int) -> int:
        """The block of per-layer embeddings behind a layer of Gemma 4."""
        narrow, d = self.rows(self.features.per_layer), self.d
        gate = self._run(narrow, self._run(narrow, stream), in_place=True)
        gate = self._run(narrow, gate, self.graph.view(inputs), in_place=True)
        made = self._norm(self._run(d, gate), d)
        added = self._run(d, stream, made, in_place=True)
        return self._run(d, added, in_place=True)

    def _convolve(self, layer: LayerShape, source: int) -> tuple[int, int]:
        """The convolution over the last tokens, which renews its state: its result and its size."""
        graph, f = self.graph, self.features
        kept = 4 * (f.conv_kernel - 1) * f.conv_channels
        size = self.rows(f.conv_channels)
        state = graph.run(kept)
        joined = graph.run(size + kept, graph.view(state), graph.view(source))
        graph.run(0, graph.view(joined))
        return joined, size

    def _delta_net(self, layer: LayerShape, normed: int) -> int:
        """A gated delta net, fused (src/models/qwen35.cpp, src/models/delta-net-base.cpp)."""
        graph, f = self.graph, self.features
        inner, heads = self.rows(f.n_inner), self.rows(f.n_ssm_heads)
        keys = (self.rows(f.conv_channels) - inner) // 2
        state_size = 4 * layer.state_values - 4 * (f.conv_kernel - 1) * f.conv_channels
        joined, size = self._convolve(layer, graph.run(self.rows(f.conv_channels), normed))
        state = graph.run(state_size)
        mixed = graph.run(size, graph.run(size, joined), in_place=True)
        q, k = (
            graph.run(keys, graph.run(keys, graph.view(mixed)), in_place=True) for _ in range(2)
        )
        value = graph.view(mixed)
        alpha = graph.view(graph.run(heads, normed))
        gate = graph.run(
            heads, graph.run(heads, graph.run(heads, alpha), in_place=True), in_place=True
        )
        beta = graph.run(heads, graph.view(graph.run(heads, normed)))
        result = graph.run(
            inner + state_size, q, k, value, graph.view(gate), beta, graph.view(state)
        )
        graph.run(0, graph.view(result))
        made = self._norm(graph.view(result), inner)
        z = graph.run(inner, graph.view(graph.run(inner, normed)))
        made = graph.run(inner, made, z, in_place=True)
        return graph.view(graph.run(self.d, graph.view(made)))

    def _scan(self, layer: LayerShape, normed: int) -> tuple[int, int, int]:
        """Compute the new state; returns the projected parts, the convolved ones and the result."""
        graph, f = self.graph, self.features
        inner, heads = self.rows(f.n_inner), self.rows(f.n_ssm_heads)
        state_size = 4 * layer.state_values - 4 * (f.conv_kernel - 1) * f.conv_channels
        parts = graph.run(self.rows(f.n_ssm_in), normed)
        joined, size = self._convolve(layer, parts)
        convolved = graph.run(size, joined)
        for _ in ("bias", "silu"):
            convolved = graph.run(size, convolved, in_place=True)
        x = graph.view(convolved)
        steps = graph.run(heads, graph.run(heads, graph.view(parts)), in_place=True)
        scanned = graph.run(inner + state_size, x, steps, graph.view(convolved))
        graph.run(0, graph.view(scanned))
        return parts, x, scanned

    def _end_scan(self, parts: int, x: int, scanned: int) -> int:
        graph, inner = self.graph, self.rows(self.features.n_inner)
        skipped = graph.run(inner, x)
        y = graph.run(inner, graph.view(scanned), skipped, in_place=True)
        gated = graph.run(inner, graph.run(inner, graph.view(parts)), y)
        made = graph.view(self._norm(graph.view(gated), inner))
        return graph.run(self.d, made)

    def _add(self, made: int, stream: int, *, swapped: bool) -> int:
        """The sum takes over its first operand if it can, and then its second."""
        first, second = (stream, made) if swapped else (made, stream)
        return self._run(self.d, first, second, in_place=True)

    def _query(self, layer: LayerShape, normed: int) -> tuple[int, int | None]:
        """Compute Q, and K and V into the cache; returns Q, and its gate if it has one."""
        graph = self.graph
        sizes = {
            "q": self.rows(self.shape.n_head * layer.head_dim_k),
            "k": self.rows(layer.n_head_kv * layer.head_dim_k),
            "v": self.rows(layer.n_head_kv * layer.head_dim_v),
        }
        heads: dict[str, int] = {}
        inputs = self.caches[layer.window]
        gate: int | None = None
        if self.features.fused_qkv:
            fused = self._run(sum(sizes.values()), normed)
            for name in "qkv":
                heads[name] = graph.view(fused)
        for name in "q" if layer.shares_kv else "qvk":
            if name == "q" and self.features.gated_query:
                full = self._run(2 * sizes["q"], normed)
                heads["q"], gate = graph.view(full), graph.view(full)
            elif not self.features.fused_qkv:
                heads[name] = graph.view(self._run(sizes[name], normed))
            if name != "v":
                if self.features.qk_norm:
                    heads[name] = self._norm(heads[name], sizes[name])
                heads[name] = self._run(sizes[name], heads[name], self.positions, in_place=True)
            heads[name] = self._rotate(
                heads[name], sizes[name], inputs.rotate_v if name == "v" else inputs.rotate_k
            )
        if not layer.shares_kv:
            graph.run(0, heads["k"], inputs.k_places)
            graph.run(0, heads["v"], inputs.v_places)
        return heads["q"], gate

    def _attend(self, layer: LayerShape, heads: int, gate: int | None) -> int:
        graph, inputs = self.graph, self.caches[layer.window]
        attended_size = self.rows(self.shape.n_head * layer.head_dim_v)
        query = graph.view(graph.view(heads))
        attended = graph.view(self._run(attended_size, query, inputs.mask))
        attended = self._rotate(attended, attended_size, inputs.rotate_v)
        if gate is not None:
            share = self._run(attended_size, self._run(attended_size, gate), in_place=True)
            attended = self._run(attended_size, attended, share, in_place=True)
        return self._run(self.d, attended)

    def _rotate(self, source: int, size: int, rotation: int | None) -> int:
        if rotation is None:
            return source
        return self.graph.view(self._run(size, rotation, self.graph.view(source)))

    def _short_convolution(self, layer: LayerShape, normed: int) -> int:
        """LFM2's gated convolution (src/models/lfm2.cpp, build_shortconv_block)."""
        graph, d = self.graph, self.d
        parts = self._run(3 * d, graph.view(normed))
        b, c, x = graph.view(parts), graph.view(parts), graph.view(parts)
        product = graph.view(self._run(d, b, x, in_place=True))
        state = graph.run(4 * layer.state_values)
        joined = self._run(d + 4 * layer.state_values, graph.view(state), product)
        graph.run(0, graph.view(joined))
        convolved = self._run(d, joined)
        gated = self._run(d, c, convolved, in_place=True)
        return graph.view(self._run(d, gated))

    def _feed_forward(self, normed: int, n_ff: int) -> int:
        wide = self.rows(n_ff)
        if self.features.fused_gate_up:
            both = self._run(wide, normed)
            activated = self._run(wide // 2, both)
        else:
            up = self._run(wide, normed)
            gate = self._run(wide, normed)
            activated = self._run(wide, gate, up)
        return self._run(self.d, activated)

    def _experts(self, normed: int) -> int:
        graph, used = self.graph, self.shape.n_expert_used
        d, wide = self.d, used * self.rows(self.features.n_ff_expert)
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
    """The CPU's work buffer: the activations of one product in 8 bits (292 bytes per 256 values at
    most), or each thread's tiles of fused attention (64 queries x 64 keys). Source:
    ggml/src/ggml-cpu/ggml-cpu.c, ggml_graph_plan (MUL_MAT, FLASH_ATTN_EXT).
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
) -> int:
    """Resident bytes of graph and work buffer: what the plan calls `compute_buffers`."""
    graph = graph_bytes(shape, features, n_ctx, n_ubatch, kv_type)
    return graph.resident + work_bytes(shape, features, min(n_ubatch, n_ctx), n_threads)
