"""Quality cards of embedding models: cosines, and who stays nearest."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from boardfit.converters.quality.building import MOST_TEXTS, compare, cut, nearest
from boardfit.converters.quality.texts import QualityText, default_text
from boardfit.edge.bundle.quality_text import text_line


def text_of(content: str) -> QualityText:
    return QualityText("t", hashlib.sha256(content.encode()).hexdigest(), content)


def test_equal_vectors_have_cosine_one() -> None:
    vectors = np.eye(4)
    found = compare(vectors, vectors)
    assert found == {"n_texts": 4, "cosine_mean": 1.0, "cosine_min": 1.0, "nearest_agree": 1.0}


def test_a_turned_vector_is_seen_in_the_least() -> None:
    expected = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    found = compare(expected, np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    assert found["cosine_min"] == pytest.approx(0.96) and found["cosine_mean"] > 0.98
    assert found["nearest_agree"] == pytest.approx(2 / 3, abs=1e-3)
    assert "cosine 0.9867" in str(text_line({"name": "t", **found}))


def test_no_text_is_its_own_neighbour() -> None:
    assert nearest(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])).tolist() == [1, 0, 1]


def test_one_text_has_no_neighbour() -> None:
    assert "nearest_agree" not in compare(np.ones((1, 1)), np.ones((1, 1)))


def test_texts_are_spread_over_the_whole() -> None:
    parts = list(cut(text_of("\n\n".join(f"paragraph number {i:03} of many" for i in range(200)))))
    assert 32 < len(parts) <= MOST_TEXTS and "000" in parts[0] and "19" in parts[-1]
    assert list(cut(text_of("short"))) == ["short"]
    assert len(list(cut(default_text()))) > 20
