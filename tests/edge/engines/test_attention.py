"""Fused attention only where it is not slower, and unfused only where there is memory for it."""

from __future__ import annotations

import pytest

from boardfit.edge.engines.llama.ready import quicker_attention
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.units import MIB

SETTINGS = EngineSettings()
# 4 bytes × 512 tokens × 4,096 places × 16 heads.
SCORES = 128 * MIB


@pytest.mark.parametrize(
    ("machine", "n_heads", "free", "kv_type", "expected"),
    [
        ("x86_64", 16, None, "f16", "off"),
        ("AMD64", 16, None, "f16", "off"),
        ("x86_64", 17, None, "f16", "auto"),
        ("x86_64", 16, SCORES, "f16", "off"),
        ("x86_64", 16, SCORES - 1, "f16", "auto"),
        ("x86_64", 1, -1, "f16", "auto"),
        ("x86_64", 16, None, "q8_0", "auto"),
        ("aarch64", 1, None, "f16", "auto"),
        ("arm64", 1, None, "f16", "auto"),
    ],
)
def test_where_it_is_quicker(
    machine: str, n_heads: int, free: int | None, kv_type: str, expected: str
) -> None:
    settings = SETTINGS.replace(kv_type=kv_type)
    assert quicker_attention(settings, 4096, n_heads, free, machine=machine) == expected


def test_a_short_context_takes_less() -> None:
    assert quicker_attention(SETTINGS, 256, 512, None, machine="x86_64") == "off"
