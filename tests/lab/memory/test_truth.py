"""The memory model against real runs of true shapes: what scripts/check_memory_model does for many
combinations, for a few small ones.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.device_profiles.cost.memory import (
    PROGRAM_FILE_BYTES,
    StoredTensor,
    memory_phases,
    weight_bytes,
)
from boardfit.edge.files.gguf import read_header
from boardfit.edge.units import MIB
from lab.memory.truth import Combination, measure, predict
from lab.memory.truth_models import CONFIGS, hollow_spec, write_hollow

# Parameters of the published checkpoints, in millions, as their cards say.
PUBLISHED = {
    "smollm2-135m": 134.5,
    "smollm2-360m": 361.8,
    "qwen2.5-0.5b": 494.0,
    "qwen2.5-1.5b": 1543.7,
    "qwen2.5-3b": 3085.9,
    "qwen3-0.6b": 596.0,
    "qwen3-1.7b": 1720.6,
    "qwen3-4b": 4022.5,
    "qwen3-8b": 8190.7,
    "llama-3.1-8b": 8030.3,
    "gemma-3-270m": 268.1,
    "gemma-3-1b": 999.9,
    "lfm2-350m": 354.5,
    "lfm2-1.2b": 1170.3,
    "tinyllama-1.1b": 1100.0,
    "llama-3.2-1b": 1235.8,
    "llama-3.2-3b": 3212.7,
    "olmo-2-1b": 1484.9,
}

COMBINATIONS = [
    Combination("smollm2-135m", "q4_0", 512, n_ubatch=256),
    Combination("smollm2-135m", "q4_0", 512, "q8_0", n_ubatch=128, use_mmap=False),
    Combination("smollm2-135m", "q4_0", 256, repack=False),
    Combination("gemma-3-270m", "q4_0", 2048, n_ubatch=128, n_computed=128),
    Combination("lfm2-350m", "q4_0", 1024, n_ubatch=64, n_computed=64),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    assert hollow_spec(name).shape.n_params / 1e6 == pytest.approx(PUBLISHED[name], abs=0.1)


def test_every_configuration_makes_a_spec() -> None:
    assert set(PUBLISHED) <= set(CONFIGS)
    for name in CONFIGS:
        spec = hollow_spec(name)
        assert len(spec.get("tokenizer.ggml.tokens")) == CONFIGS[name]["vocab_size"]
        assert len(set(spec.get("tokenizer.ggml.tokens"))) == CONFIGS[name]["vocab_size"]


def test_hollow_file_has_the_planned_size_and_a_sound_header(tmp_path: Path) -> None:
    spec, path = hollow_spec("smollm2-135m"), tmp_path / "model.gguf"
    assert write_hollow(spec, load_recipe("q4_k_m"), path) == path.stat().st_size
    header = read_header(path)
    assert len(header.tensors) == len(spec.tensors)


def _weights(*tensors: tuple[str, str, int]) -> list[StoredTensor]:
    return [StoredTensor(name, kind, 256, 64, 1, n) for name, kind, n in tensors]


def test_only_what_lies_before_and_behind_all_mapped_tensors_is_unmapped() -> None:
    tensors = _weights(
        ("output.weight", "Q4_0", 1000),
        ("token_embd.weight", "Q4_0", 100),
        ("blk.0.attn_q.weight", "Q4_0", 10),
        ("blk.0.attn_norm.weight", "F32", 1),
        ("blk.0.ffn_up.weight", "Q4_0", 20),
    )
    split = weight_bytes(tensors, 1131 + 500, frozenset({"avx2"}), tied=False)
    assert split.repacked == 1030
    assert split.kept_mapped == 100 + 10 + 1
    assert split.tensors == 1131


def test_blocks_behind_the_last_layer_are_mapped_and_not_loaded() -> None:
    """Whole, as the file is, while loading; given up then, where nothing that is used follows."""
    tensors = _weights(
        ("token_embd.weight", "F16", 100),
        ("blk.0.ffn_up.weight", "Q4_0", 20),
        ("blk.1.ffn_up.weight", "Q4_0", 1000),
        ("blk.1.attn_norm.weight", "F32", 7),
    )
    split = weight_bytes(tensors, 1127, frozenset({"avx2"}), tied=False, n_layer=1)
    assert (split.repacked, split.kept_mapped, split.tensors) == (20, 100, 120)
    assert split.mapped == 1127


def test_a_tied_head_that_is_made_first_is_read_twice() -> None:
    tensors = _weights(("token_embd.weight", "Q6_K", 100), ("blk.0.attn_norm.weight", "F32", 1))
    for isa, n_read in ((frozenset[str](), 201), (frozenset({"dotprod", "i8mm", "neon"}), 101)):
        kind = "Q6_K" if not isa else "Q4_0"
        stored = [replace(tensors[0], ggml_type=kind), tensors[1]]
        assert weight_bytes(stored, 101, isa, tied=True, head_first=True).tensors == n_read
        assert weight_bytes(stored, 101, isa, tied=True).tensors == 101


def test_a_lazily_read_table_is_resident_by_rows() -> None:
    tensors = _weights(
        ("token_embd.weight", "F16", 100),
        ("per_layer_token_embd.weight", "Q4_0", 64_000_000),
        ("blk.0.attn_norm.weight", "F32", 1),
    )
    lazy = {"lazy_table": "per_layer_token_embd.weight", "tied": False}
    split = weight_bytes(tensors, 64_000_101, frozenset(), **lazy)  # type: ignore[arg-type]
    assert (split.mapped, split.kept_mapped, split.tensors) == (101, 101, 101)
    assert (split.lazy, split.lazy_row) == (64_000_000, 1_000_000)
    assert split.touched(2) == 2 * (1_000_000 + 4096)
    assert split.touched(10**9) == 64_000_000
    for use_mmap in (True, False):
        phases = memory_phases(
            split, use_mmap=use_mmap, kv_cache=0, compute=0, output=0, engine=0, n_tokens=2
        )
        assert phases.terms["table_rows"] == split.touched(2)
        assert phases.running_total == 101 + split.touched(2) + PROGRAM_FILE_BYTES


def test_phases_take_the_larger_of_what_follows_each_other() -> None:
    tensors = _weights(("token_embd.weight", "F16", 100), ("blk.0.ffn_up.weight", "Q4_0", 900))
    split = weight_bytes(tensors, 1200, frozenset({"avx2"}), tied=False)
    parts = {"compute": 30, "output": 2, "engine": 50}
    mapped = memory_phases(split, use_mmap=True, kv_cache=10, **parts)
    assert mapped.loading_anonymous == 50 + 900 + 10
    assert mapped.loading_total == 50 + 900 + 1200 + PROGRAM_FILE_BYTES
    assert mapped.running_total == 50 + 900 + 42 + 100 + PROGRAM_FILE_BYTES
    assert mapped.peak_total == mapped.loading_total
    copied = memory_phases(split, use_mmap=False, kv_cache=10, **parts)
    assert copied.loading_anonymous == 50 + 900 + 100 + 900  # the largest tensor is staged
    assert copied.running_anonymous == 50 + 900 + 100 + 42
    assert copied.peak_anonymous == copied.loading_anonymous


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_a_real_run_takes_what_was_predicted(tmp_path: Path, combination: Combination) -> None:
    from boardfit.edge.probe.machine import probe_this_machine

    tree = os.environ.get("BOARDFIT_LLAMA_CPP")
    spec = hollow_spec(combination.model, Path(tree) if tree else None)
    path = tmp_path / "model.gguf"
    write_hollow(spec, load_recipe(combination.recipe), path)
    predicted = predict(spec, combination, probe_this_machine(measure=False).isa)
    measured = measure(path, spec.shape, combination)
    assert measured.n_filled >= combination.n_ctx - 4
    for kind in ("peak_anonymous", "peak_total", "running_anonymous", "loading_total"):
        # An interpreter with its libraries takes megabytes more or less on another machine.
        allowed = pytest.approx(getattr(measured, kind), rel=0.06, abs=4 * MIB)
        assert getattr(predicted, kind) == allowed, kind
