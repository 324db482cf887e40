"""Engines against the float reference, and so against each other: same weights, any format."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from boardfit.edge.errors import InputError
from boardfit.edge.types import Engine, GenerationConfig, LogitsEngine
from tests.edge.engines import reference
from tests.edge.engines.engine_models import random_tensors
from tests.edge.engines.tiny_gguf import BOS, N_VOCAB

pytestmark = pytest.mark.engine

# All weights are floats here. llama.cpp multiplies in f16 and keeps its KV cache so.
TOLERANCE = {"llama_cpp": 0.05}
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind."


def tolerance(engine: Engine) -> float:
    return TOLERANCE.get(engine.describe().name, 1e-3)


def prompt_of(engine: Engine) -> list[int]:
    return [BOS, *engine.tokenize(TEXT)]


@functools.cache
def expected_answers() -> list[tuple[list[int], list[int], list[float]]]:
    """Prompts, what the reference says to them, and by how much each of its tokens leads."""
    tokens = list(TEXT.encode())
    prompts = [[BOS, *tokens[at : at + 12]] for at in range(0, 40, 5)]
    return [(prompt, *reference.greedy(random_tensors(), prompt, 16)) for prompt in prompts]


def test_greedy_tokens_are_the_references_as_long_as_its_margin_allows(
    random_engine: Engine,
) -> None:
    config, n_sure = GenerationConfig(max_tokens=16, ignore_eos=True), 0
    for prompt, expected, margins in expected_answers():
        said = [event.token_id for event in random_engine.stream(prompt, config)]
        doubt = 2 * tolerance(random_engine)
        sure = next((i for i, lead in enumerate(margins) if lead < doubt), len(margins))
        assert said[:sure] == expected[:sure]
        n_sure += sure
    assert n_sure >= 32, "the reference hesitates so early that this shows nothing"


def test_logits_are_the_references(random_engine: Engine) -> None:
    assert isinstance(random_engine, LogitsEngine)
    prompt = prompt_of(random_engine)
    seen: list[tuple[int, int]] = []
    found = random_engine.logits(prompt, progress=lambda done, total: seen.append((done, total)))
    assert found.dtype == np.float32 and found.shape == (len(prompt), N_VOCAB)
    assert np.abs(found - reference.logits(random_tensors(), prompt)).max() < tolerance(
        random_engine
    )
    assert seen == sorted(seen) and seen[-1] == (len(prompt), len(prompt))


def test_logits_leave_the_cache_empty_and_start_from_an_empty_one(random_engine: Engine) -> None:
    prompt = prompt_of(random_engine)
    config = GenerationConfig(max_tokens=4, ignore_eos=True)
    said = [event.token_id for event in random_engine.stream(prompt, config)]
    first = random_engine.logits(prompt[:9])  # type: ignore[attr-defined]
    assert [event.token_id for event in random_engine.stream(prompt, config)] == said
    assert random_engine.last_start is not None and random_engine.last_start.n_reused == 0
    assert (random_engine.logits(prompt[:9]) == first).all()  # type: ignore[attr-defined]


def test_logits_longer_than_a_batch(random_engine: Engine) -> None:
    prompt = [BOS, *random_engine.tokenize(TEXT * 12)]
    assert 600 < len(prompt) < random_engine.n_ctx
    found = random_engine.logits(prompt)  # type: ignore[attr-defined]
    last = reference.logits(random_tensors(), prompt)
    assert np.abs(found - last).max() < tolerance(random_engine)


def test_logits_of_nothing_or_too_much(random_engine: Engine) -> None:
    for bad in ([], [5] * (random_engine.n_ctx + 1), [-1], [10**6]):
        with pytest.raises(InputError):
            random_engine.logits(bad)  # type: ignore[attr-defined]


def test_logits_do_not_disturb_a_close(random_engine: Engine) -> None:
    from boardfit.edge.errors import EngineError

    random_engine.close()
    with pytest.raises(EngineError, match="closed"):
        random_engine.logits([BOS])  # type: ignore[attr-defined]


def test_logits_are_handed_on_block_by_block(random_engine: Engine) -> None:
    assert isinstance(random_engine, LogitsEngine)
    prompt = prompt_of(random_engine)
    blocks: list[tuple[int, np.ndarray]] = []
    assert (
        random_engine.logits(prompt, visit=lambda at, rows: blocks.append((at, rows.copy())))
        is None
    )
    assert [at for at, _ in blocks] == list(np.cumsum([0, *(len(rows) for _, rows in blocks)]))[:-1]
    assert (np.concatenate([rows for _, rows in blocks]) == random_engine.logits(prompt)).all()


def test_a_visitor_ends_logits_by_raising(random_engine: Engine) -> None:
    def refuse(_at: int, _rows: object) -> None:
        raise KeyError

    prompt = prompt_of(random_engine)
    with pytest.raises(KeyError):
        random_engine.logits(prompt, visit=refuse)  # type: ignore[attr-defined]
    assert random_engine.reusable(prompt) == 0
    assert list(random_engine.stream(prompt, GenerationConfig(max_tokens=1, ignore_eos=True)))
