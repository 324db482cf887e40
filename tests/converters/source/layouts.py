"""Quantized weights as tools store them, written number by number from each tool's documentation.

Every writer draws codes and scales, stores them, and computes what they stand for. It shares no
code with `boardfit.converters.source.dequantize`: numbers are packed by shifting Python integers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Stored = tuple[str, np.ndarray]
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Layout:
    """`tensors` by what follows the module's name, the float32 `weight`, and the settings."""

    tensors: dict[str, Stored]
    weight: np.ndarray
    config: dict[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


Writer = Callable[[np.random.Generator, int, int], Layout]


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Each row as 32-bit words, lowest bits first, without gaps."""
    words = []
    for row in numbers:
        whole = sum(int(number) << (place * bits) for place, number in enumerate(row))
        n_bytes = 4 * -(-len(row) * bits // 32)
        words.append(np.frombuffer(whole.to_bytes(n_bytes, "little"), "<i4"))
    return np.array(words)


def scales_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(0.001, 0.01, shape).astype(np.float16)


def e4m3(code: int) -> float:
    sign, exponent, fraction = -1 if code >> 7 else 1, code >> 3 & 15, code & 7
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


def gptq(
    *, bits: int = 4, size: int = 32, v2: bool = False, act_order: bool = False, sym: bool = False
) -> Writer:
    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        n_groups = -(-width // size)
        codes = rng.integers(0, 2**bits, (height, width))
        zeros = rng.integers(1, 2**bits, (n_groups, height))
        zeros[:] = 2 ** (bits - 1) if sym else zeros
        scales = scales_of(rng, n_groups, height)
        index = np.arange(width) // size
        if act_order:
            rng.shuffle(index)
        weight = np.empty((height, width), np.float32)
        for column, group in enumerate(index):
            steps = scales[group].astype(np.float32)
            weight[:, column] = steps * (codes[:, column] - zeros[group])
        tensors = {
            ".qweight": ("I32", pack(codes, bits).T),
            ".qzeros": ("I32", pack(zeros - (0 if v2 else 1), bits)),
            ".scales": ("F16", scales),
            ".g_idx": ("I32", index.astype(np.int32)),
        }
        layout = "gptq_v2" if v2 else "gptq"
        config = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": sym,
                  "desc_act": act_order, "checkpoint_format": layout}  # fmt: skip
        return Layout(tensors, weight, config)

    return write


def awq(rng: np.random.Generator, height: int, width: int) -> Layout:
    codes = rng.integers(0, 16, (width, height))
    zeros, scales = rng.integers(0, 16, (width // 32, height)), scales_of(rng, width // 32, height)
    groups = np.arange(width) // 32
    weight = (codes - zeros[groups]) * scales[groups].astype(np.float32)

    def words(numbers: np.ndarray) -> np.ndarray:
        """Eight neighbours in a word, in AWQ's order."""
        in_order = numbers.reshape(len(numbers), -1, 8)[:, :, list(AWQ_ORDER)]
        return pack(in_order.reshape(len(numbers), -1), 4)

    tensors = {
        ".qweight": ("I32", words(codes)),
        ".qzeros": ("I32", words(zeros)),
        ".scales": ("F16", scales),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    return Layout(tensors, weight.T.astype(np.float32), config)


def compressed(*, bits: int = 4, size: int = 32, sym: bool = True) -> Writer:
    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        n_groups = width // size
        codes = rng.integers(0, 2**bits, (height, width))
        zeros = rng.integers(0, 2**bits, (height, n_groups))
        zeros[:] = 2 ** (bits - 1) if sym else zeros
        scales = scales_of(rng, height, n_groups)
        groups = np.arange(width) // size
        weight = (codes - zeros[:, groups]) * scales.astype(np.float32)[:, groups]
        tensors = {
            ".weight_packed": ("I32", pack(codes, bits)),
            ".weight_scale": ("F16", scales),
            ".weight_shape": ("I64", np.array([height, width])),
        }
        if not sym:
            tensors[".weight_zero_point"] = ("I32", pack(zeros.T, bits).T)
        weights = {"num_bits": bits, "group_size": size, "strategy": "group", "type": "int",
                   "symmetric": sym}  # fmt: skip
        config = {"quant_method": "compressed-tensors", "format": "pack-quantized",
                  "config_groups": {"group_0": {"weights": weights}}}  # fmt: skip
        return Layout(tensors, weight.astype(np.float32), config)

    return write


def fp8(*, block: int = 0, ending: str = ".weight_scale", scale: str = "row") -> Writer:
    """E4M3: one scale per tensor, row or square block."""

    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        codes = rng.integers(0, 127, (height, width)) | rng.integers(0, 2, (height, width)) << 7
        values = np.array([[e4m3(int(code)) for code in row] for row in codes], np.float32)
        shape = {"tensor": (), "row": (height, 1)}.get(scale, (0, 0))
        if block:
            shape = (-(-height // block), -(-width // block))
        scales = rng.uniform(0.001, 0.01, shape).astype(np.float32)
        weight = np.empty_like(values)
        for row in range(height):
            for column in range(width):
                step = scales[row // block, column // block] if block else (
                    scales[row, 0] if scale == "row" else scales)  # fmt: skip
                weight[row, column] = values[row, column] * step
        tensors = {
            ".weight": ("F8_E4M3", codes.astype(np.uint8)),
            ending: ("F32", scales),
            ".input_scale": ("F32", np.ones((), np.float32)),
        }
        config: dict[str, Any] = {"quant_method": "fp8"}
        if block:
            config["weight_block_size"] = [block, block]
        return Layout(tensors, weight, config)

    return write


def int8_rows(rng: np.random.Generator, height: int, width: int) -> Layout:
    """compressed-tensors' int8, with a zero point per row."""
    codes = rng.integers(-128, 128, (height, width))
    zeros, scales = rng.integers(-128, 128, (height, 1)), scales_of(rng, height, 1)
    weight = (codes - zeros).astype(np.float32) * scales.astype(np.float32)
    tensors = {
        ".weight": ("I8", codes.astype(np.int8)),
        ".weight_scale": ("F16", scales),
        ".weight_zero_point": ("I8", zeros.astype(np.int8)),
    }
    groups = {"group_0": {"weights": {"symmetric": False, "num_bits": 8}}}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    return Layout(tensors, weight, config)


def bitsandbytes_4bit(*, kind: str = "nf4", nested: bool = False) -> Writer:
    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        n_values = height * width
        codes, table = rng.integers(0, 16, n_values), np.sort(rng.uniform(-1, 1, 16))
        table = table.astype(np.float32)
        n_blocks = -(-n_values // 64)
        absmax = rng.uniform(0.01, 0.1, n_blocks).astype(np.float32)
        state: dict[str, Any] = {"blocksize": 64, "shape": [height, width], "dtype": "float16",
                                 "quant_type": kind}  # fmt: skip
        tensors: dict[str, Stored] = {}
        if nested:
            bytes_of_scales = rng.integers(0, 256, n_blocks)
            values = rng.uniform(-1, 1, 256).astype(np.float32)
            outer = rng.uniform(0.01, 0.1, -(-n_blocks // 4)).astype(np.float32)
            absmax = np.array(
                [values[b] * outer[i // 4] + np.float32(0.25)
                 for i, b in enumerate(bytes_of_scales)], np.float32)  # fmt: skip
            tensors |= {
                ".weight.absmax": ("U8", bytes_of_scales.astype(np.uint8)),
                ".weight.nested_absmax": ("F32", outer),
                ".weight.nested_quant_map": ("F32", values),
            }
            state |= {"nested_blocksize": 4, "nested_offset": 0.25, "nested_dtype": "float32"}
        else:
            tensors[".weight.absmax"] = ("F32", absmax)
        flat = np.array([table[c] * absmax[i // 64] for i, c in enumerate(codes)], np.float32)
        even = np.append(codes, np.zeros(n_values % 2, codes.dtype))
        text = json.dumps(state).encode()
        tensors |= {
            ".weight": ("U8", (even[::2] << 4 | even[1::2]).astype(np.uint8).reshape(-1, 1)),
            ".weight.quant_map": ("F32", table),
            f".weight.quant_state.bitsandbytes__{kind}": ("U8", np.frombuffer(text, np.uint8)),
        }
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        return Layout(tensors, flat.reshape(height, width), config)

    return write


def bitsandbytes_8bit(rng: np.random.Generator, height: int, width: int) -> Layout:
    codes = rng.integers(-127, 128, (height, width))
    scales = rng.uniform(0.1, 1, height).astype(np.float32)
    weight = codes * (scales * np.float32(1 / 127))[:, None]
    tensors = {
        ".weight": ("I8", codes.astype(np.int8)),
        ".SCB": ("F32", scales),
        ".weight_format": ("U8", np.zeros((), np.uint8)),
    }
    return Layout(tensors, weight.astype(np.float32), {"quant_method": "bitsandbytes"})


def fp4(*, kind: str = "mxfp4") -> Writer:
    """compressed-tensors' MXFP4 and NVFP4, ModelOpt's NVFP4."""
    size = 32 if kind == "mxfp4" else 16

    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        codes = rng.integers(0, 16, (height, width))
        scales = rng.integers(110 if size == 32 else 40, 126, (height, width // size))
        factor = {"mxfp4": 1.0, "nvfp4": 1 / 8, "modelopt": 8.0}[kind]
        weight = np.empty((height, width), np.float32)
        for row in range(height):
            for column in range(width):
                stored = int(scales[row, column // size])
                step = 2.0 ** (stored - 127) if kind == "mxfp4" else e4m3(stored)
                weight[row, column] = FP4[codes[row, column]] * (step * factor)
        octets = ("U8", (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
        scale = ("U8" if kind == "mxfp4" else "F8_E4M3", scales.astype(np.uint8))
        eight = ("F32", np.full((1,), 8, np.float32))
        if kind == "modelopt":
            tensors = {".weight": octets, ".weight_scale": scale, ".weight_scale_2": eight}
            return Layout(tensors, weight, {"quant_method": "modelopt"})
        tensors = {".weight_packed": octets, ".weight_scale": scale}
        if kind == "nvfp4":
            tensors[".weight_global_scale"] = eight
        return Layout(tensors, weight, {"quant_method": "compressed-tensors"})

    return write


def mlx(*, bits: int = 4, size: int = 64) -> Writer:
    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        codes = rng.integers(0, 2**bits, (height, width))
        scales, biases = (
            scales_of(rng, height, width // size),
            scales_of(rng, height, width // size),
        )
        groups = np.arange(width) // size
        weight = codes * scales.astype(np.float32)[:, groups]
        weight = weight.astype(np.float32) + biases.astype(np.float32)[:, groups]
        tensors = {
            ".weight": ("U32", pack(codes, bits).view(np.uint32)),
            ".scales": ("F16", scales),
            ".biases": ("F16", biases),
        }
        return Layout(tensors, weight, {"bits": bits, "group_size": size})

    return write


def mlx_floats(*, kind: str = "mxfp4") -> Writer:
    """MLX's float modes: the same numbers in 32-bit words."""

    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        config = {"bits": 4, "group_size": 16 if kind == "nvfp4" else 32, "mode": kind}
        if kind == "mxfp8":
            rows = fp8(scale="tensor")(rng, height, width)
            codes, scale = rows.tensors[".weight"][1], float(rows.tensors[".weight_scale"][1])
            powers = rng.integers(118, 128, (height, width // 32))
            steps = np.repeat(2.0 ** (powers - 127), 32, axis=1)
            words, weight = pack(codes, 8), rows.weight / np.float32(scale) * steps
            config["bits"] = 8
        else:
            rows = fp4(kind="modelopt" if kind == "nvfp4" else kind)(rng, height, width)
            octets = rows.tensors[".weight" if kind == "nvfp4" else ".weight_packed"][1]
            words, powers = pack(octets, 8), rows.tensors[".weight_scale"][1]
            weight = rows.weight / (8 if kind == "nvfp4" else 1)
        tensors = {
            ".weight": ("U32", words.view(np.uint32)),
            ".scales": ("U8", powers.astype(np.uint8)),
        }
        return Layout(tensors, weight.astype(np.float32), config)

    return write


def torchao(*, kind: str = "Int4Tensor") -> Writer:
    def write(rng: np.random.Generator, height: int, width: int) -> Layout:
        is_int4, groups = kind == "Int4Tensor", np.arange(width) // 32
        codes = rng.integers(-8, 8, (height, width))
        scales = scales_of(rng, height, width // 32)
        zeros = scales_of(rng, *scales.shape) if is_int4 else rng.integers(-8, 8, scales.shape)
        step = scales.astype(np.float32)[:, groups]
        if is_int4:
            weight = codes.astype(np.float32) * step + zeros.astype(np.float32)[:, groups]
            nibbles = codes & 15
            tensors = {
                "._weight_qdata": (
                    "U8",
                    (nibbles[:, ::2] | nibbles[:, 1::2] << 4).astype(np.uint8),
                ),
                "._weight_scale": ("F16", scales.T),
                "._weight_zero_point": ("F16", zeros.T),
            }
        else:
            weight = (codes - zeros[:, groups]).astype(np.float32) * step
            tensors = {
                "._weight_qdata": ("I8", codes.astype(np.int8)),
                "._weight_scale": ("F16", scales),
                "._weight_zero_point": ("I8", zeros.astype(np.int8)),
            }
        parts = ["qdata", "scale", "zero_point"]
        stated = json.dumps(
            {"_type": kind, "_data": {"block_size": [1, 32]}, "_tensor_data_names": parts}
        )
        return Layout(tensors, weight, {"quant_method": "torchao"}, {".weight": stated})

    return write


LAYOUTS: dict[str, Writer] = {
    "gptq": gptq(),
    "gptq-8bit": gptq(bits=8, sym=True),
    "gptq-3bit": gptq(bits=3),
    "gptq-v2-act-order": gptq(v2=True, act_order=True),
    "gptq-act-order": gptq(act_order=True),
    "awq": awq,
    "compressed-4bit": compressed(),
    "compressed-4bit-zeros": compressed(sym=False),
    "compressed-8bit-zeros": compressed(bits=8, sym=False),
    "fp8-block": fp8(block=128, ending=".weight_scale_inv"),
    "fp8-row": fp8(),
    "fp8-tensor": fp8(scale="tensor"),
    "fp8-mistral": fp8(scale="tensor", ending=".qscale_weight"),
    "int8-rows": int8_rows,
    "bitsandbytes-nf4": bitsandbytes_4bit(),
    "bitsandbytes-fp4-nested": bitsandbytes_4bit(kind="fp4", nested=True),
    "bitsandbytes-int8": bitsandbytes_8bit,
    "mxfp4": fp4(),
    "nvfp4": fp4(kind="nvfp4"),
    "nvfp4-modelopt": fp4(kind="modelopt"),
    "mlx": mlx(),
    "mlx-3bit": mlx(bits=3, size=32),
    "mlx-6bit": mlx(bits=6, size=32),
    "mlx-mxfp4": mlx_floats(),
    "mlx-mxfp8": mlx_floats(kind="mxfp8"),
    "mlx-nvfp4": mlx_floats(kind="nvfp4"),
    "torchao-int4": torchao(),
    "torchao-intx": torchao(kind="IntxUnpackedToInt8Tensor"),
}
