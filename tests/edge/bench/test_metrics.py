from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bench.metrics import drift, measure, quantile, spread
from boardfit.edge.errors import InputError
from boardfit.edge.types import MemorySample, TokenEvent, Trace

SECOND = 10**9


def trace(
    token_times_s: list[float],
    *,
    prefill_end_s: float | None = 0.5,
    n_prompt: int = 100,
    n_reused: int = 0,
) -> Trace:
    events = [TokenEvent(7, "x", int(t * SECOND)) for t in token_times_s]
    events.append(TokenEvent(None, "", int(max([0.5, *token_times_s]) * SECOND), "length"))
    return Trace(
        request_start_ns=0,
        n_prompt=n_prompt,
        n_reused=n_reused,
        prefill_end_ns=None if prefill_end_s is None else int(prefill_end_s * SECOND),
        events=tuple(events),
        request_end_ns=10 * SECOND,
        deadline_s=11.0,
    )


def test_figures_of_a_plain_request() -> None:
    found = measure(trace([0.6, 0.7, 0.8, 1.1]))
    assert found["n_out"] == 4
    assert found["ttft_s"] == pytest.approx(0.6)
    assert found["prefill_tps"] == pytest.approx(200)
    assert found["decode_tps"] == pytest.approx(3 / 0.5)  # the first token belongs to the prefill
    assert found["tpot_s"] == pytest.approx(0.5 / 3)
    assert found["itl_max_s"] == pytest.approx(0.3)
    assert found["end_to_end_s"] == 10
    assert found["deadline_met"] is True


def test_reused_tokens_are_not_counted_as_prefilled() -> None:
    assert measure(trace([0.6], n_reused=90))["prefill_tps"] == pytest.approx(20)
    assert measure(trace([0.6], n_reused=100))["prefill_tps"] is None


def test_what_was_not_measured_is_none() -> None:
    found = measure(trace([], prefill_end_s=None))
    names = ("ttft_s", "prefill_s", "decode_tps", "peak_anon_bytes")
    assert all(found[name] is None for name in names)
    assert measure(trace([0.6]))["decode_tps"] is None  # one token has no gap


def test_memory_peaks_ignore_samples_without_the_field() -> None:
    base = trace([0.6])
    memory = (
        MemorySample(0, anon_bytes=5),
        MemorySample(1, rss_bytes=9),
        MemorySample(2, anon_bytes=7),
    )
    found = measure(Trace(**{**base.__dict__, "memory": memory}))
    names = ("peak_anon_bytes", "peak_rss_bytes", "peak_pss_bytes")
    assert [found[name] for name in names] == [7, 9, None]


def test_a_clock_that_goes_backwards_is_refused() -> None:
    with pytest.raises(InputError, match="clock goes backwards"):
        measure(trace([0.9, 0.8]))
    with pytest.raises(InputError, match="reused"):
        measure(trace([0.6], n_reused=101))


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_stays_within_the_values(values: list[float], q: float) -> None:
    slack = 1e-6 * max(abs(v) for v in values)
    assert min(values) - slack <= quantile(values, q) <= max(values) + slack


def test_spread_has_no_deviation_for_one_value_and_none_for_nothing() -> None:
    assert spread([]) is None
    one = spread([3.0])
    assert one and one["stdev"] is None and one["median"] == 3
    many = spread([1.0, 2.0, 3.0, 4.0])
    assert many and many["median"] == 2.5 and many["p90"] == pytest.approx(3.7)


def test_drift_compares_halves() -> None:
    assert drift([1, 1, 1]) is None
    assert drift([100, 100, 50, 50]) == pytest.approx(-0.5)
