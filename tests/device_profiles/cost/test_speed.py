"""The speed model's properties, and the catalogue of architectures it is fed from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.cost.engine_classes import LLAMA_CPP, EngineClass
from boardfit.device_profiles.cost.kernels import kernel_class
from boardfit.device_profiles.cost.speed import (
    SpeedEstimate,
    default_threads,
    estimate_speed,
    load_seconds,
    used_clusters,
)
from boardfit.device_profiles.models import known_models
from boardfit.device_profiles.profile import DeviceProfile
from lab.speed.engine_classes import ENGINE_CLASSES
from lab.speed.models import find_model, similar_model
from lab.speed.quants import known_quants, model_tensors

PI5 = find_profile("raspberry-pi-5-8gb")
BOARDS = ("raspberry-pi-5-8gb", "raspberry-pi-4b-8gb", "orange-pi-5-8gb", "n100-8gb", "phone-8gb")

boards = st.sampled_from(BOARDS).map(find_profile)
models = st.sampled_from(("qwen2.5-0.5b", "llama-3.2-3b", "gemma-3-1b", "olmoe-1b-7b", "lfm2-1.2b"))
quants = st.sampled_from(("Q4_0", "Q4_K_M", "Q8_0", "Q2_K", "F16"))
cpu_engines = st.sampled_from([e for e in ENGINE_CLASSES.values() if e.on_cpu])


def estimate(
    model: str,
    quant: str,
    board: DeviceProfile,
    engine: EngineClass = LLAMA_CPP,
    **settings_: Any,
) -> SpeedEstimate:
    known = known_models()[model]
    options: dict[str, Any] = {"n_threads": default_threads(board), "kv_type": "f16", **settings_}
    tensors = model_tensors(known, quant)
    return estimate_speed(tensors, known.shape(), board, repack=True, engine=engine, **options)


def tps(value: float | None) -> float:
    assert value is not None and math.isfinite(value) and value > 0
    return value


def faster_memory(board: DeviceProfile, factor: float) -> DeviceProfile:
    sustained = tps(board.memory.bandwidth_sustained) * factor
    return replace(board, memory=replace(board.memory, bandwidth_sustained=sustained))


@given(models, quants, boards, cpu_engines, st.floats(1.0, 8.0))
@settings(deadline=None, max_examples=60)
def test_more_bandwidth_is_never_slower(
    model: str, quant: str, board: DeviceProfile, engine: EngineClass, factor: float
) -> None:
    assume(kernel_class(engine.isa(board.isa)) is not None)
    slow = estimate(model, quant, board, engine)
    fast = estimate(model, quant, faster_memory(board, factor), engine)
    assert tps(fast.decode_tps) >= tps(slow.decode_tps) * (1 - 1e-9)
    assert tps(fast.prefill_tps) >= tps(slow.prefill_tps) * (1 - 1e-9)


@given(models, quants, boards, cpu_engines, st.integers(0, 30_000), st.integers(1, 30_000))
@settings(deadline=None, max_examples=60)
def test_deeper_is_never_faster(
    model: str, quant: str, board: DeviceProfile, engine: EngineClass, depth: int, more: int
) -> None:
    assume(kernel_class(engine.isa(board.isa)) is not None)
    shallow = estimate(model, quant, board, engine, depth=depth, n_prompt=512 + depth)
    deep = estimate(model, quant, board, engine, depth=depth + more, n_prompt=512 + depth + more)
    assert tps(deep.decode_tps) <= tps(shallow.decode_tps) * (1 + 1e-9)
    assert tps(deep.prefill_tps) <= tps(shallow.prefill_tps) * (1 + 1e-9)


@given(models, quants, boards, st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_prefill_gains_from_every_fast_core_and_decode_from_few(
    model: str, quant: str, board: DeviceProfile, n_threads: int
) -> None:
    fewer = estimate(model, quant, board, n_threads=n_threads)
    more = estimate(model, quant, board, n_threads=n_threads + 1)
    assert tps(more.prefill_tps) >= tps(fewer.prefill_tps) * (1 - 1e-9)
    # A thread too many costs decode little: published sweeps lose 4 to 8 %.
    assert tps(more.decode_tps) >= tps(fewer.decode_tps) * 0.9


def test_bandwidth_can_peak_below_all_threads() -> None:
    by_threads = [
        estimate("llama-3.2-3b", "Q4_0", PI5, n_threads=n).decode_tps for n in range(1, 5)
    ]
    assert by_threads.index(max(by_threads, key=tps)) in (1, 2)


@pytest.mark.parametrize("engine", ENGINE_CLASSES.values(), ids=lambda e: e.name)
def test_every_engine_class_states_positive_bounds(engine: EngineClass) -> None:
    usual, unusual = engine.bounds(), engine.bounds(unusual=True)
    assert 0 < usual.decode <= unusual.decode and 0 < usual.prefill <= unusual.prefill
    got = estimate("llama-3.2-3b", "Q4_0", PI5, engine)
    assert tps(got.decode_tps) > 0 and got.decode_bound >= usual.decode


def test_threads_on_little_cores_widen_the_bound() -> None:
    board = find_profile("orange-pi-5-8gb")
    few, many = (estimate("llama-3.2-3b", "Q4_0", board, n_threads=n) for n in (4, 8))
    assert many.decode_tps == few.decode_tps and many.decode_bound > few.decode_bound
    assert many.prefill_bound > few.prefill_bound


def test_what_is_not_modelled_widens_the_bound() -> None:
    usual, unusual = (estimate(name, "Q4_0", PI5) for name in ("llama-3.2-3b", "gemma-4-e2b"))
    assert unusual.decode_bound > usual.decode_bound
    assert estimate("lfm2-1.2b", "Q4_0", PI5).prefill_bound > usual.prefill_bound


def test_an_unmeasured_bandwidth_widens_the_bound() -> None:
    memory = replace(PI5.memory, bandwidth_sustained=None)
    unmeasured = estimate("llama-3.2-3b", "Q4_0", replace(PI5, memory=memory))
    assert tps(unmeasured.decode_tps) > 0
    assert unmeasured.decode_bound > estimate("llama-3.2-3b", "Q4_0", PI5).decode_bound
    memory = replace(memory, bandwidth_theoretical=None)
    assert estimate("llama-3.2-3b", "Q4_0", replace(PI5, memory=memory)).decode_tps is None


def test_prefill_is_not_monotonic_in_bits() -> None:
    rates = {q: tps(estimate("qwen2.5-0.5b", q, PI5).prefill_tps) for q in ("Q8_0", "Q4_K_M")}
    assert rates["Q8_0"] > 2 * rates["Q4_K_M"]  # edge-llm-memory-wall: 249 against 89


def test_little_cores_are_used_only_where_there_are_no_others() -> None:
    assert [c.core for c in used_clusters(find_profile("orange-pi-5-8gb"))] == ["cortex-a76"]
    assert default_threads(find_profile("raspberry-pi-zero-2-w")) == 4


def test_loading_takes_the_storages_time() -> None:
    read = tps(PI5.storage.read)
    assert load_seconds(int(read) * 3, PI5) == pytest.approx(3)
    assert load_seconds(1, replace(PI5, storage=replace(PI5.storage, read=None))) is None


@pytest.mark.parametrize(
    ("model", "params"),  # the sizes that the model cards state, in millions
    [("smollm2-135m", 134.5), ("qwen2.5-1.5b", 1543.7), ("llama-3.1-8b", 8030), ("phi-2", 2779)],
)
def test_shapes_have_the_stated_parameters(model: str, params: float) -> None:
    found = find_model(model)
    assert found is not None
    assert found.shape().n_params == pytest.approx(params * 1e6, rel=0.005)


def test_every_model_of_the_catalogue_makes_tensors() -> None:
    for model in known_models().values():
        shape = model.shape()
        assert 0 < shape.n_params_active <= shape.n_params and len(shape.layers) == shape.n_layer
        sizes = [sum(t.n_bytes for t in model_tensors(model, q)) for q in ("Q2_K", "Q8_0", "F32")]
        assert 0 < sizes[0] < sizes[1] < sizes[2], model.name
        assert sizes[2] == pytest.approx(4 * shape.n_params, rel=0.01), model.name
    assert all(model_tensors(known_models()["llama-3.2-1b"], q) for q in known_quants())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
        ("llama3.2:3b", "llama-3.2-3b"),
        ("Qwen 1.5B (qwen1.5b-q4km.gguf)", "qwen2.5-1.5b"),
        ("Hermes-3-Llama-3.1-8B", "llama-3.1-8b"),
        ("Gemma3-1B-IT (ctx 2048)", "gemma-3-1b"),
        ("internlm2_5-1_8b-chat", "internlm2-1.8b"),
    ],
)
def test_models_are_found_as_people_write_them(written: str, name: str) -> None:
    found = find_model(written)
    assert found is not None and found.name == name


@pytest.mark.parametrize("unknown", ["", "   ", "???", "my-model", "(1B)", "é" * 300])
def test_unknown_names_are_none(unknown: str) -> None:
    assert find_model(unknown) is None


@pytest.mark.parametrize("params_b", [0.05, 0.57, 3, 20, 400])
def test_a_stand_in_has_about_the_size_asked_for(params_b: float) -> None:
    assert similar_model(params_b).shape().n_params == pytest.approx(params_b * 1e9, rel=0.25)
