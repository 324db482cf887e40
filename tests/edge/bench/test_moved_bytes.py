"""Bytes that a decoded token moves, counted from a header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from boardfit.edge.bench.language_model import count_step_bytes, describe_moved, measure_bandwidth
from boardfit.edge.files.gguf import read_header
from boardfit.edge.report.language_rows import mbu_figure
from tests.device_profiles.cost.models import Dims, write_hollow_gguf


def count(path: Path, depth: int) -> int | None:
    return count_step_bytes(path, read_header(path), "f16", depth)


def sizes(path: Path) -> dict[str, int]:
    return {tensor.name: tensor.nbytes for tensor in read_header(path).tensors}


def test_an_untied_embedding_is_read_by_rows_a_tied_one_whole(tmp_path: Path) -> None:
    for tied in (False, True):
        path = tmp_path / f"{tied}.gguf"
        write_hollow_gguf(path, Dims(tied=tied))
        found = sizes(path)
        unread = 0 if tied else found["token_embd.weight"]
        assert count(path, 0) == sum(found.values()) - unread


def test_the_cache_grows_with_depth(tmp_path: Path) -> None:
    path, dims = tmp_path / "m.gguf", Dims()
    write_hollow_gguf(path, dims)
    per_token = dims.n_layer * dims.n_head_kv * 2 * dims.head_dim * 2
    first, second = count(path, 100), count(path, 300)
    assert first is not None and second is not None and second - first == 200 * per_token


def test_only_the_experts_that_are_asked_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    dims = Dims(arch="qwen3moe", n_expert=8, n_expert_used=2, n_ff_expert=256)
    write_hollow_gguf(path, dims)
    found = sizes(path)
    experts = sum(n for name, n in found.items() if "_exps" in name)
    rest = sum(found.values()) - experts - found["token_embd.weight"]
    assert count(path, 0) == rest + experts // 4


def test_blocks_of_next_token_prediction_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_hollow_gguf(path, Dims(n_layer=4))
    header = read_header(path)
    header = replace(header, kv={**header.kv, "llama.nextn_predict_layers": 1})
    last = sum(tensor.nbytes for tensor in header.tensors if tensor.name.startswith("blk.3."))
    whole = count(path, 0)
    assert whole is not None and last > 0
    assert count_step_bytes(path, header, "f16", 0) == whole - last
    per_token = (count_step_bytes(path, header, "f16", 100) or 0) - (whole - last)
    assert per_token == 100 * 3 * Dims().n_head_kv * 2 * Dims().head_dim * 2


def test_beyond_a_sliding_window_nothing_is_claimed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_hollow_gguf(path, Dims(arch="gemma3", window=512))
    assert count(path, 512) is not None and count(path, 513) is None


def test_a_decode_record_gets_its_share_of_the_bandwidth(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_hollow_gguf(path, Dims())
    record = {
        "test": {"kind": "decode", "n_depth": 0, "n_gen": 2},
        "metrics": {"decode_tps": {"median": 10.0}},
        "settings": {"kv_type": "f16", "n_threads": 2},
    }
    n_bytes = count(path, 1)
    assert n_bytes is not None
    moved = describe_moved(record, path, read_header(path), 100.0 * n_bytes)
    assert moved is not None and moved["mbu"] == pytest.approx(0.1)
    [(_, text, basis)] = mbu_figure({"moved": moved})
    assert text == "10%" and "GB/s measured" in basis
    other = {**record, "test": {**record["test"], "kind": "prefill"}}  # type: ignore[dict-item]
    assert describe_moved(other, path, read_header(path), 1e9) is None


@pytest.mark.parametrize("moved", [None, 3, {}, {"mbu": "x", "bytes_per_step": 1, "bandwidth": 1}])
def test_a_strange_entry_is_left_out(moved: object) -> None:
    assert mbu_figure({"moved": moved}) == []


def test_bandwidth_is_measured() -> None:
    assert measure_bandwidth(1) > 1e7
