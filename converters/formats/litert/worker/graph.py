"""The graph of a model as a TFLite flatbuffer with tags in place of weights, through litert-torch.

Follows `export_hf` of litert-torch 0.9.4 (generative/export_hf/core/export_lib.py,
`export_text_prefill_decode_model`) with two differences: the model is a skeleton, and constants
whose strides are all zero become MLIR splats without being spelled out.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litert_converter.mlir import ir
from litert_torch._convert import interface
from litert_torch.backend import inline_consts, lowerings
from litert_torch.backend.lowerings import utils as lowering_utils
from litert_torch.generative.export_hf.core import export_lib, exportable_module_config
from litert_torch.generative.export_hf.core.mu import mu_pass_lib
from litert_torch.generative.export_hf.model_ext import patches

from boardfit.converters.formats.litert.worker.skeleton import FIRST_TAG, Skeleton


def export_graph(
    skeleton: Skeleton,
    tokenizer: Any,
    path: Path,
    *,
    prefill_lengths: Sequence[int],
    cache_length: int,
) -> tuple[Any, Any]:
    """Write the graph to `path`; returns litert-torch's source and export configuration objects,
    which its metadata builders want.
    """
    config = exportable_module_config.ExportableModuleConfig(
        model=str(path),
        work_dir=str(path.parent),
        prefill_lengths=list(prefill_lengths),
        cache_length=cache_length,
        quantization_recipe=None,
    )
    text_config = getattr(skeleton.config, "text_config", skeleton.config)
    source = export_lib.SourceModelArtifacts(
        model=skeleton.model,
        model_config=skeleton.config,
        text_model_config=text_config,
        tokenizer=tokenizer,
    )
    export_lib.verify_model_compatibility(skeleton.model, skeleton.config, text_config)
    config = export_lib.update_export_config(config, source)
    _lower_tags_as_splats()
    with patches.patch_model(skeleton.model, skeleton.config.model_type, config):
        skeleton.model.set_attn_implementation("lrt_transposed_attention")
        prefill_class, decode_class = export_lib.get_prefill_decode_exportable_cls(
            skeleton.config, config
        )
        converter = interface.Converter()
        for module_class in (prefill_class, decode_class):
            module = module_class(skeleton.model, config, source).eval()
            for name, (inputs, _) in module.get_sample_inputs(text_config).items():
                converter.add_signature(name, module, sample_kwargs=inputs)
        with torch.no_grad(), export_lib.patch_builtin_tuple_for_export():
            model = converter.convert(strict_export=False)
    del converter
    gc.collect()
    model = mu_pass_lib.update_model(model)
    _shrink_tags(model._exporter.module)
    model.export(str(path))
    return source, config


def _shrink_tags(module: Any) -> None:
    """Make every splat matrix [rows, n] one of [rows / g, n / g], g their common divisor: the
    writer spells constants out. What uses them only checks that rows and columns stay in
    proportion, and `assemble.py` puts the true shape back.
    """
    operation = getattr(module, "operation", module)
    with operation.context, ir.Location.unknown():
        for op in _operations(operation):
            if op.name not in ("arith.constant", "tfl.pseudo_const"):
                continue
            kind = ir.ShapedType(op.results[0].type)
            if len(kind.shape) != 2 or not isinstance(kind.element_type, ir.F32Type):
                continue
            value = ir.DenseElementsAttr(op.attributes["value"])
            if not value.is_splat:
                continue
            number = ir.FloatAttr(value.get_splat_value()).value
            if number < FIRST_TAG:
                continue
            divisor = math.gcd(*kind.shape)
            shape = [extent // divisor for extent in kind.shape]
            small = ir.RankedTensorType.get(shape, kind.element_type)
            op.attributes["value"] = ir.DenseElementsAttr.get(
                np.full(shape, number, np.float32), type=small
            )
            op.results[0].set_type(small)


def _operations(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for op in list(block.operations):
                yield op.operation
                yield from _operations(op.operation)


def _lower_tags_as_splats() -> None:
    """Register our lowering of constants over litert-torch's, which copies each one first."""
    placeholder = inline_consts.tensor_lowering_placeholder
    original = lowerings.lookup(placeholder)
    if getattr(original, "of_boardfit", False):
        return

    def lower(lctx: Any, x: torch.Tensor) -> Any:
        if x.ndim == 0 or any(x.stride()):
            return original(lctx, x)
        element = lowering_utils.torch_dtype_to_ir_element_type(x.dtype)
        tensor_type = ir.RankedTensorType.get(x.shape, element)
        value = x[(0,) * x.ndim].item()
        attribute = lowering_utils.splat_attr(value, element, tensor_type.shape)
        return inline_consts._build_const(attribute, tensor_type)

    lower.of_boardfit = True  # type: ignore[attr-defined]
    lowerings.lower(placeholder)(lower)
