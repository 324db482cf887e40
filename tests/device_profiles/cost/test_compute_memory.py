"""The memory formulas against the engine's own numbers, and against a running process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from boardfit.device_profiles.cost.compute_buffer import compute_bytes, graph_bytes, read_features
from boardfit.device_profiles.cost.memory import StoredTensor, kv_bytes, weight_bytes
from tests.device_profiles.cost.models import Dims, shape_of, stored_tensors, write_hollow_gguf

ROOT = Path(__file__).parents[3]
BASE = Dims()
WIDE = Dims(n_embd=1024, n_head=16, n_vocab=256)
MOE = Dims(arch="qwen3moe", n_expert=32, n_expert_used=8, n_ff_expert=256, n_vocab=256)
GEMMA3 = Dims(arch="gemma3", window=512, tied=True, n_layer=12)

# dims, n_ctx, n_ubatch, kv_type: each is the worst point of another part of the graph.
COMBINATIONS = [
    (BASE, 2048, 512, "f16"),
    (BASE.replace(n_vocab=32000), 2048, 512, "f16"),
    (BASE, 512, 512, "f16"),
    (BASE, 8192, 512, "f16"),
    (BASE, 32768, 512, "f16"),
    (BASE, 2048, 64, "f16"),
    (BASE, 8192, 128, "f16"),
    (BASE.replace(n_vocab=256), 2048, 512, "f16"),
    (BASE.replace(n_vocab=256, n_ff=4096), 2048, 512, "f16"),
    (WIDE, 2048, 512, "f16"),
    (WIDE.replace(n_head_kv=16), 512, 512, "f16"),
    (WIDE.replace(n_head_kv=8, n_ff=256), 512, 512, "f16"),
    (BASE, 2048, 512, "q8_0"),
    (BASE, 8192, 512, "q8_0"),
    (BASE.replace(n_vocab=256), 2048, 256, "q4_0"),
    (BASE.replace(tied=True), 2048, 512, "f16"),
    (BASE.replace(types={"w": "Q4_K", "embd": "Q4_K"}), 2048, 512, "f16"),
    (BASE.replace(types={"w": "F16", "embd": "F16", "output": "F16"}), 2048, 512, "f16"),
    (BASE.replace(head_dim=128), 2048, 512, "f16"),
    (BASE.replace(head_dim=128, n_head=8, n_vocab=256), 2048, 512, "q8_0"),
    (BASE.replace(arch="qwen3", head_dim=128, n_vocab=256), 4096, 512, "f16"),
    (MOE, 2048, 512, "f16"),
    (MOE.replace(n_expert=8, n_expert_used=2), 1024, 128, "q8_0"),
    (GEMMA3, 2048, 512, "f16"),
    (GEMMA3.replace(n_vocab=512), 8192, 512, "f16"),
    (GEMMA3.replace(n_vocab=512, arch="gemma2"), 4096, 256, "f16"),
    (BASE.replace(arch="phi3"), 2048, 512, "f16"),
    (BASE.replace(arch="phi3", n_vocab=256, n_embd=512, n_head=8, n_head_kv=8), 2048, 512, "f16"),
    (BASE.replace(arch="lfm2", n_layer=6, n_vocab=256), 2048, 512, "f16"),
    (BASE.replace(arch="lfm2", n_layer=6, n_vocab=256, n_ff=256), 512, 512, "f16"),
]

_MEASURE = r"""
import ctypes, json, re, sys
import llama_cpp as engine
lines = []
@engine.llama_log_callback
def log(level, text, data):
    lines.append(text.decode("utf-8", "replace"))
engine.llama_log_set(log, ctypes.c_void_p(0))
engine.llama_backend_init()
out = []
for path, n_ctx, n_ubatch, kv_type in json.loads(sys.argv[1]):
    lines.clear()
    model = engine.llama_model_load_from_file(path.encode(), engine.llama_model_default_params())
    params = engine.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_ubatch, n_ubatch
    params.type_k = params.type_v = {"f16": 1, "q8_0": 8, "q4_0": 2}[kv_type]
    params.swa_full = False
    context = engine.llama_init_from_model(model, params)
    found = {}
    for name, size in re.findall(r"(\w+) +(?:model )?buffer size += +([0-9.]+)", "".join(lines)):
        found[name] = found.get(name, 0) + float(size)
    for name, size in re.findall(r"CPU_REPACK model buffer size += +([0-9.]+)()", "".join(lines)):
        found["repack"] = float(name)
    out.append(found)
    engine.llama_free(context)
    engine.llama_model_free(model)
