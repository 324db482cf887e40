"""Choose fused attention (flash attention) or not, whichever llama.cpp computes faster here.

Fused, the scores of a step are never written out, which saves memory, and for 64 tokens and more at
once time. A step of fewer tokens goes through them one by one; without native half-precision
arithmetic that is slow: on x86-64 (AVX-512, 0.5B parameters, 1,000 tokens deep) decode took 1.38
times as long as unfused, and 11 tokens of a second turn 2.5 times; a long prefill took the same
(docs/deadline.md). On Arm, where half precision is native, and on GPUs the library decides.
"""

from __future__ import annotations

import platform
from typing import Literal

from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.units import MIB

#: Quantized values are only read fused.
_PLAIN_TYPES = ("f32", "f16", "bf16")
#: Memory that the scores of a step may take, in bytes.
_MOST_SCORES = 128 * MIB


def quicker_attention(
    settings: EngineSettings,
    n_ctx: int,
    n_heads: int,
    free_bytes: int | None,
    *,
    machine: str | None = None,
) -> Literal["auto", "off"]:
    """`off` where unfused is quicker and there is memory for it, else `auto`, the library's choice.

    `n_heads` of the layer with most; `free_bytes` is what is left beside the model (None: not to be
    looked at); `machine` as `platform.machine()` says it.
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64"):
        return "auto"
    # Single precision, one for each token of a step, place of the context and head.
    scores = 4 * min(settings.n_ubatch, n_ctx) * n_ctx * n_heads
    most = _MOST_SCORES if free_bytes is None else min(_MOST_SCORES, free_bytes)
    return "off" if settings.kv_type in _PLAIN_TYPES and scores <= most else "auto"
