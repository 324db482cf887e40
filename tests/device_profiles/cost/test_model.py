"""One answer to what a run costs: the parts that the cost functions give, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.cost.compute_buffer import compute_bytes, read_features
from boardfit.device_profiles.cost.graph_table import metadata_bytes
from boardfit.device_profiles.cost.memory import (
    StoredTensor,
    kv_bytes,
    kv_bytes_read,
    output_bytes,
)
from boardfit.device_profiles.cost.model import CostModel, RunSettings, StoredWeights
from boardfit.device_profiles.cost.speed import body_macs, estimate_speed, weight_bytes_read
from tests.device_profiles.cost.models import Dims, shape_of, stored_tensors

PI5 = find_profile("raspberry-pi-5-8gb")
DIMS = Dims(n_embd=512, n_head=8, n_ff=1536, n_layer=8)
SHAPE, TENSORS = shape_of(DIMS), stored_tensors(DIMS)
WEIGHTS = StoredWeights(sum(tensor.n_bytes for tensor in TENSORS) + 1000, TENSORS)
COSTS = CostModel(SHAPE, PI5, [tensor.name for tensor in TENSORS], n_merges=10)
RUN = RunSettings(n_ctx=1024, kv_type="f16", n_threads=4, n_ubatch=256, use_mmap=True, repack=True)


@pytest.mark.parametrize("n_users", [1, 3])
@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_cost_is_made_of_its_parts(n_users: int, use_mmap: bool) -> None:
    cost = COSTS.cost(WEIGHTS, replace(RUN, n_users=n_users, use_mmap=use_mmap))
    terms = cost.memory.terms
    features = read_features(TENSORS)
    assert terms["kv_cache"] == n_users * kv_bytes(SHAPE, 1024, "f16", 256)
    assert terms["compute_buffers"] == compute_bytes(SHAPE, features, 1024, 256, 4, "f16")
    assert terms["output_buffer"] == output_bytes(SHAPE, n_users)
    assert terms["weights_mapped"] == (WEIGHTS.artifact_bytes if use_mmap else 0)
    assert terms["margin"] > 0
    assert cost.speed == estimate_speed(
        TENSORS, SHAPE, PI5, n_threads=4, kv_type="f16", repack=True
    )


def test_other_lengths_change_the_speed_alone() -> None:
    near, far = COSTS.cost(WEIGHTS, RUN), COSTS.cost(WEIGHTS, RUN, n_prompt=2048, depth=1000)
    assert far.memory == near.memory
    assert near.speed.decode_tps and far.speed.decode_tps
    assert far.speed.decode_tps < near.speed.decode_tps


def test_weights_of_two_recipes_are_not_confused() -> None:
    small = replace(DIMS, types={"w": "Q4_0"})
    large = replace(DIMS, types={"w": "Q8_0"})
    peaks = []
    for dims in (small, large):
        weights = StoredWeights(WEIGHTS.artifact_bytes, stored_tensors(dims))
        peaks.append(COSTS.cost(weights, RUN).memory.terms["weights_repacked"])
    assert 0 < peaks[0] < peaks[1]


def test_the_fastest_number_of_threads_is_among_those_worth_waking() -> None:
    n = COSTS.find_fastest_threads(WEIGHTS)
    times = [COSTS.cost(WEIGHTS, replace(RUN, n_threads=k)).speed for k in range(1, 5)]
    seconds = [time.typical_answer_s or float("inf") for time in times]
    assert seconds[n - 1] == min(seconds)


def test_a_cache_type_must_divide_the_heads() -> None:
    assert COSTS.can_divide_heads("q8_0") and COSTS.can_open_with("q8_0")
    odd = shape_of(replace(DIMS, head_dim=80))
    assert not CostModel(odd, PI5, []).can_divide_heads("q8_0")


def test_a_token_reads_no_table_whole_and_no_block_behind_the_last_layer() -> None:
    table = StoredTensor("per_layer_token_embd.weight", "Q4_0", 256, 4096, 1, 10**6)
    behind = replace(TENSORS[-1], name=f"blk.{DIMS.n_layer}.ffn_down.weight")
    read = weight_bytes_read(TENSORS, SHAPE)
    assert weight_bytes_read([*TENSORS, table, behind], SHAPE) == read
    assert body_macs([*TENSORS, table, behind], SHAPE) == body_macs(TENSORS, SHAPE)
    plain, more = (
        estimate_speed(tensors, SHAPE, PI5, n_threads=4, kv_type="f16", repack=True)
        for tensors in (TENSORS, [*TENSORS, behind])
    )
    assert plain == more


def test_a_shared_cache_is_read_and_takes_no_memory() -> None:
    last = replace(SHAPE.layers[-1], shares_kv=True)
    shared = replace(SHAPE, layers=(*SHAPE.layers[:-1], last))
    n_layer = len(SHAPE.layers)
    whole, part = kv_bytes(SHAPE, 1024, "f16"), kv_bytes(shared, 1024, "f16")
    assert part * n_layer == whole * (n_layer - 1)
    assert kv_bytes_read(shared, 1024, "f16") == kv_bytes_read(SHAPE, 1024, "f16")


def test_an_engine_that_foresees_more_nodes_takes_more_memory() -> None:
    n_tensors = len(TENSORS)
    assert metadata_bytes("llama", n_tensors, 512) == 0
    few, many = (metadata_bytes("qwen35", n_tensors, n) for n in (128, 512))
    assert 0 < few < many
    run = replace(RUN, n_ubatch=512)
    plain = COSTS.cost(WEIGHTS, run).memory.terms["engine_and_interpreter"]
    costs = CostModel(replace(SHAPE, arch="qwen35"), PI5, [t.name for t in TENSORS], n_merges=10)
    assert costs.cost(WEIGHTS, run).memory.terms["engine_and_interpreter"] == plain + many
