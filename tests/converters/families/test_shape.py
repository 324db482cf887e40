"""The shape that a GGUF header gives, against the caches that the engine makes for it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.families.shape import ENGINE_ARCHITECTURES, KNOWN_ARCHITECTURES, find_shape
from boardfit.device_profiles.cost.memory import kv_bytes
from boardfit.device_profiles.shape import ModelShape
from boardfit.edge.errors import InputError
from boardfit.edge.files.gguf import read_header
from lab.memory.header_engine import measure_caches, write_header
from tests.converters.families.header_keys import make_keys

# Blocks of next-token prediction: architectures for which the engine makes one up.
_WITH_NEXTN = (
    "bailingmoe3", "cohere2moe", "deepseek2", "falcon-h1", "glm4moe", "granitehybrid", "hy_v3",
    "jamba", "kimi-linear", "lfm2", "mimo2", "qwen2", "qwen35", "qwen35moe", "qwen3next",
    "step35",
)  # fmt: skip
# What a file may say instead of the keys that `make_keys` draws.
_VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("exaone4", {"block_count": 30}),
    ("exaone4", {"attention.sliding_window": None}),
    ("gemma2", {"attention.sliding_window": None}),
    ("gemma3", {"attention.sliding_window": None}),
    ("gemma3", {"attention.sliding_window_pattern": 3}),
    ("gemma3", {"attention.sliding_window_pattern": [1, 0, 0, 1, 1], "block_count": 5}),
    ("gemma3n", {"attention.sliding_window_pattern": [1] * 30, "block_count": 30}),
    ("laguna", {"attention.sliding_window": 0}),
    ("lfm2", {"attention.sliding_window": 0}),
    ("llama4", {"attention.sliding_window": 0}),
    ("llama4", {"attention.sliding_window": None}),
    ("olmo2", {"attention.sliding_window": None}),
    ("openelm", {"attention.head_count_kv": [1, 2, 4, 2, 1], "block_count": 5}),
    ("qwen2", {"attention.head_count_kv": None}),
    ("qwen35", {"attention.recurrent_layers": [1, 0, 0, 1, 1, 0], "block_count": 6}),
    ("qwen35", {"full_attention_interval": None}),
    ("rwkv6", {"token_shift_count": None}),
    ("smallthinker", {"attention.sliding_window": None}),
)


def _shape(tmp_path: Path, arch: str, keys: dict[str, Any]) -> ModelShape:
    path = tmp_path / "header.gguf"
    write_header(path, arch, keys)
    header = read_header(path, arrays="full")
    return find_shape(header.arch, header.kv, ())


@pytest.mark.engine
def test_caches_are_those_that_the_engine_makes(tmp_path: Path) -> None:
    """KV cache and states in bytes, for every architecture that is called known."""
    draw = random.Random(17)
    jobs = [(arch, make_keys(arch, draw)) for arch in sorted(KNOWN_ARCHITECTURES)]
    jobs += [(a, {**make_keys(a, draw), "nextn_predict_layers": 1}) for a in _WITH_NEXTN]
    for arch, changes in _VARIANTS:
        keys = {**make_keys(arch, draw), **changes}
        jobs.append((arch, {key: value for key, value in keys.items() if value is not None}))
    # An f16 cache, and a quantized one with a window beyond the context and one within.
    contexts = [(1024, "f16", 512), (3072, "q8_0", 128)]
    # The engine has no fused attention for Grok, and without it no quantized cache.
    plain = [job for job in jobs if job[0] == "grok"]
    jobs = [job for job in jobs if job[0] != "grok"]
    answers = measure_caches(jobs, contexts) + measure_caches(plain, contexts[:1])
    for (arch, keys), answer in zip(jobs + plain, answers, strict=True):
        assert "caches" in answer, (arch, answer)
        shape = _shape(tmp_path, arch, keys)
        for (n_ctx, kv_type, n_ubatch), logged in zip(contexts, answer["caches"], strict=False):
            ours = kv_bytes(shape, n_ctx, kv_type, n_ubatch) / 2**20
            assert ours == pytest.approx(sum(logged), abs=0.0051 * max(1, len(logged))), (
                arch, keys, n_ctx, kv_type, logged,
            )  # fmt: skip


def test_layers_that_share_a_cache_have_none_of_their_own(tmp_path: Path) -> None:
    keys = {**make_keys("gemma4", random.Random(1)), "attention.shared_kv_layers": 3}
    layers = _shape(tmp_path, "gemma4", keys).layers
    assert [layer.has_cache for layer in layers] == [True] * 6 + [False] * 3
    assert [(layer.head_dim_k, layer.window is None) for layer in layers[4:6]] == [
        (64, False),
        (128, True),
    ]


def test_blocks_of_next_token_prediction_are_no_layers(tmp_path: Path) -> None:
    keys = {**make_keys("qwen35", random.Random(1)), "block_count": 9, "nextn_predict_layers": 1}
    shape = _shape(tmp_path, "qwen35", keys)
    assert shape.n_layer == len(shape.layers) == 8


def test_an_unknown_architecture_is_named_so(tmp_path: Path) -> None:
    keys = make_keys("llama", random.Random(1))
    assert _shape(tmp_path, "llama", keys).memory_known
    for arch in ("deepseek4", "minimax-m3", "lfm3"):
        shape = _shape(tmp_path, arch, keys)
        assert not shape.memory_known
        assert all(layer.n_head_kv and layer.window is None for layer in shape.layers)


def test_every_name_of_the_engine_is_known(llama_cpp_tree: Path) -> None:
    """A file that the engine loads is not turned away by its name."""
    source = (llama_cpp_tree / "src/llama-arch.cpp").read_text()
    names = set(re.findall(r'\{\s*LLM_ARCH_\w+,\s*"([^"]+)"', source)) - {"(unknown)"}
    assert len(names) > 100 and not names - ENGINE_ARCHITECTURES


@pytest.mark.parametrize(
    ("arch", "changes", "words"),
    [
        ("qwen35", {"block_count": 2, "nextn_predict_layers": 2}, "nextn_predict_layers is 2"),
        ("gemma4", {"attention.shared_kv_layers": 8}, "shared_kv_layers is 8"),
        ("gemma4", {"attention.sliding_window_pattern": [1, 0]}, "has 2 entries for 9"),
    ],
)
def test_impossible_counts_are_refused(
    tmp_path: Path, arch: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        _shape(tmp_path, arch, {**make_keys(arch, random.Random(1)), **changes})
