"""Quantize a model layer by layer while calibration text runs through it; one layer is in memory.

The text's tokens go through a skeleton once. A layer's weights are read when the activations reach
it; what each matrix sees is added up; the matrices are rounded to it; the layer runs again with the
rounded weights, so that the next one compensates the errors so far.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from boardfit.converters.formats.litert.recipe import WeightType
from boardfit.converters.formats.litert.worker.assemble import Constant
from boardfit.converters.formats.litert.worker.quantize import Quantized, choose_scales, pack
from boardfit.converters.formats.litert.worker.skeleton import CheckpointWeights, Skeleton
from boardfit.edge.terminal.progress import Progress


def quantize_by_activations(
    skeleton: Skeleton,
    weights: CheckpointWeights,
    tokens: torch.Tensor,
    constant_of: Callable[[str], Constant | None],
    *,
    progress: Progress,
) -> dict[str, Quantized]:
    """Rounded matrices of the decoder's layers, by the checkpoint's names. `tokens` is [texts,
    length]. `constant_of` gives the target of a matrix, or None for one that is to stay as it is.
    The skeleton's model must compute with plain attention; it is of no use afterwards.
    """
    model = skeleton.model.base_model
    source_of = {float(tag): name for tag, name in skeleton.tags.items()}
    tokens = _with_small_embedding(model, weights, source_of, tokens)
    layers = model.layers
    found: dict[str, Quantized] = {}
    finished = 0

    def done() -> None:
        nonlocal finished
        finished += 1
        progress(finished, len(layers))

    for layer in layers:
        _Stage(layer, weights, source_of, constant_of, found, done)
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    return found


def _with_small_embedding(
    model: Any, weights: CheckpointWeights, source_of: dict[float, str], tokens: torch.Tensor
) -> torch.Tensor:
    """Give the embedding only the rows that the text has, and number the tokens accordingly."""
    embedding = model.get_input_embeddings()
    source = source_of[float(embedding.weight.flatten()[0])]
    present, renumbered = torch.unique(tokens, return_inverse=True)
    embedding.weight = torch.nn.Parameter(
        weights.read(source)[present].to(torch.float32), requires_grad=False
    )
    embedding.padding_idx = None
    return renumbered


class _Stage:
    """The hooks of one decoder layer."""

    def __init__(
        self,
        layer: Any,
        weights: CheckpointWeights,
        source_of: dict[float, str],
        constant_of: Callable[[str], Constant | None],
        found: dict[str, Quantized],
        done: Callable[[], None],
    ) -> None:
        self._weights, self._constant_of, self._found = weights, constant_of, found
        self._done = done
        self._linears: dict[str, torch.nn.Linear] = {}
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                source = source_of.get(float(module.weight.flatten()[0]))
                if source is not None:
                    self._linears[source] = module
        self._tags = {source: module.weight for source, module in self._linears.items()}
        self._hessians: dict[str, torch.Tensor] = {}
        self._seen: dict[tuple[int, int], torch.Tensor] = {}
        self._again = False
        layer.register_forward_pre_hook(self._load_layer)
        layer.register_forward_hook(self._round_layer, with_kwargs=True)

    def _load_layer(self, layer: Any, arguments: Any) -> None:
        if self._again:
            return
        for source, module in self._linears.items():
            value = self._weights.read(source).to(torch.float32)
            module.weight = torch.nn.Parameter(value, requires_grad=False)
            if self._constant_of(source) is not None:
                module._boardfit_watch = module.register_forward_pre_hook(
                    lambda m, inputs, source=source: self._watch(source, inputs[0])
                )
        self._weights.close()

    def _watch(self, source: str, x: torch.Tensor) -> None:
        # Q, K and V see the same tensor: their sums are one.
        key = (x.data_ptr(), x.shape[-1])
        if key not in self._seen:
            flat = x.reshape(-1, x.shape[-1]).to(torch.float32)
            self._seen[key] = flat.T @ flat
        self._hessians[source] = self._seen[key]

    def _round_layer(self, layer: Any, arguments: Any, named: Any, output: Any) -> Any:
        if self._again:
            return None
        for source, module in self._linears.items():
            if source not in self._hessians:
                continue
            module._boardfit_watch.remove()
            constant = self._constant_of(source)
            assert constant is not None  # it is watched
            weight, kind = module.weight.data, constant.kind
            integers, scales = gptq(weight * constant.factor, self._hessians[source].clone(), kind)
            rows, n = weight.shape
            groups = integers.reshape(rows, scales.shape[1], -1).to(torch.float32)
            weight.copy_((groups * scales.unsqueeze(-1)).reshape(rows, n) / constant.factor)
            self._found[source] = _pack(integers, scales, kind)
        self._hessians.clear()
        self._seen.clear()
        self._again = True
        output = layer(*arguments, **named)
        for source, module in self._linears.items():
            module.weight = self._tags[source]
        self._done()
        return output


def _pack(integers: torch.Tensor, scales: torch.Tensor, kind: WeightType) -> Quantized:
    return Quantized(pack(integers.numpy().ravel(), kind), scales.numpy().astype(np.float32))


# Share of the mean diagonal that is added to it, and how it grows where H stays singular.
_DAMPING = 0.01
_COLUMNS_AT_ONCE = 128


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, kind: WeightType
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (int8, [rows, n]) and scales (float32, [rows, blocks]) for a float32 matrix, by GPTQ
    (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, the ones with the
    largest activations first; what that does to the outputs is taken back by the columns that are
    still free. Scales are chosen beforehand ("static groups"), so that the order does not matter to
    the blocks.

    `hessian` is Σ x xᵀ over the calibration text, [n, n]. Both arguments are used up.
    """
    diagonal = hessian.diagonal().clone()
    scales = choose_scales(weight, kind, "mse", diagonal + 1e-6 * diagonal.mean())
    n = weight.shape[1]
    block = kind.block_size or n
    order = torch.argsort(diagonal, descending=True)
    factor = _inverse_factor(hessian[order][:, order], diagonal[order])
    weight = weight[:, order]
    integers = torch.empty_like(weight)
    for start in range(0, n, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, n)
        part, corner = weight[:, start:stop].clone(), factor[start:stop, start:stop]
        errors = torch.empty_like(part)
        for i in range(stop - start):
            column = part[:, i]
            scale = scales[:, int(order[start + i]) // block]
            q = (column / scale).round_().clamp_(kind.q_min, kind.q_max)
            integers[:, start + i] = q
            error = (column - q * scale) / corner[i, i]
            part[:, i:].addr_(error, corner[i, i:], alpha=-1)
            errors[:, i] = error
        weight[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    result = torch.empty_like(integers)
    result[:, order] = integers
    return result.to(torch.int8), scales


def _inverse_factor(hessian: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped H."""
    damping = _DAMPING
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping * diagonal.mean() + 1e-8)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10
