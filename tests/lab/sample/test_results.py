"""The results file and the table in the card."""

from __future__ import annotations

import pytest

from lab.sample import results
from lab.sample.task import TaskScore

SCORE = TaskScore(
    {"command": 200, "unseen-name": 50, "plain": 40},
    {"command": 190, "unseen-name": 40, "plain": 36},
)
CARD = f"# card\n\nbefore\n{results.BEGIN}\nold\n{results.END}\nafter\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path


def test_update_writes_the_file_and_the_table(folder):
    results.update("q4_k_m", SCORE, 2 * 2**20, "llama.cpp b1", model_dir=folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| q4_k_m | 2.00 | 95.0 % | 80.0 % | 90.0 % | – | 290 | llama.cpp b1 |" in card
    assert card.startswith("# card\n\nbefore\n") and card.endswith("\nafter\n")
    assert "old" not in card
    assert results.load(folder)["recipes"]["q4_k_m"]["n_exact"]["command"] == 190


def test_update_again_replaces_and_sorts_by_size(folder):
    results.update("q4_0", SCORE, 2 * 2**20, "a", model_dir=folder)
    results.update("f16", SCORE, 7 * 2**20, "a", model_dir=folder)
    once = (folder / "README.md").read_text(encoding="utf-8")
    results.update("f16", SCORE, 7 * 2**20, "a", model_dir=folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == once
    assert once.index("| f16 |") < once.index("| q4_0 |")


def test_a_kind_that_was_not_asked_shows_a_dash(folder):
    results.update("q4_0", TaskScore({"command": 2}, {"command": 1}), 10, "a", model_dir=folder)
    assert "| 50.0 % | – | – | – | 2 |" in (folder / "README.md").read_text(encoding="utf-8")


def test_empty_scores_and_sizes_are_refused(folder):
    with pytest.raises(ValueError, match="empty"):
        results.update("q4_0", TaskScore({}, {}), 10, "a", model_dir=folder)
    with pytest.raises(ValueError, match="size on disk"):
        results.update("q4_0", SCORE, 0, "a", model_dir=folder)


def test_a_card_without_markers_is_refused():
    with pytest.raises(ValueError, match="once each"):
        results.render_into("# card\n", {"recipes": {}})
    with pytest.raises(ValueError, match="once each"):
        results.render_into(f"{results.END}\n{results.BEGIN}", {"recipes": {}})
