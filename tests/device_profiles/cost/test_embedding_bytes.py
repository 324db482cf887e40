"""Memory of embedding models: what one step of tokens takes beside a decoder's."""

from __future__ import annotations

import pytest

from boardfit.device_profiles.cost.memory import (
    EMBEDDING_LOGIT_BYTES,
    embedding_bytes,
    embedding_rows,
)

MIB = 1024 * 1024


def test_an_encoder_takes_a_text_at_once() -> None:
    assert embedding_rows(30_522, 512, 64, at_once=True) == 512


@pytest.mark.parametrize("n_vocab", [1000, 32_000, 151_936, 262_144, 0])
def test_a_decoder_takes_steps_of_bounded_logits(n_vocab: int) -> None:
    rows = embedding_rows(n_vocab, 4096, 512, at_once=False)
    assert 1 <= rows <= 512
    assert 4 * n_vocab * rows <= EMBEDDING_LOGIT_BYTES


def test_the_text_grows_the_memory_of_an_encoder() -> None:
    """BERT-base: 59.6 MiB of logits, 14 MiB of scores and masks; 109 MiB were measured in all."""
    assert embedding_bytes(30_522, 12, 512, 512) == pytest.approx(73.6 * MIB, rel=0.01)
    assert embedding_bytes(30_522, 12, 1024, 1024) > 2 * embedding_bytes(30_522, 12, 512, 512)