print(json.dumps(out))
"""


def measure_buffers(
    folder: Path, combinations: list[tuple[Dims, int, int, str]]
) -> list[dict[str, float]]:
    """What the engine's log says, in MiB: `compute`, `KV`, `repack`."""
    jobs = []
    for i, (dims, n_ctx, n_ubatch, kv_type) in enumerate(combinations):
        write_hollow_gguf(folder / f"{i}.gguf", dims)
        jobs.append((str(folder / f"{i}.gguf"), n_ctx, n_ubatch, kv_type))
    command = [sys.executable, "-c", _MEASURE, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    result: list[dict[str, float]] = json.loads(done.stdout)
    return result


@pytest.mark.engine
def test_buffers_match_the_engines_log(tmp_path: Path) -> None:
    errors = []
    for (dims, n_ctx, n_ubatch, kv_type), logged in zip(
        COMBINATIONS, measure_buffers(tmp_path, COMBINATIONS), strict=True
    ):
        shape = shape_of(dims)
        features = read_features(stored_tensors(dims))
        predicted = graph_bytes(shape, features, n_ctx, n_ubatch, kv_type).reserved / 2**20
        error = abs(predicted / logged["compute"] - 1)
        errors.append(error)
        assert error <= 0.02, (dims, n_ctx, n_ubatch, kv_type, predicted, logged)
        cache = kv_bytes(shape, n_ctx, kv_type, n_ubatch) / 2**20
        assert cache == pytest.approx(logged["KV"], abs=0.02), (dims, n_ctx, kv_type)
    assert statistics.median(errors) <= 0.005


@pytest.mark.engine
def test_repacked_bytes_match_the_engines_log(tmp_path: Path) -> None:
    from boardfit.edge.probe.machine import probe_this_machine

    isa = probe_this_machine(measure=False).isa
    if not isa & {"avx2", "dotprod"}:
        pytest.skip("the engine repacks nothing on this CPU")
    combinations = [
        (BASE.replace(types={"w": kind}), 512, 64, "f16")
        for kind in ("Q4_0", "Q4_K", "IQ4_NL", "Q8_0", "Q6_K", "Q5_K", "Q4_1", "IQ4_XS")
    ]
    combinations += [(BASE.replace(tied=True), 512, 64, "f16"), (MOE, 512, 64, "f16")]
    for (dims, *_), logged in zip(
        combinations, measure_buffers(tmp_path, combinations), strict=True
    ):
        split = weight_bytes(stored_tensors(dims), 0, isa, tied=dims.tied)
        assert split.repacked / 2**20 == pytest.approx(logged.get("repack", 0.0), abs=0.02), dims


_RUN = r"""
import ctypes, gc, json, re, sys
path, n_ctx, n_ubatch = json.loads(sys.argv[1])
def anonymous():
    return int(re.search(r"RssAnon:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
import llama_cpp as engine
@engine.llama_log_callback
def log(level, text, data):
    pass
engine.llama_log_set(log, ctypes.c_void_p(0))
engine.llama_backend_init()
gc.collect()
before = anonymous()
model = engine.llama_model_load_from_file(path.encode(), engine.llama_model_default_params())
params = engine.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_ubatch, n_ubatch
params.n_threads = params.n_threads_batch = 2
params.swa_full = False
context = engine.llama_init_from_model(model, params)
batch, done, peak = engine.llama_batch_init(n_ubatch, 0, 1), 0, 0
while done < n_ctx:
    batch.n_tokens = min(n_ubatch, n_ctx - done)
    for i in range(batch.n_tokens):
        batch.token[i], batch.pos[i] = 5, done + i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = i == batch.n_tokens - 1
    assert engine.llama_decode(context, batch) == 0
    done += batch.n_tokens
    peak = max(peak, anonymous())
print(peak - before)
"""


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("dims", "n_ctx", "n_ubatch"),
    [
        (Dims(n_layer=3, n_embd=1024, n_head=16, n_head_kv=8, n_ff=3072), 768, 512),
        (Dims(n_layer=3, n_embd=1024, n_head=16, n_head_kv=8, n_ff=3072), 768, 128),
        (Dims(n_layer=3, n_embd=896, n_head=14, n_ff=4864, n_vocab=32000, tied=True), 768, 512),
        (MOE.replace(n_ff_expert=512, n_embd=512, n_layer=3), 768, 256),
    ],
)
def test_a_full_context_takes_the_anonymous_memory_predicted(
    tmp_path: Path, dims: Dims, n_ctx: int, n_ubatch: int
) -> None:
    from boardfit.edge.probe.machine import probe_this_machine

    path = tmp_path / "model.gguf"
    write_hollow_gguf(path, dims)
    command = [sys.executable, "-c", _RUN, json.dumps([str(path), n_ctx, n_ubatch])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    measured = int(done.stdout)
    shape, tensors = shape_of(dims), stored_tensors(dims)
    isa = probe_this_machine(measure=False).isa
    predicted = (
        weight_bytes(tensors, 0, isa, tied=dims.tied).repacked
        + kv_bytes(shape, n_ctx, "f16", n_ubatch)
        + compute_bytes(shape, read_features(tensors), n_ctx, n_ubatch, 2)
        + 4 * dims.n_vocab
    )
    # What is left is the engine's metadata: 1 to 4 MiB that `ENGINE_BASE_BYTES` has room for.
    assert abs(measured - predicted) <= 0.02 * measured + 4 * 2**20, (measured, predicted)


def test_experts_in_one_matrix_are_as_wide_as_in_two() -> None:
    two = [
        StoredTensor(f"blk.0.ffn_{name}_exps.weight", "Q4_0", 256, 384, 8, 1)
        for name in ("gate", "up")
    ]
    one = [StoredTensor("blk.0.ffn_gate_up_exps.weight", "Q4_0", 256, 768, 8, 1)]
    assert read_features(one).n_ff_expert == read_features(two).n_ff_expert == 384


def test_a_norm_behind_attention_is_no_norm_before_feed_forward() -> None:
    """Qwen3.5 calls the norm before its feed-forward block `post_attention_norm`."""
    names = ["attn_norm", "post_attention_norm"]
    for more, is_behind in ([], False), (["ffn_norm"], True), (["post_ffw_norm"], True):
        tensors = [
            StoredTensor(f"blk.0.{name}.weight", "F32", 256, 1, 1, 1) for name in [*names, *more]
        ]
        assert read_features(tensors).post_norm == is_behind
