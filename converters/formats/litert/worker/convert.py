"""One conversion from request to file: runs in the pinned environment. `litert.convert` makes the
request.
"""

import gc
from pathlib import Path
from typing import Any

import torch
import transformers
from litert_torch.generative.export_hf.core import export_lib  # noqa: F401 registers attention
from litert_torch.generative.export_hf.model_ext import patches

from boardfit.converters.formats.litert.recipe import WEIGHT_TYPES, LitertRecipe
from boardfit.converters.formats.litert.worker.assemble import (
    Constant,
    assemble,
    find_uses,
    own_tensor,
    read_graph,
)
from boardfit.converters.formats.litert.worker.calibrate import quantize_by_activations
from boardfit.converters.formats.litert.worker.factors import Factors, candidate_factors
from boardfit.converters.formats.litert.worker.graph import export_graph
from boardfit.converters.formats.litert.worker.package import write_litertlm
from boardfit.converters.formats.litert.worker.plain import inline_composites, shorten_names
from boardfit.converters.formats.litert.worker.quantize import Quantized, quantize_matrix
from boardfit.converters.formats.litert.worker.skeleton import CheckpointWeights, build_skeleton
from boardfit.converters.formats.tools.worker_child import Report
from boardfit.edge.errors import UnsupportedModelError


def run(request: dict[str, Any], report: Report) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    directory, work = Path(request["checkpoint"]), Path(request["work"])
    weights = CheckpointWeights(directory)
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
    recipe = LitertRecipe.from_dict(request["recipe"])
    plain = request["flavour"] == "tflite"
    model = read_graph(graph_path)
    if plain:
        inline_composites(model)
    shorten_names(model)
    model.description = request["description"]
    constants = plan_constants(model, skeleton.tags, weights, recipe, config)
    rounded: dict[str, Quantized] = {}
    if recipe.gptq:
        report.say("rounding by calibration text")
        rounded = _round_weights(directory, weights, constants, request, report)
        gc.collect()
    report.say("quantizing")

    def quantize(constant: Constant) -> Quantized:
        if (found := rounded.pop(constant.source, None)) is not None:
            return found
        result = quantize_matrix(
            lambda a, b: weights.rows(constant.source, a, b) * constant.factor,
            constant.shape,
            constant.kind,
            recipe.scales,
        )
        weights.close()
        return result

    output = Path(request["output"])
    tflite = output if plain else work / "model.tflite"
    assemble(model, constants, quantize, tflite, inline=plain, progress=report.progress)
    if not plain:
        report.say("packing")
        write_litertlm(
            output,
            tflite,
            _tokenizer_file(directory, tokenizer, work),
            source=source,
            config=export_config,
            start_token=request["start_token"],
            stop_tokens=request["stop_tokens"],
            chat_template=request["chat_template"],
            cache_length=request["cache_length"],
            identity=request["identity"],
        )
    counted = _count(constants)
    n_bytes = sum(c.kind.total_bytes(*c.shape) for c in constants)
    return {"types": counted, "bpw": 8 * n_bytes / sum(counted.values())}


def load_config(directory: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(directory, dtype=torch.float32)
    part: Any
    for part in (config, getattr(config, "text_config", None)):
        if hasattr(part, "allow_global_per_layer_attribute_access"):
            part.allow_global_per_layer_attribute_access = True
    config._attn_implementation = "lrt_transposed_attention"
    return config


def plan_constants(
    model: Any, tags: dict[int, str], weights: CheckpointWeights, recipe: LitertRecipe, config: Any
) -> list[Constant]:
    """Every matrix of the graph with the type that the recipe gives it, stored once if it is
    embedding and head with one type.
    """
    text_config = getattr(config, "text_config", config)
    n_layers = text_config.num_hidden_layers
    factors = Factors(tags, candidate_factors(text_config.to_dict()))
    constants = []
    for use in find_uses(model, tags, factors).values():
        source = tags[use.tag]
        shape = weights.shape(source)
        types = {
            role: recipe.choose_type(
                source, role, tied="embedding" in use.roles, n_layers=n_layers, n_per_row=shape[1]
            )
            for role in use.roles
        }
        by_type: dict[tuple[str, float], list[tuple[int, int]]] = {}
        as_linear = {(g, i) for g, i, role, _ in use.places if role == "linear"}
        for g, i, role, factor in use.places:
            if role == "embedding" and (g, i) in as_linear and len(set(types.values())) > 1:
                i = own_tensor(model, g, i, role)
            by_type.setdefault((types[role], factor), []).append((g, i))
        for (name, factor), places in by_type.items():
            constants.append(
                Constant(
                    source,
                    (shape[0], shape[1]),
                    WEIGHT_TYPES[name],
                    factor,
                    tuple(dict.fromkeys(places)),
                )
            )
    return constants


def _round_weights(
    directory: Path,
    weights: CheckpointWeights,
    constants: list[Constant],
    request: dict[str, Any],
    report: Report,
) -> dict[str, Quantized]:
    """The layers' 4-bit matrices, rounded by the calibration text."""
    config = load_config(directory)
    # Plain transformers: litert-torch's patches of models want its own caches.
    config._attn_implementation = "eager"
    chosen = {c.source: c for c in constants if c.kind.bits == 4}
    skeleton = build_skeleton(directory, config, weights)
    return quantize_by_activations(
        skeleton,
        weights,
        _calibration_tokens(request, transformers.AutoTokenizer.from_pretrained(directory)),
        chosen.get,
        progress=report.progress,
    )


def _count(constants: list[Constant]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for c in constants:
        counted[c.kind.name] = counted.get(c.kind.name, 0) + c.shape[0] * c.shape[1]
    return counted


def _tokenizer_file(directory: Path, tokenizer: Any, work: Path) -> Path:
    """`tokenizer.json`: the checkpoint's own, else what transformers makes of its other files."""
    own = directory / "tokenizer.json"
    if own.is_file():
        return own
    made = work / "tokenizer"
    tokenizer.save_pretrained(made, legacy_format=False)
    if not (made / "tokenizer.json").is_file():
        raise UnsupportedModelError(
            "the checkpoint has no tokenizer.json and transformers cannot make one",
            next_step="add the tokenizer.json of the model's repository",
        )
    return made / "tokenizer.json"


def _calibration_tokens(request: dict[str, Any], tokenizer: Any) -> torch.Tensor:
    """Token ids [texts, length]: conversations through the template where there is one."""
    count, length = request["calibration_shape"]
    tokens: list[int] = []
    for talk in request["calibration"]:
        if request["chat_template"]:
            tokenizer.chat_template = request["chat_template"]
            text = tokenizer.apply_chat_template(talk, tokenize=False)
        else:
            text = "\n".join(turn["content"] for turn in talk) + "\n\n"
        tokens += tokenizer.encode(text, add_special_tokens=False)
    count = min(count, len(tokens) // length)
    if count < 1:
        length, count = len(tokens), 1
    return torch.tensor(tokens[: count * length]).reshape(count, length)
