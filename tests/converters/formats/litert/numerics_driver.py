"""Runs in the pinned LiteRT environment, which has the torch that quantizing needs: measures what
`test_numerics.py` judges. Prints one line of JSON.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from boardfit.converters.formats.litert.recipe import WEIGHT_TYPES, WeightType
from boardfit.converters.formats.litert.worker.calibrate import gptq
from boardfit.converters.formats.litert.worker.quantize import Quantized, pack, quantize_matrix


def run(request: dict[str, Any], report: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    weight = torch.randn(96, 256) * torch.rand(96, 1)
    found: dict[str, Any] = {"rmse": {}, "bytes": {}, "scale_bits": {}}
    for name, kind in WEIGHT_TYPES.items():
        if kind.bits == 32:
            continue
        for method in ("minmax", "mse"):
            result = quantized(weight, kind, method)
            back = unpacked(result, kind, 256)
            found["rmse"][f"{name} {method}"] = float((back - weight).square().mean().sqrt())
        found["bytes"][name] = result.data.nbytes
        bits = torch.from_numpy(result.scales).view(torch.int32)
        found["scale_bits"][name] = int((bits & 0xFFFF).count_nonzero())
    # Rounding by activations: correlated inputs, some columns far larger than others.
    mixing = torch.randn(256, 256) * torch.logspace(-1, 1, 256)
    inputs = torch.randn(2048, 256) @ mixing
    kind = WEIGHT_TYPES["int4-b32"]
    plain = unpacked(quantized(weight, kind, "mse"), kind, 256)
    integers, scales = gptq(weight.clone(), inputs.T @ inputs, kind)
    rounded = (integers.float().reshape(96, -1, 32) * scales.unsqueeze(-1)).reshape(96, 256)
    found["outputs"] = [float((inputs @ (w - weight).T).square().mean()) for w in (plain, rounded)]
    found["range"] = [int(integers.min()), int(integers.max())]
    # A matrix that is zero, a dead input, a row of one value.
    awkward = torch.zeros(4, 64)
    awkward[1] = 3.0
    awkward[2, 5] = -1e-7
    dead = torch.zeros(64, 64)
    integers, scales = gptq(awkward.clone(), dead, kind)
    found["finite"] = bool(torch.isfinite(scales).all()) and bool((scales > 0).all())
    found["pairs"] = pack(np.array([1, -1, -8, 7], np.int8), kind).tolist()
    return found


def quantized(weight: torch.Tensor, kind: WeightType, method: str) -> Quantized:
    shape = (weight.shape[0], weight.shape[1])
    return quantize_matrix(lambda a, b: weight[a:b], shape, kind, method)


def unpacked(result: Quantized, kind: WeightType, n: int) -> torch.Tensor:
    if kind.bits == 8:
        values = torch.from_numpy(result.data.view(np.int8)).float()
    else:
        low, high = result.data & 15, result.data >> 4
        nibbles = np.stack([low, high], 1).ravel().astype(np.int8)
        values = torch.from_numpy(np.where(nibbles > 7, nibbles - 16, nibbles)).float()
    scales = torch.from_numpy(result.scales)
    rows = len(scales)
    return (values.reshape(rows, scales.shape[1], -1) * scales.unsqueeze(-1)).reshape(rows, n)


if __name__ == "__main__":
    print(json.dumps(run({}, None)))
