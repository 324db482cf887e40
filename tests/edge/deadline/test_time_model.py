"""The time model against boards whose true speed is known, because the test made them up."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.deadline import TimeStore
from boardfit.edge.deadline.time_model import Prior, TimeModel
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.types import EngineInfo

PRIOR = Prior(prefill_tps=180, decode_tps=30)


def board(n_new: int, n_past: int, load: float = 1.0) -> float:
    """Seconds of a prefill on a board some 30 % faster than the prior says."""
    return load * (0.025 + n_new / 240 + n_new * (n_past + n_new / 2) * 8e-7)


def train(model: TimeModel, n: int, seed: int = 1, load: float = 1.0, noise: float = 0.03) -> None:
    rng = random.Random(seed)
    for _ in range(n):
        n_new, n_past = rng.randint(4, 2000), rng.choice([0, 0, 300, 1200])
        model.observe_prefill(n_new, n_past, board(n_new, n_past, load) * rng.gauss(1, noise))
        depth = n_new + n_past
        model.observe_decode(64, depth, 64 * load * (0.02 + depth * 2e-6) * rng.gauss(1, noise))


@pytest.mark.parametrize(("n_new", "n_past"), [(8, 0), (200, 0), (1800, 0), (100, 1500)])
def test_learns_a_board_from_a_few_requests(n_new: int, n_past: int) -> None:
    model = TimeModel(PRIOR)
    train(model, 15)
    span = model.prefill(n_new, n_past)
    assert span.mid == pytest.approx(board(n_new, n_past), rel=0.15)
    assert span.low < board(n_new, n_past) < span.high
    assert model.token(1000).mid == pytest.approx(0.022, rel=0.1)


def test_follows_a_neighbour_within_a_few_requests_and_forgets_it_again() -> None:
    model = TimeModel(PRIOR)
    train(model, 40)
    train(model, 3, seed=2, load=2.0)
    assert model.prefill(500).mid == pytest.approx(board(500, 0, 2.0), rel=0.2)
    train(model, 4, seed=3)
    assert model.prefill(500).mid == pytest.approx(board(500, 0), rel=0.2)


def test_one_stall_does_not_rule_the_next_prediction() -> None:
    model = TimeModel(PRIOR)
    train(model, 40)
    model.observe_decode(1, 500, 0.5)  # 25 times as long as usual
    model.observe_decode(32, 500, 32 * 0.021)
    assert model.token(500).mid == pytest.approx(0.021, rel=0.35)


def test_bounds_cover_what_comes_next() -> None:
    model = TimeModel(PRIOR)
    rng = random.Random(5)
    inside = 0
    for i in range(400):
        load = 1.6 if (i // 20) % 2 else 1.0  # a neighbour comes and goes
        n_new = rng.randint(8, 1500)
        seconds = board(n_new, 0, load) * rng.gauss(1, 0.05)
        inside += model.prefill(n_new).high >= seconds
        model.observe_prefill(n_new, 0, seconds)
    assert inside >= 0.95 * 400


def test_a_cold_start_teaches_only_what_being_cold_costs() -> None:
    model = TimeModel(Prior(180, 30))
    before = model.prefill(100).mid
    model.observe_prefill(100, 0, before + 3.0, cold=True)
    assert model.prefill(100).mid == before
    assert model.prefill(100, cold=True).high == pytest.approx(model.prefill(100).high + 1.5)


@given(
    st.lists(
        st.tuples(st.integers(1, 8192), st.integers(0, 8192), st.floats(1e-6, 1e4), st.booleans()),
        max_size=40,
    )
)
def test_predictions_stay_finite_ordered_and_rising(
    seen: list[tuple[int, int, float, bool]],
) -> None:
    model = TimeModel(PRIOR)
    for n, past, seconds, cold in seen:
        model.observe_prefill(n, past, seconds, cold=cold)
        model.observe_decode(n, past, seconds)
    spans = [model.prefill(n, 64) for n in (1, 10, 100, 1000)]
    for span in [*spans, model.token(500)]:
        assert 0 <= span.low <= span.mid <= span.high < math.inf
    assert [s.mid for s in spans] == sorted(s.mid for s in spans)
    n = model.prefill_tokens(1.0)
    assert n == 0 or model.prefill(n).high <= 1.0 < model.prefill(n + 1).high
    again = TimeModel.from_dict(json.loads(json.dumps(model.to_dict())), PRIOR)
    assert again.prefill(77).mid >= 0


def test_the_store_survives_a_restart_and_a_damaged_file(tmp_path: Path) -> None:
    info = EngineInfo("llama_cpp", "1", "b1", 1024, 2, 512, "f16", "Q4_0")
    store = TimeStore("model", info, tmp_path)
    model = store.load(PRIOR)
    train(model, 20)
    store.save(model, info)
    again = TimeStore("model", info, tmp_path).load(PRIOR)
    # The pace is of the moment; what the curves say is kept.
    assert again.prefill(700).mid == pytest.approx(board(700, 0), rel=0.15)
    assert TimeStore("other", info, tmp_path).load(PRIOR).n_requests == 0
    for damage in (b"", b"{}", b'{"times": {"schema": 9}}', store.path.read_bytes()[:-40]):
        store.path.write_bytes(damage)
        assert store.load(PRIOR).n_requests == 0


@given(st.recursive(st.none() | st.floats() | st.text(), lambda x: st.lists(x, max_size=3)))
def test_a_hostile_state_is_refused(value: object) -> None:
    stored = TimeModel(PRIOR).to_dict()
    for key in stored:
        try:
            TimeModel.from_dict({**stored, key: value}, PRIOR)
        except InputError:
            continue
        assert isinstance(value, float | list | str), key


@pytest.mark.parametrize("text", ["0", "0s", "-1s", "nan", "inf", "2 parsecs", "", "1e3", "s"])
def test_a_time_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="--within"):
        Budget.parse(text)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_must_be_finite_and_positive(seconds: float) -> None:
    with pytest.raises(UsageError):
        Budget(within_s=seconds)


def test_budgets_are_read_from_text() -> None:
    assert Budget.parse("2s", "500ms") == Budget(2.0, 0.5)
    assert Budget.parse(None) is None
