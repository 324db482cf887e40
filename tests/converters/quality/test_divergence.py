"""The formulas of the quality card, against closed forms and properties that must hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boardfit.converters.quality.divergence import (
    Tally,
    estimate_mean,
    log_softmax,
    scored_positions,
    windows,
)
from boardfit.edge.errors import IntegrityError

logits = arrays(np.float32, (5, 7), elements=st.floats(-20, 20, width=32))


def tallied(reference: np.ndarray, other: np.ndarray, tokens: list[int], n_vocab: int = 7):
    tally = Tally(n_vocab)
    tally.add(reference, other, tokens)
    return tally.result()


def test_an_absurd_loss_names_the_model() -> None:
    """Finite logits of a damaged file, whose perplexity no number holds."""
    sane, absurd = np.zeros((1, 2), np.float32), np.float32([[0, 3000]])
    with pytest.raises(IntegrityError, match="the source is no working model"):
        tallied(absurd, absurd, [0], 2)
    with pytest.raises(IntegrityError, match="the artifact is no working model"):
        tallied(sane, absurd, [0], 2)


def test_two_tokens_by_hand() -> None:
    """P = (3/4, 1/4), Q = (1/2, 1/2), the second token follows."""
    p, q = np.log(np.float32([[0.75, 0.25]])), np.zeros((1, 2), np.float32)
    found = tallied(p, q, [1], 2)
    assert found.kld_mean.value == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.ppl.value == pytest.approx(2) and found.ppl_reference.value == pytest.approx(4)
    assert found.ppl_ratio.value == pytest.approx(0.5)
    assert found.kld_mean.stderr == 0, "one position has no spread"


@given(logits, logits)
def test_divergence_is_never_negative_and_zero_only_with_itself(
    a: np.ndarray, b: np.ndarray
) -> None:
    tokens = [0, 1, 2, 3, 4]
    assert tallied(a, b, tokens).kld_mean.value >= -1e-12
    same = tallied(a, a, tokens)
    assert same.kld_mean.value == pytest.approx(0, abs=1e-12)
    assert same.top1_agree.value == 1 and same.ppl_ratio.value == pytest.approx(1)


@given(logits, st.floats(-50, 50, width=32))
def test_a_constant_added_to_all_logits_changes_nothing(a: np.ndarray, shift: float) -> None:
    assert tallied(a, a + np.float32(shift), [0] * 5).kld_mean.value == pytest.approx(0, abs=1e-8)


@given(logits, logits, st.integers(1, 9))
def test_padding_of_the_vocabulary_is_cut(a: np.ndarray, b: np.ndarray, n_padding: int) -> None:
    padded = np.hstack([b, np.full((5, n_padding), 1e4, np.float32)])
    assert tallied(a, padded, [6] * 5) == tallied(a, b, [6] * 5)


def test_rows_may_come_in_any_portions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 11)).astype(np.float32)
    tokens = list(rng.integers(0, 11, 50))
    whole, parts = Tally(11), Tally(11)
    whole.add(a, b, tokens)
    for start in range(0, 50, 7):
        part = slice(start, start + 7)
        parts.add(a[part], b[part], tokens[part])
    assert whole.result() == parts.result()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_is_an_error(bad: float) -> None:
    rows = np.zeros((2, 4), np.float32)
    rows[1, 2] = bad
    with pytest.raises(IntegrityError, match="not finite"):
        log_softmax(rows, 4)


def test_too_few_columns_are_an_error() -> None:
    with pytest.raises(IntegrityError, match="expected 5 columns"):
        log_softmax(np.zeros((2, 4), np.float32), 5)


def test_the_error_of_a_mean_is_that_of_the_sample() -> None:
    found = estimate_mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.value == 2.5 and found.stderr == pytest.approx(math.sqrt(5 / 3) / 2)


@given(st.integers(0, 5000), st.integers(2, 600))
def test_windows_are_whole_and_scored_in_their_second_half(n_tokens: int, size: int) -> None:
    found = list(windows(n_tokens, size))
    assert len(found) == n_tokens // size
    assert all(w.stop - w.start == size and w.stop <= n_tokens for w in found)
    assert scored_positions(size)[0] == size // 2 if size > 2 else True
    assert all(i + 1 < size for i in scored_positions(size)), (
        "the token that follows is in the window"
    )
