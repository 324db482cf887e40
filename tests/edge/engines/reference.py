"""The tiny Llama of `tiny_gguf` in numpy and double precision: what every engine should compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tests.edge.engines.tiny_gguf import F32
from tests.edge.engines.tiny_hf import N_HEAD, N_HEAD_KV, RMS_EPS, ROPE_BASE

F64 = NDArray[np.float64]


def logits(tensors: Mapping[str, F32], tokens: list[int]) -> F64:
    """Next-token logits after every prefix: [len(tokens), n_vocab] (upstream: transformers'
    `modeling_llama.py`; the rotation is llama.cpp's, of neighbouring rows).
    """
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x: F64 = w["token_embd.weight"][tokens]
    n, n_embd = x.shape
    dim = n_embd // N_HEAD
    angles = np.outer(np.arange(n), ROPE_BASE ** (-np.arange(0, dim, 2) / dim))
    hidden = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(sum(name.endswith("attn_q.weight") for name in w)):
        block = f"blk.{i}."
        h = normalized(x) * w[block + "attn_norm.weight"]
        q = rotated((h @ w[block + "attn_q.weight"].T).reshape(n, N_HEAD, dim), angles)
        k = rotated((h @ w[block + "attn_k.weight"].T).reshape(n, N_HEAD_KV, dim), angles)
        v = (h @ w[block + "attn_v.weight"].T).reshape(n, N_HEAD_KV, dim)
        k, v = (np.repeat(a, N_HEAD // N_HEAD_KV, axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim) + hidden
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        seen = np.einsum("hqk,khd->qhd", shares, v).reshape(n, n_embd)
        x = x + seen @ w[block + "attn_output.weight"].T
        h = normalized(x) * w[block + "ffn_norm.weight"]
        gate = h @ w[block + "ffn_gate.weight"].T
        up = gate / (1 + np.exp(-gate)) * (h @ w[block + "ffn_up.weight"].T)
        x = x + up @ w[block + "ffn_down.weight"].T
    result: F64 = normalized(x) * w["output_norm.weight"] @ w["output.weight"].T
    return result


def normalized(x: F64) -> F64:
    result: F64 = x / np.sqrt((x * x).mean(-1, keepdims=True) + RMS_EPS)
    return result


def rotated(x: F64, angles: F64) -> F64:
    """Rotary embedding of [n, heads, dim]; angles [n, dim / 2] for neighbouring pairs."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = even * sin + odd * cos
    return turned


def greedy(tensors: Mapping[str, F32], prompt: list[int], n: int) -> tuple[list[int], list[float]]:
    """The `n` likeliest tokens after `prompt`, one after the other, and by how much each led."""
    tokens, margins = list(prompt), []
    for _ in range(n):
        last = logits(tensors, tokens)[-1]
        second, first = np.sort(last)[-2:]
        margins.append(float(first - second))
        tokens.append(int(last.argmax()))
    return tokens[len(prompt) :], margins
