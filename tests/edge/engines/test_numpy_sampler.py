"""Choosing tokens in numpy: the same settings mean what they mean on llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.engines.numpy_sampler import NumpySampler
from boardfit.edge.types import GenerationConfig

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40).map(
    lambda values: np.array(values, np.float32)
)


def draws(logits: np.ndarray, n: int = 400, **settings: float) -> list[int]:
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    config = GenerationConfig(**plain | settings)  # type: ignore[arg-type]
    sampler = NumpySampler(config, [])
    return [sampler.sample(logits) for _ in range(n)]


@given(LOGITS)
def test_greedy_is_the_largest_and_the_logits_stay(logits: np.ndarray) -> None:
    before = logits.copy()
    assert NumpySampler(GenerationConfig(), []).sample(logits) == int(before.argmax())
    NumpySampler(GenerationConfig(temperature=2, repeat_penalty=1.3), [0, 1]).sample(logits)
    assert (logits == before).all()


@given(LOGITS, st.integers(1, 5), st.floats(0.05, 1), st.floats(0, 0.5))
def test_draws_stay_among_the_kept(
    logits: np.ndarray, top_k: int, top_p: float, min_p: float
) -> None:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares /= shares.sum()
    for token in draws(logits, 20, top_k=top_k, top_p=top_p, min_p=min_p):
        assert (logits > logits[token]).sum() < top_k
        assert shares[token] >= min_p * shares.max() * (1 - 1e-9)
        likelier = shares[shares > shares[token]].sum() / np.sort(shares)[::-1][:top_k].sum()
        assert likelier < top_p + 1e-9, "the set that reaches top_p was complete before this one"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0], np.float32)
    expected = np.exp(logits / temperature)
    expected /= expected.sum()
    counts = np.bincount(draws(logits, 20000, temperature=temperature, seed=7), minlength=4)
    assert np.abs(counts / 20000 - expected).max() < 0.015


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    assert set(draws(logits, top_p=0.5)) == {0}
    assert set(draws(logits, top_p=0.51)) == {0, 1}
    assert set(draws(logits, top_p=0.81)) == {0, 1, 2}
    assert set(draws(logits, min_p=0.5)) == {0, 1}, "0.3 is 0.6 of 0.5, 0.2 is 0.4 of it"


def test_what_the_prompt_says_counts_as_said() -> None:
    logits = np.array([1.0, 0.9, -0.1], np.float32)
    config = GenerationConfig(repeat_penalty=2.0)
    assert NumpySampler(config, [0]).sample(logits) == 1
    sampler = NumpySampler(config, [])
    assert [sampler.sample(logits) for _ in range(3)] == [0, 1, 0], "0.5 leads 0.45 and -0.1"


def test_a_negative_seed_is_a_fresh_one() -> None:
    logits = np.zeros(1000, np.float32)
    assert draws(logits, 8, seed=3) == draws(logits, 8, seed=3)
    assert draws(logits, 8, seed=-1) != draws(logits, 8, seed=-1)
