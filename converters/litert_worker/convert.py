"""One conversion from request to file: runs in the pinned environment, started by `target/tflite`.

Request: checkpoint (directory), output (file), work (directory), flavour, prefill_lengths,
cache_length, threads, types {role: weight type}, rules, scales, tokenizer, start_token, stop_tokens,
chat_template, identity.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
import transformers
from litert_torch.generative.export_hf.core import export_lib  # noqa: F401  (registers attention)
from litert_torch.generative.export_hf.model_ext import patches

from converters.litert_types import WEIGHT_TYPES
from converters.litert_worker.assemble import Constant, assemble, find_uses, read_graph
from converters.litert_worker.graph import export_graph
from converters.litert_worker.package import write_litertlm
from converters.litert_worker.quantize import Quantized, quantize_matrix
from converters.litert_worker.skeleton import build_skeleton
from converters.litert_worker.weights import Weights
from converters.worker_child import Report


def run(request: dict[str, Any], report: Report) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    directory, work = Path(request["checkpoint"]), Path(request["work"])
    weights = Weights(directory)
    report.say("exporting the graph")
    config = load_config(directory)
    with patches.get_patch_context(config.model_type):
        skeleton = build_skeleton(directory, config, weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    graph_path = work / "graph.tflite"
    source, export_config = export_graph(
        skeleton,
        tokenizer,
        graph_path,
        prefill_lengths=request["prefill_lengths"],
        cache_length=request["cache_length"],
    )
    source.model = skeleton.model = None
    gc.collect()
    report.say("quantizing")
    model = read_graph(graph_path)
    constants = plan_constants(find_uses(model, skeleton.tags), skeleton.tags, weights, request)

    def quantize(constant: Constant) -> Quantized:
        result = quantize_matrix(
            lambda a, b: weights.rows(constant.source, a, b),
            constant.shape,
            constant.kind,
            request["scales"],
        )
        weights.close()
        return result

    output = Path(request["output"])
    plain = request["flavour"] == "tflite"
    tflite = output if plain else work / "model.tflite"
    assemble(model, constants, quantize, tflite, progress=report.progress)
    if not plain:
        report.say("packing")
        write_litertlm(
            output,
            tflite,
            Path(request["tokenizer"]),
            source=source,
            config=export_config,
            start_token=request["start_token"],
            stop_tokens=request["stop_tokens"],
            chat_template=request["chat_template"],
            cache_length=request["cache_length"],
            identity=request["identity"],
        )
    return {"types": _count(constants)}


def load_config(directory: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(directory, dtype=torch.float32)
    for part in (config, getattr(config, "text_config", None)):
        if hasattr(part, "allow_global_per_layer_attribute_access"):
            part.allow_global_per_layer_attribute_access = True
    config._attn_implementation = "lrt_transposed_attention"
    return config


def plan_constants(
    uses: Any, tags: dict[int, str], weights: Weights, request: dict[str, Any]
) -> list[Constant]:
    """Every matrix with the type that the recipe gives it; one that is embedding and head at once is
    stored once where both want the same type.
    """
    constants = []
    for use in uses.values():
        source = tags[use.tag]
        shape = weights.shape(source)
        by_type: dict[str, list[tuple[int, int]]] = {}
        for g, i, role in use.places:
            name = weight_type(request, source, role, "embedding" in use.roles)
            by_type.setdefault(name, []).append((g, i))
        for name, places in by_type.items():
            constants.append(Constant(source, shape, WEIGHT_TYPES[name], tuple(places)))
    return constants


def weight_type(request: dict[str, Any], source: str, role: str, tied: bool) -> str:
    types = request["types"]
    if role == "embedding":
        return types["embedding"]
    if tied or source.startswith("lm_head") or source.endswith("lm_head.weight"):
        return types["head"]
    return types["linear"]


def _count(constants: list[Constant]) -> dict[str, int]:
    """Elements by type."""
    counted: dict[str, int] = {}
    for c in constants:
        counted[c.kind.name] = counted.get(c.kind.name, 0) + c.shape[0] * c.shape[1]
    return counted
