"""Tags that come back multiplied."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.formats.litert.worker.factors import Factors, candidate_factors
from boardfit.edge.errors import UnsupportedModelError

FIRST = 1 << 20
TAGS = range(FIRST, FIRST + 600)
GRANITE = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}
FACTORS = candidate_factors(GRANITE)


@given(st.sampled_from(TAGS), st.sampled_from([1.0, 0.22, 1 / 8, 12.0, 0.015625, 64**-0.5]))
def test_products_are_taken_apart(tag: int, factor: float) -> None:
    value = float(np.float32(tag) * np.float32(factor))
    found = Factors(TAGS, FACTORS).split(value)
    assert found is not None
    assert found[0] == tag
    assert found[1] == pytest.approx(factor, rel=1e-6)


@given(st.floats(width=32))
def test_other_numbers_are_none_or_near_a_product(value: float) -> None:
    found = Factors(TAGS, FACTORS).split(value)
    if found is not None:
        assert found[0] * found[1] == pytest.approx(value, rel=1e-6)


def test_what_cannot_be_told_apart_is_refused() -> None:
    near = Factors(TAGS, [1.0, FIRST / (FIRST + 1)])
    with pytest.raises(UnsupportedModelError, match="is ambiguous"):
        near.split(float(FIRST))


def test_switches_are_no_factors() -> None:
    assert candidate_factors({"use_cache": True, "num_attention_heads": 1, "hidden_size": 1}) == [1]
