"""The engine's table of graph nodes: counted as the engine counts, and refused before it aborts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from boardfit.converters.plan.make import make_plan
from boardfit.converters.plan.options import PlanOptions
from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.cost.graph_table import (
    can_hold_graph,
    count_graph,
    foresee_nodes,
    table_size,
)
from boardfit.edge.errors import InputError, UnsupportedModelError
from lab.memory.truth_models import CONFIGS, hollow_spec
from tests.device_profiles.cost.models import Dims, stored_tensors, write_hollow_gguf

BASE = Dims(n_layer=6, n_vocab=256)
MOE = Dims(n_expert=32, n_ff=64, n_ff_expert=64, n_vocab=256)
FAMILIES = [
    BASE,
    BASE.replace(n_layer=7, tied=True),
    BASE.replace(arch="qwen3"),
    BASE.replace(arch="phi3"),
    BASE.replace(arch="gemma2", window=512, tied=True),
    BASE.replace(arch="gemma3", window=512, tied=True),
    BASE.replace(arch="lfm2", tied=True),
    MOE.replace(n_expert_used=8),
    MOE.replace(n_expert_used=3, arch="qwen3moe"),
]

_OPEN = r"""
import ctypes, json, sys
import llama_cpp as engine
@engine.llama_log_callback
def log(level, text, data):
    sys.stdout.write(text.decode("utf-8", "replace"))
    sys.stdout.flush()
engine.llama_log_set(log, ctypes.c_void_p(0))
engine.llama_backend_init()
for path, kv_type in json.loads(sys.argv[1]):
    model = engine.llama_model_load_from_file(path.encode(), engine.llama_model_default_params())
    params = engine.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 64, 64
    params.type_k = params.type_v = {"f16": 1, "q8_0": 8}[kv_type]
    params.swa_full = False
    assert engine.llama_init_from_model(model, params)
    print("opened", flush=True)
"""


def open_in_engine(folder: Path, jobs: list[tuple[Dims, str]]) -> subprocess.CompletedProcess[str]:
    """Open the models one after the other in one process, which an abort ends."""
    listed = []
    for i, (dims, kv_type) in enumerate(jobs):
        write_hollow_gguf(folder / f"{i}.gguf", dims)
        listed.append((str(folder / f"{i}.gguf"), kv_type))
    command = [sys.executable, "-c", _OPEN, json.dumps(listed)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def names_of(dims: Dims) -> list[str]:
    return [tensor.name for tensor in stored_tensors(dims)]


def counted(dims: Dims, *, rotated: bool) -> int:
    return count_graph(dims.arch, names_of(dims), dims.n_expert_used, rotated=rotated)


@pytest.mark.engine
def test_nodes_are_those_of_the_engines_log(tmp_path: Path) -> None:
    jobs = [(dims, kv_type) for dims in FAMILIES for kv_type in ("f16", "q8_0")]
    done = open_in_engine(tmp_path, jobs)
    assert done.returncode == 0, done.stderr[-500:]
    logged = [int(n) for n in re.findall(r"graph: nodes = (\d+)", done.stdout)]
    for (dims, kv_type), n_nodes in zip(jobs, logged, strict=True):
        names = names_of(dims)
        convolutions = sum("shortconv.conv." in name for name in names)
        leaves = len(names) + 2 * dims.n_layer - convolutions + 8
        leaves += ("output.weight" not in names) + 5 * dims.arch.startswith("gemma")
        assert counted(dims, rotated=kv_type == "q8_0") == n_nodes + leaves, (dims, kv_type)


@pytest.mark.engine
def test_the_engine_aborts_where_the_table_is_said_to_be_full(tmp_path: Path) -> None:
    """The mixture with the fullest table that opens, and the one just beyond."""
    room = {}
    for n_layer in range(16, 26):
        for used in range(2, 17):
            dims = MOE.replace(n_layer=n_layer, n_expert_used=used)
            left = table_size(foresee_nodes(dims.arch, len(names_of(dims)))) - counted(
                dims, rotated=True
            )
            room[left] = dims
    fits, overflows = room[min(n for n in room if n >= 0)], room[max(n for n in room if n < 0)]
    opened = open_in_engine(tmp_path, [(fits, "q8_0")])
    assert opened.returncode == 0 and "opened" in opened.stdout
    aborted = open_in_engine(tmp_path, [(overflows, "q8_0")])
    assert aborted.returncode < 0 and "opened" not in aborted.stdout


def test_a_mixture_that_would_abort_gets_no_quantized_cache() -> None:
    spec = hollow_spec("granite-1b-a400m")
    board = find_profile("raspberry-pi-4b-2gb")
    assert make_plan(spec, board).kv_type == "f16"
    with pytest.raises(InputError, match="table") as caught:
        make_plan(spec, board, PlanOptions(kv_type="q8_0"))
    assert "f16" in (caught.value.next_step or "")


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"granite-1b-a400m"}))
def test_other_models_may_have_one(name: str) -> None:
    spec = hollow_spec(name)
    names = [tensor.name for tensor in spec.tensors]
    heads = {layer.head_dim_k for layer in spec.shape.layers if layer.n_head_kv}
    assert can_hold_graph(spec.shape.arch, names, 0, "q8_0", max(heads))


@pytest.mark.engine
def test_the_engine_refuses_it_with_a_way_out(tmp_path: Path) -> None:
    from boardfit.edge.engines import EngineSettings, open_engine

    dims = MOE.replace(n_layer=24, n_expert_used=16)
    write_hollow_gguf(tmp_path / "model.gguf", dims)
    with pytest.raises(UnsupportedModelError, match="graph"):
        open_engine("llama_cpp", tmp_path / "model.gguf", EngineSettings(kv_type="q8_0"))
