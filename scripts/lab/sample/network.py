"""The network in plain torch: a Llama with grouped-query attention and tied embeddings.

Written out rather than taken from transformers because it is faster on one core and only has to
do this. Parameter names are those of Hugging Face, so `state_dict` is the file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.sample.shape import Config

Cache = list[tuple[Tensor, Tensor]]


class RMSNorm(nn.Module):  # type: ignore[misc]
    """Root mean square normalisation with a learnt scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_table(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every position, in the rotate-half layout."""
    steps = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.outer(
        torch.arange(config.max_position_embeddings).float(), config.rope_theta**-steps
    )
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (batch, heads, time, head_dim)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):  # type: ignore[misc]
    """Causal self-attention; two query heads share one key-value head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size, dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(size, config.num_attention_heads * dim, bias=False)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, time, _ = x.shape
        c = self.config
        q = self.q_proj(x).view(batch, time, c.num_attention_heads, c.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, time, c.num_key_value_heads, c.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, time, c.num_key_value_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
        groups = c.num_attention_heads // c.num_key_value_heads
        y = functional.scaled_dot_product_attention(
            q,
            k.repeat_interleave(groups, dim=1),
            v.repeat_interleave(groups, dim=1),
            is_causal=time > 1,
        )
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, -1)), (k, v)


class MLP(nn.Module):  # type: ignore[misc]
    """Gated feed-forward block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):  # type: ignore[misc]
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = 0.0  # set by the lesson; without effect in `eval`

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Tensor, Tensor] | None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, kv = self.self_attn(self.input_layernorm(x), cos, sin, cache)
        x = x + functional.dropout(y, self.dropout, self.training)
        if keep is not None:
            x = x[keep]
        z = self.mlp(self.post_attention_layernorm(x))
        return x + functional.dropout(z, self.dropout, self.training), kv


class Body(nn.Module):  # type: ignore[misc]
    """Embeddings, layers and the last norm: `model.*` in the file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class SampleModel(nn.Module):  # type: ignore[misc]
    """The sample model; the output head is the embedding matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        out_scale = 0.02 / (2 * config.num_hidden_layers) ** 0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=out_scale if residual else 0.02)

    def hidden(
        self, tokens: Tensor, cache: Cache | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Normed hidden states of (batch, time) tokens, and the grown key-value cache.

        With `keep`, a mask over the positions, only those leave the last layer: training needs
        the answers alone, and the last feed-forward block is a fifth of the work.
        """
        start = cache[0][0].shape[2] if cache else 0
        stop = start + tokens.shape[1]
        cos, sin = self.cos[start:stop], self.sin[start:stop]
        x = self.model.embed_tokens(tokens)
        grown: Cache = []
        for n, layer in enumerate(self.model.layers):
            last = n == len(self.model.layers) - 1
            x, kv = layer(x, cos, sin, cache[n] if cache else None, keep if last else None)
            grown.append(kv)
        return self.model.norm(x), grown

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token."""
        return functional.linear(hidden, self.model.embed_tokens.weight)
