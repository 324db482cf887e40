"""GPTQ: rounding that makes up for its own errors (Frantar et al., arXiv 2210.17323).

Columns are rounded one after the other, the ones with the largest activations first; what rounding
a column does to the outputs is taken back by the columns that are still free, as the inverse of
H = Σ x xᵀ over the calibration text shows. Scales are chosen beforehand for the original weights
("static groups"), so that the order does not matter to the blocks.
"""

from __future__ import annotations

import torch

from boardfit.converters.formats.litert.types import WeightType
from boardfit.converters.formats.litert.worker.quantize import choose_scales

# Share of the mean diagonal that is added to it, and how it grows where H stays singular.
_DAMPING = 0.01
_COLUMNS_AT_ONCE = 128


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, kind: WeightType
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (int8, [rows, n]) and scales (float32, [rows, blocks]) for a float32 matrix.

    `hessian` is Σ x xᵀ, [n, n]. Both arguments are used up.
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
