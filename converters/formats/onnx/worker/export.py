"""Convert a checkpoint into a folder for onnxruntime-genai. The builder (onnxruntime_genai.models)
writes a graph of lazily read float tensors; its quantizer and its writer are replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boardfit.converters.formats.onnx.recipe import OnnxRecipe
from boardfit.converters.formats.onnx.worker.graph import quantize_graph, shorten_rope
from boardfit.converters.formats.onnx.worker.upstream import bridge
from boardfit.edge.errors import UnsupportedModelError

MODEL_FILE = "model.onnx"


def run(request: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Build `request["checkpoint"]` (a directory with the configuration as the builder reads it)
    into `request["output"]`. `recipe` is an `OnnxRecipe` as a dict, or None for the float graph;
    `accuracy_level` is that of MatMulNBits, `n_ctx` the context length.

    Returns `counts` (weights by kind of storage) and `nodes`.
    """
    builder = _import_builder()
    bridge(builder)
    options = [
        "hf_token=false",
        # One logit row per step instead of one per prompt token: prefill without most of the head.
        "prune_lm_head=true",
        # Whole caches instead of windows: a window cannot be cut back to a common prefix.
        "windowed_kv_cache=false",
    ]
    result: dict[str, Any] = {}
    report.say("reading the checkpoint into a graph")
    with _own_writer(builder, request, report, result):
        try:
            parsed = builder.parse_extra_options(
                None, request["checkpoint"], request["output"], "fp32", "cpu",
                request["cache"], options,
            )  # fmt: skip
            builder.create_model(
                None, request["checkpoint"], request["output"], "fp32", "cpu",
                request["cache"], **parsed,
            )  # fmt: skip
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"onnxruntime-genai's model builder does not know this model: {error}"
            ) from None
    return result


def _import_builder() -> Any:
    """The builder's modules import one another by plain names, from their own folder."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None and spec.submodule_search_locations
    sys.path.insert(0, str(Path(spec.submodule_search_locations[0]) / "models"))
    return importlib.import_module("builder")


@contextlib.contextmanager
def _own_writer(
    builder: Any, request: Mapping[str, Any], report: Any, result: dict[str, Any]
) -> Iterator[None]:
    """Every model class of the builder writes through `save_model`, which becomes ours."""
    original = builder.Model.save_model

    def save_model(model: Any, folder: str) -> None:
        import onnx_ir as ir

        graph = model.model
        if request["recipe"] is not None:
            report.say("quantizing")
            recipe = OnnxRecipe.from_dict(request["recipe"])
            result["counts"] = quantize_graph(
                graph, recipe, request["accuracy_level"], report.progress
            )
        shorten_rope(graph, int(request["n_ctx"]))
        graph.graph.sort()
        report.say("writing")
        ir.save(
            graph,
            Path(folder) / MODEL_FILE,
            external_data=f"{MODEL_FILE}.data",
            size_threshold_bytes=1024,
        )
        result["nodes"] = len(graph.graph)

    builder.Model.save_model = save_model
    try:
        yield
    finally:
        builder.Model.save_model = original
