"""Speeds of a board that was probed: what was measured there is used before any table."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.cost.measured_rates import measured_bandwidth, measured_throughput
from boardfit.device_profiles.cost.speed import SpeedEstimate, default_threads, estimate_speed
from boardfit.device_profiles.models import known_models
from boardfit.device_profiles.profile import BoardMemory, DeviceProfile, KernelSpeed
from lab.speed.quants import model_tensors

PI5 = find_profile("raspberry-pi-5-8gb")
rates = st.floats(1e8, 1e12)


def estimate(profile: DeviceProfile, quant: str = "Q4_0", n_threads: int = 4) -> SpeedEstimate:
    model = known_models()["llama-3.2-1b"]
    return estimate_speed(
        model_tensors(model, quant), model.shape(), profile,
        n_threads=n_threads, kv_type="f16", repack=True,
    )  # fmt: skip


def probed(*by_threads: tuple[int, float], kernels: tuple[KernelSpeed, ...] = ()) -> DeviceProfile:
    best = max(rate for _, rate in by_threads)
    memory = replace(PI5.memory, bandwidth_sustained=best, bandwidth_by_threads=by_threads)
    return replace(PI5, memory=memory, kernel_speeds=kernels, basis="measured here")


Q4_0 = KernelSpeed("Q4_0", True, 4, 100e9)


@given(st.lists(rates, min_size=1, max_size=6), st.integers(1, 20))
def test_bandwidth_lies_between_its_neighbours(found: list[float], n_threads: int) -> None:
    pairs = tuple((2 * i + 1, rate) for i, rate in enumerate(found))
    got = measured_bandwidth(BoardMemory(1, 0, None, max(found), pairs), n_threads)
    assert got is not None
    if n_threads >= pairs[-1][0]:
        assert got == pytest.approx(pairs[-1][1])
    for (few, one), (many, other) in pairwise(pairs):
        if few <= n_threads <= many:
            assert min(one, other) * 0.999 <= got <= max(one, other) * 1.001


def test_decode_follows_the_bandwidth_that_was_measured_at_each_count() -> None:
    board = probed((1, 6e9), (2, 11e9), (4, 8e9), kernels=(Q4_0,))
    by_threads = [estimate(board, n_threads=n).decode_tps or 0.0 for n in (1, 2, 4)]
    assert by_threads[1] > by_threads[2] > by_threads[0]
    assert by_threads[1] / by_threads[0] == pytest.approx(11 / 6, rel=0.15)


def test_prefill_follows_the_kernel_that_was_measured() -> None:
    slow, fast = (
        estimate(probed((4, 11e9), kernels=(replace(Q4_0, macs_per_s=rate),))).prefill_tps or 0.0
        for rate in (20e9, 100e9)
    )
    assert fast / slow == pytest.approx(5, rel=0.2)


def test_a_type_that_was_not_timed_keeps_its_ratio_to_one_that_was() -> None:
    table = {"Q4_0": 12.0, "Q8_0": 10.3, "Q5_K": 7.5, "Q4_K": 8.6}
    kernels = [Q4_0, KernelSpeed("Q4_K", True, 4, 50e9)]

    def throughput(name: str, *, repacked: bool = True, n_threads: int = 4) -> float | None:
        return measured_throughput(
            kernels, name, repacked=repacked, relative=table.get, cores=float, n_threads=n_threads
        )

    assert throughput("Q4_0") == 100e9
    assert throughput("Q4_0", n_threads=2) == 50e9
    assert throughput("Q8_0") == pytest.approx(100e9 * 10.3 / 12)
    assert throughput("Q5_K") == pytest.approx(50e9 * 7.5 / 8.6)
    assert throughput("IQ9") is None and throughput("Q4_0", repacked=False) is None


def test_a_machine_that_hides_its_clock_is_predicted_from_its_kernels() -> None:
    board = probed((2, 11e9), kernels=(Q4_0, replace(Q4_0, repacked=False)))
    clusters = tuple(replace(cluster, clock_hz=None) for cluster in board.clusters)
    got = estimate(replace(board, clusters=clusters), n_threads=default_threads(board))
    assert got.decode_tps and got.prefill_tps


def test_copies_of_memory_are_less_sure_than_decode_of_the_engine() -> None:
    copied, timed = probed((4, 11e9)), probed((4, 11e9), kernels=(Q4_0,))
    assert estimate(copied).decode_bound > estimate(timed).decode_bound
