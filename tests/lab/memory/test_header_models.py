"""Shapes that no family here converts, against what the engine reserves for them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from boardfit.converters.formats.base import stored_tensor
from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.device_profiles.cost.compute_buffer import graph_bytes, read_features
from boardfit.device_profiles.cost.memory import kv_bytes
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.llama import library
from boardfit.edge.engines.llama.estimate import least_bytes, loaded_bytes
from boardfit.edge.files.gguf import read_header
from boardfit.edge.types import GenerationConfig
from lab.memory.header_engine import measure_caches
from lab.memory.header_models import HEADER_MODELS, HeaderModel, header_spec
from lab.memory.truth_models import _made_up, write_hollow

CONTEXTS = [(512, "f16", 512), (4096, "q8_0", 256)]


def _shortened(name: str) -> HeaderModel:
    """A model of the same widths and fewer layers, which is soon listed."""
    model = HEADER_MODELS[name]
    keys, n_layer = dict(model.keys), 10
    for key, value in keys.items():
        if isinstance(value, list) and key != "rope.dimension_sections":
            keys[key] = value[:n_layer]
    keys["block_count"] = n_layer
    if name == "gemma-4-e2b":
        keys["attention.shared_kv_layers"] = 5
    return replace(model, keys=keys, n_vocab=1000)


@pytest.mark.engine
@pytest.mark.parametrize("name", HEADER_MODELS)
def test_caches_and_scratch_are_what_the_engine_reserves(name: str) -> None:
    model = _shortened(name)
    spec = header_spec(name, model, [])
    features = read_features([stored_tensor(t, t.source_type, 1) for t in spec.tensors])
    keys = {**model.keys, "vocab_size": model.n_vocab, "tokenizer.ggml.model": "no_vocab"}
    logged = measure_caches([(model.arch, keys)], CONTEXTS)[0]
    assert "caches" in logged, logged
    for (n_ctx, kv_type, n_ubatch), caches, compute in zip(
        CONTEXTS, logged["caches"], logged["compute"], strict=True
    ):
        ours = kv_bytes(spec.shape, n_ctx, kv_type, n_ubatch) / 2**20
        assert ours == pytest.approx(sum(caches), abs=0.006 * len(caches))
        # Room for embeddings in place of tokens is reserved, and never touched.
        handed_in = 4 * spec.shape.n_embd * n_ubatch
        graph = graph_bytes(spec.shape, features, n_ctx, n_ubatch, kv_type).resident
        assert (graph + handed_in) / 2**20 == pytest.approx(compute, rel=0.05), (n_ctx, kv_type)


@pytest.mark.engine
def test_a_table_of_per_layer_embeddings_is_read_by_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small it is: the library's own choice begins at 4 GiB."""
    monkeypatch.setattr(library, "_log", deque())  # all of it
    name = "gemma-4-e2b"
    model = _shortened(name)
    spec = header_spec(name, model, _made_up(name, model.n_vocab))
    path = tmp_path / "model.gguf"
    write_hollow(spec, load_recipe("q8_0"), path)
    header = read_header(path)
    table = next(t for t in header.tensors if t.name == "per_layer_token_embd.weight")
    assert loaded_bytes(header) == header.tensor_bytes - table.nbytes
    settings = EngineSettings(n_ctx=64, n_threads=1)
    with open_engine("llama_cpp", path, settings) as engine:
        lines = [line for _, line in library._log]
        assert any("prefetch for 'per_layer_token_embd.weight'" in line for line in lines)
        config = GenerationConfig(max_tokens=2, temperature=0.0, ignore_eos=True)
        assert len(list(engine.stream([5, 6, 7], config))) > 0
    least = least_bytes(path, header, 4096, settings)
    cache = kv_bytes(spec.shape, 4096, "f16")
    assert loaded_bytes(header) < least <= loaded_bytes(header) + cache


@pytest.mark.engine
def test_blocks_of_next_token_prediction_are_not_loaded(tmp_path: Path) -> None:
    name = "qwen3.5-0.8b-mtp"
    model = _shortened(name)
    spec = header_spec(name, model, _made_up(name, model.n_vocab))
    path = tmp_path / "model.gguf"
    write_hollow(spec, load_recipe("q8_0"), path)
    header = read_header(path)
    assert spec.shape.n_layer == 9
    behind = [t for t in header.tensors if t.name.startswith("blk.9.")]
    assert behind and loaded_bytes(header) == header.tensor_bytes - sum(t.nbytes for t in behind)
    with open_engine("llama_cpp", path, EngineSettings(n_ctx=64, n_threads=1)) as engine:
        config = GenerationConfig(max_tokens=2, temperature=0.0, ignore_eos=True)
        assert len(list(engine.stream([5, 6, 7], config))) > 0
