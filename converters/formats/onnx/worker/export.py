"""Convert a checkpoint into a folder for onnxruntime-genai. The builder (onnxruntime_genai.models)
writes a graph of lazily read float tensors; its quantizer and its writer are replaced.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boardfit.converters.formats.onnx.recipe import OnnxRecipe
from boardfit.converters.formats.onnx.worker.graph import quantize_graph, shorten_rope
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


def bridge(builder: Any) -> None:
    """Make the imported `builder` module read what transformers 5 hands it, which rewrites every
    configuration when it reads it. Each function below names the family and what would happen
    without it.
    """
    details = builder.get_hf_details

    @functools.wraps(details)
    def get_hf_details(*arguments: Any, **named: Any) -> Any:
        found = details(*arguments, **named)
        older_keys(found["hf_config"])
        return found

    builder.get_hf_details = get_hf_details
    _scale_only_global_rope(builder.Gemma3Model)
    _leave_rope_out(builder.SmolLM3Model)


def older_keys(config: Any) -> None:
    """Add the keys that the builder asks for to a transformers configuration."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    full, local = rope.get("full_attention"), rope.get("sliding_attention")
    if isinstance(full, dict):  # Gemma 3: KeyError 'rope_type'
        config.rope_theta = full.get("rope_theta", 1e6)
        config.rope_local_base_freq = (local or {}).get("rope_theta", 1e4)
        config.rope_parameters = rope = {"rope_type": "default", **full}
    rope.setdefault("type", rope.get("rope_type"))  # Phi-3 with longrope: KeyError 'type'


def _scale_only_global_rope(gemma3: Any) -> None:
    """Gemma 3 from 4B on stretches the rotation of its global layers; the builder would stretch the
    sliding layers' too.
    """

    def make_rotary_embedding_multi_cache(self: Any) -> None:
        self.cos_cache_global_name, self.sin_cache_global_name = (
            "cos_cache_global",
            "sin_cache_global",
        )
        tables = super(gemma3, self).make_rotary_embedding_caches
        tables(cos_cache_name="cos_cache_global", sin_cache_name="sin_cache_global")
        stretched = self.rope_attrs["rescale_factors"]
        self.rope_attrs |= {
            "create_caches": True,
            "theta": self.rope_local_theta,
            "rescale_factors": 1,
        }
        self.cos_cache_local_name, self.sin_cache_local_name = "cos_cache_local", "sin_cache_local"
        tables(cos_cache_name="cos_cache_local", sin_cache_name="sin_cache_local")
        self.rope_attrs["rescale_factors"] = stretched

    gemma3.make_rotary_embedding_multi_cache = make_rotary_embedding_multi_cache


def _leave_rope_out(smollm3: Any) -> None:
    """SmolLM3's layers without rotation: the builder would add a RotaryEmbedding operator to them,
    whose `position_ids` input it has removed.
    """
    make_attention = smollm3.make_attention

    def without_rope(self: Any, layer_id: int, *arguments: Any, **named: Any) -> None:
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        try:
            make_attention(self, layer_id, *arguments, **named)
        finally:
            self.attention_attrs["rope"] = True

    smollm3.make_attention = without_rope
