"""Checkpoints whose weights are quantized already: which tensors make up a weight, and from what.

The tensors decide. `quantization_config` alone is not believed: a model that was trained in 4 bits
and merged in 16 keeps it in config.json. Where the tensors leave a choice, it is asked, and where
it contradicts them, the checkpoint is refused. `dequantize` has the formulas.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from boardfit.converters.families.layout import SourceTensor, matrix
from boardfit.converters.families.lazy import ComputeRows, lazy_tensor
from boardfit.converters.source import dequantize as formulas
from boardfit.converters.source.dequantize import BlockScales, NestedScales
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.fields import (
    MAX_FIGURE,
    MAX_INT,
    ListOf,
    Real,
    Schema,
    Whole,
    check_fields,
    is_finite,
    shown,
)
from boardfit.edge.files.safetensors import SafetensorsTensor
from boardfit.edge.units import printable

_FLOATS = ("BF16", "F16", "F32", "F64")
_SCALES = ("BF16", "F16", "F32")
_FP8 = ("F8_E4M3", "F8_E5M2")
_FP4_SCALES = ("U8", "F8_E8M0", "F8_E4M3")
_WORDS = ("I32", "U32")
# `quant_method`s whose layouts are known. MLX states none.
_METHODS = (
    "fp8", "fbgemm_fp8", "gptq", "awq", "auto-round", "intel/auto-round", "bitsandbytes",
    "compressed-tensors", "mxfp4", "modelopt", "quark", "torchao",
)  # fmt: skip
# Scales of activations and of the KV cache: the engine computes in other types.
_OF_ACTIVATIONS = (
    ".input_scale", ".activation_scale", "_activation_scale", ".qscale_act", ".k_scale", ".v_scale",
    ".q_scale", ".output_scale", ".input_zero_point", ".input_global_scale", ".input_scale_ub",
    ".weight_scale_ub",
)  # fmt: skip
# DeepSeek's, which others took over.
_USUAL_BLOCK = (128, 128)
_MOST_STATE_BYTES = 65_536
_NEXT_STEP = "use the model's unquantized checkpoint (BF16, F16 or F32)"
_AGAIN = f"download the checkpoint again, or {_NEXT_STEP}"

ReadTensor = Callable[[str], SourceTensor]


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight by the name that families know it by, what it is stored as, and its rows."""

    name: str
    shape: tuple[int, ...]
    method: str
    compute: ComputeRows
    mxfp4: ComputeRows | None = None

    def tensor(self) -> SourceTensor:
        return lazy_tensor(self.name, self.shape, self.compute, self.mxfp4)


@dataclass
class QuantizedWeights:
    """All quantized weights of a checkpoint by name, and where each stored tensor belongs. `owners`
    maps a stored name to its weight's name, or to None where it is of no use.
    """

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    owners: dict[str, str | None] = field(default_factory=dict)

    def names(self, stored: Iterable[str]) -> list[str]:
        """The names of all tensors, each weight where its first part stands."""
        placed = (self.owners.get(name, name) for name in stored)
        return list(dict.fromkeys(name for name in placed if name is not None))

    def describe(self) -> str | None:
        """What the weights are stored as, the most frequent first; None where none is quantized."""
        counted = Counter(weight.method for weight in self.weights.values()).most_common()
        return "; ".join(f"{method} ({n} tensors)" for method, n in counted) or None


def stated_method(config: Mapping[str, Any]) -> str | None:
    """The method that config.json states; None where it states none."""
    stated = _settings(config)
    if not stated:
        return None
    return printable(str(stated.get("quant_method") or "method not named"), 40)


def find_quantized(
    config: Mapping[str, Any],
    stored: Mapping[str, SafetensorsTensor],
    read: ReadTensor,
    metadata: Mapping[str, str],
) -> QuantizedWeights:
    """Find the weights that are quantized, and check that everything they need is there. Raises
    InputError that names the tensor or key, what it is and what was expected, and
    UnsupportedModelError for a layout that is not known.
    """
    settings, found = _settings(config), QuantizedWeights()
    for name, entry in stored.items():
        recognized = _recognize(name, entry, stored)
        if recognized is None or name in found.owners:
            continue
        base, build = recognized
        parts = _Parts(base, stored, read, settings, metadata)
        weight = build(parts)
        if weight.name in found.weights or (weight.name in stored and weight.name != name):
            raise _broken(weight.name, f"is stored twice, once quantized as {printable(name)}")
        found.weights[weight.name] = weight
        found.owners |= dict.fromkeys(parts.used, weight.name)
    if found.weights:
        _check_method(settings, found)
        found.owners |= {name: None for name in stored if name.endswith(_OF_ACTIVATIONS)}
    for name, entry in stored.items():
        # Integers of one dimension are buffers, such as position_ids.
        if name not in found.owners and entry.dtype not in _FLOATS and len(entry.shape) > 1:
            raise _unknown_layout(name, entry.dtype, settings)
    return found


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            if stated := place.get(key):
                return stated if isinstance(stated, Mapping) else {"quant_method": stated}
    return {}


def _check_method(settings: Mapping[str, Any], found: QuantizedWeights) -> None:
    method = settings.get("quant_method")
    if method is not None and str(method).replace("_tensors", "-tensors") not in _METHODS:
        raise _unread(
            f"config.json: quantization_config.quant_method is {shown(method)}; "
            f"expected one of {', '.join(_METHODS)}. The tensors look like {found.describe()}"
        )
    if settings.get("transform_config"):
        raise _unread(
            "config.json: quantization_config.transform_config rotates the weights, which is not "
            "undone here; expected none"
        )


def _unknown_layout(name: str, dtype: str, settings: Mapping[str, Any]) -> UnsupportedModelError:
    method = settings.get("quant_method")
    stated = f"quantization_config: {printable(str(method), 40)}; " if method else ""
    return UnsupportedModelError(
        f"the checkpoint is already quantized in a layout that is not known ({stated}tensor "
        f"{printable(name)} is stored as {printable(dtype)}); expected BF16, F16 or F32, or the "
        f"scales of one of {', '.join(_METHODS)} beside it",
        next_step=_NEXT_STEP,
    )


@dataclass
class _Parts:
    """The tensors stored beside one weight; `used` are those that were taken."""

    base: str
    stored: Mapping[str, SafetensorsTensor]
    read: ReadTensor
    settings: Mapping[str, Any]
    metadata: Mapping[str, str]
    used: list[str] = field(default_factory=list)

    @property
    def own(self) -> str:
        """What follows the beginning in the weight's own name: nothing for stacked experts."""
        return ".weight" if f"{self.base}.weight" in self.stored else ""

    def has(self, ending: str) -> bool:
        return self.base + ending in self.stored

    def take(self, ending: str, dtypes: tuple[str, ...], *shape: int) -> SourceTensor:
        """A tensor that must be there, be of one of these types and, if given, of this shape."""
        name = self.base + ending
        if name not in self.stored:
            needed = f"is missing; the quantized weight {printable(self.base)} needs it"
            raise _broken(name, needed)
        self.used.append(name)
        tensor = self.read(name)
        if tensor.dtype not in dtypes:
            raise _broken(name, f"is {tensor.dtype}; expected {' or '.join(dtypes)}")
        if shape:
            self.expect(tensor, shape)
        return tensor

    def maybe(self, ending: str, dtypes: tuple[str, ...], *shape: int) -> SourceTensor | None:
        return self.take(ending, dtypes, *shape) if self.has(ending) else None

    def expect(self, tensor: SourceTensor, *shapes: tuple[int, ...], why: str = "") -> None:
        """Raise InputError unless a tensor has one of these shapes."""
        if tensor.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise _misshapen(tensor, f"{expected}{why and f' ({why})'}")

    def number(self, key: str) -> int | None:
        """A whole number of the settings; None where it is absent, or differs by layer."""
        value = self.settings.get(key)
        if value is None or self.settings.get("dynamic") or self.settings.get("extra_config"):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
            raise self.wrong(key, value, "a whole number")
        return value

    def wrong(self, key: str, value: object, expected: str) -> InputError:
        return InputError(
            f"config.json: quantization_config.{key} is {shown(value)}; expected {expected}",
            next_step="use the config.json that belongs to these weights",
        )

    def group_size(self, width: int, scales: SourceTensor, n_groups: int) -> int:
        """Columns per group, from the number of groups; the settings must agree."""
        stated = self.number("group_size")
        if stated is not None:
            size = width if stated in (-1, 0) else stated
            if -(-width // size) != n_groups:
                raise self.wrong(
                    "group_size", stated,
                    f"one that cuts {width} columns into the {n_groups} groups of tensor "
                    f"{printable(scales.name)}",
                )  # fmt: skip
            return size
        if width % max(n_groups, 1):
            fault = f"has {n_groups} groups, which do not divide {width} columns"
            raise _broken(scales.name, fault)
        return width // n_groups

    def groups(self, ending: str, width: int, size: int, n_groups: int) -> np.ndarray:
        """Each column's group: as listed where columns were quantized in another order."""
        index, plain = self.maybe(ending, ("I32", "I64"), width), np.arange(width) // size
        if index is None:
            return plain
        groups = index.data.astype(np.int64)
        if ending == ".weight_g_idx":
            groups = np.where(groups < 0, plain, groups)
        if groups.min() < 0 or groups.max() >= n_groups:
            found = f"holds groups {groups.min()} to {groups.max()}; expected 0 to {n_groups - 1}"
            raise _broken(index.name, found)
        return groups

    def weight(self, shape: tuple[int, ...], method: str, rows: ComputeRows) -> QuantizedWeight:
        return QuantizedWeight(f"{self.base}.weight", shape, method, rows)


Build = Callable[[_Parts], QuantizedWeight]


def _recognize(
    name: str, entry: SafetensorsTensor, stored: Mapping[str, SafetensorsTensor]
) -> tuple[str, Build] | None:
    """The beginning that all parts of a weight share, and what makes the weight of them."""
    for ending, build in _ENDINGS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), build
    module = name.removesuffix(".weight")
    if any(name + ending in stored for ending in (".absmax", ".quant_map", *_BNB_STATES)):
        return name, _bitsandbytes_4bit
    if entry.dtype == "I8" and f"{module}.SCB" in stored:
        return module, _bitsandbytes_8bit
    if entry.dtype == "U32" and f"{module}.scales" in stored and module != name:
        return module, _mlx
    if entry.dtype in (*_FP8, "I8", "U8"):
        scales = (f"{name}_scale", f"{name}_scale_inv", f"{module}.qscale_weight")
        if any(scale in stored for scale in scales):
            return module, _scaled
    return None


# -- one function per layout -----------------------------------------------------------------------


def _gptq_or_awq(parts: _Parts) -> QuantizedWeight:
    qweight = parts.take(".qweight", _WORDS)
    qzeros, scales = parts.take(".qzeros", _WORDS), parts.take(".scales", _SCALES)
    for tensor in (qweight, qzeros, scales):
        if len(tensor.shape) != 2:
            raise _misshapen(tensor, "two dimensions")
    packing = str(parts.settings.get("packing_format") or "gptq")
    if not packing.endswith(("gptq", "awq")):
        expected = "one that ends with gptq or awq"
        raise _unread_setting("packing_format", printable(packing, 60), expected)
    stated = f"{parts.settings.get('quant_method')} {parts.settings.get('packing_format')}"
    is_awq = stated.startswith("awq") or stated.endswith("awq")
    if not is_awq and "gptq" not in stated:
        is_awq = qweight.shape[1] * 8 == scales.shape[1]
    return (_awq if is_awq else _gptq)(parts, qweight, qzeros, scales)


def _gptq(
    parts: _Parts, qweight: SourceTensor, qzeros: SourceTensor, scales: SourceTensor
) -> QuantizedWeight:
    (n_words, height), n_groups = qweight.shape, scales.shape[0]
    parts.expect(scales, (n_groups, height), why="[groups, rows of the weight]")
    bits = parts.number("bits") or qzeros.shape[1] * 32 // height
    if bits not in (2, 3, 4, 8):
        raise parts.wrong("bits", bits, "2, 3, 4 or 8")
    parts.expect(qzeros, (n_groups, -(-height * bits // 32)), why=f"{bits} bits")
    layout = parts.settings.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2") or parts.settings.get("is_marlin_format"):
        raise _unread_setting("checkpoint_format", shown(layout), "gptq or gptq_v2")
    width = n_words * 32 // bits
    size = parts.group_size(width, scales, n_groups)
    if not parts.has(".g_idx") and parts.settings.get("desc_act") and n_groups > 1:
        raise _broken(
            f"{parts.base}.g_idx", "is missing; quantization_config.desc_act needs it, because "
            "columns were quantized in another order",
        )  # fmt: skip
    rows = formulas.grouped_rows(
        formulas.down_columns(qweight.data, bits, width),
        formulas.by_group(scales),
        formulas.across_rows(qzeros.data, bits, 0 if layout == "gptq_v2" else 1),
        parts.groups(".g_idx", width, size, n_groups),
    )
    return parts.weight((height, width), f"GPTQ, {bits} bits, {_groups(size, width)}", rows)


def _awq(
    parts: _Parts, qweight: SourceTensor, qzeros: SourceTensor, scales: SourceTensor
) -> QuantizedWeight:
    (width, n_words), n_groups = qweight.shape, scales.shape[0]
    version = str(parts.settings.get("version") or "gemm").lower()
    bits = parts.number("bits") or parts.number("w_bit") or 4
    if version not in ("gemm", "exllama", "ipex") or bits != 4:
        raise _unread(
            f"config.json: quantization_config is AWQ of version {printable(version, 40)} with "
            f"{bits} bits; expected gemm with 4 bits"
        )
    parts.expect(scales, (n_groups, 8 * n_words), why="[groups, rows of the weight]")
    parts.expect(qzeros, (n_groups, n_words))
    size = parts.group_size(width, scales, n_groups)
    rows = formulas.grouped_rows(
        formulas.awq_numbers(qweight.data),
        formulas.by_group(scales),
        formulas.awq_numbers(qzeros.data),
        np.arange(width) // size,
    )
    return parts.weight((8 * n_words, width), f"AWQ, 4 bits, {_groups(size, width)}", rows)


def _packed(parts: _Parts) -> QuantizedWeight:
    """compressed-tensors: integers in words, or FP4 in bytes."""
    packed = parts.take(".weight_packed", (*_WORDS, "U8"))
    if packed.dtype == "U8":
        scale, factor = parts.take(".weight_scale", _FP4_SCALES), 1.0
        if scale.dtype == "F8_E4M3":
            factor = 1 / _one_value(parts.take(".weight_global_scale", ("F32",)))
        return _fp4(parts, f"{parts.base}.weight", packed, scale, factor)
    shape = parts.take(".weight_shape", ("I32", "I64"), 2)
    height, width = (int(extent) for extent in shape.data)
    if len(packed.shape) != 2 or packed.shape[0] != height or not 0 < width < 2**31:
        found = f"{printable(packed.name)} has shape {list(packed.shape)}"
        raise _broken(shape.name, f"holds {[height, width]}, but {found}")
    weights = _stated_weights(parts)
    n_words = packed.shape[1]
    fitting = [bits for bits in (2, 4, 8) if -(-width * bits // 32) == n_words]
    stated = [w.get("num_bits") for w in weights]
    if not fitting or (stated and not any(bits in fitting for bits in stated)):
        raise _unread(
            f"tensor {printable(packed.name)} has {n_words} words for {width} columns; expected "
            f"2, 4 or 8 bits, config_groups states {shown(stated)}"
        )
    bits = fitting[0]
    scales = parts.take(".weight_scale", _SCALES)
    n_groups = scales.shape[1] if len(scales.shape) == 2 else 1
    parts.expect(scales, (height, n_groups), why="[rows of the weight, groups]")
    size = -(-width // n_groups)
    sizes = [w.get("group_size") or -1 for w in weights]
    if sizes and size not in sizes and not (n_groups == 1 and -1 in sizes):
        raise parts.wrong("config_groups.weights.group_size", sizes[0], f"{size}, because tensor "
                          f"{printable(scales.name)} has {n_groups} groups")  # fmt: skip
    groups = parts.groups(".weight_g_idx", width, size, n_groups)
    find = parts.maybe if _is_symmetric(parts) else parts.take
    zeros = find(".weight_zero_point", _WORDS, -(-height * bits // 32), n_groups)
    rows = formulas.grouped_rows(
        formulas.along_rows(packed.data, bits, width),
        formulas.by_row(scales),
        # Packed along the column, as the words are along the row.
        1 << (bits - 1) if zeros is None else formulas.across_rows(zeros.data.T, bits),
        groups,
    )
    method = f"compressed-tensors, {bits} bits, {_groups(size, width)}"
    return parts.weight((height, width), method, rows)


def _stated_weights(parts: _Parts) -> list[Mapping[str, Any]]:
    """What compressed-tensors states of weights, by group of modules."""
    groups = parts.settings.get("config_groups")
    listed = groups.values() if isinstance(groups, Mapping) else ()
    found = [group.get("weights") for group in listed if isinstance(group, Mapping)]
    return [weights for weights in found if isinstance(weights, Mapping)]


def _fp4(
    parts: _Parts, name: str, packed: SourceTensor, stored: SourceTensor, factor: float
) -> QuantizedWeight:
    """FP4 numbers, two in a byte, with one scale per group: MXFP4 or NVFP4."""
    scale = _exponents(stored)
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    layout = _layout(parts, shape, scale, (1, 16 if scale.dtype == "F8_E4M3" else 32))
    kind = "NVFP4" if scale.dtype == "F8_E4M3" else "MXFP4"
    rows = formulas.fp4_rows(
        packed.data.reshape(-1, packed.shape[-1]), replace(layout, factor=factor)
    )
    return QuantizedWeight(name, shape, kind, rows)


def _mxfp4_blocks(parts: _Parts) -> QuantizedWeight:
    """gpt-oss: blocks of 16 bytes."""
    blocks = parts.take("_blocks", ("U8",))
    *lead, n_groups, n_bytes = blocks.shape if len(blocks.shape) > 2 else (0, 0, 0)
    if n_bytes != 16:
        raise _misshapen(blocks, "[rows, groups, 16]")
    packed = SourceTensor(
        blocks.name, "U8", (*lead, 16 * n_groups), blocks.data.reshape(*lead, 16 * n_groups)
    )
    scales = parts.take("_scales", ("U8", "F8_E8M0"))
    weight = _fp4(parts, parts.base, packed, scales, 1.0)
    rows = formulas.mxfp4_blocks(matrix(packed), matrix(scales))
    return replace(weight, mxfp4=rows)


def _scaled(parts: _Parts) -> QuantizedWeight:
    """FP8 or int8 with scales; FP4 of ModelOpt, two in a byte."""
    weight, name = parts.take(parts.own, (*_FP8, "I8", "U8")), parts.base + parts.own
    endings = (f"{parts.own}_scale", f"{parts.own}_scale_inv", ".qscale_weight")
    scale = parts.take(next(filter(parts.has, endings)), (*_SCALES, *_FP4_SCALES))
    if weight.dtype == "U8":
        factor = parts.take(f"{parts.own}_scale_2", ("F32",))
        return _fp4(parts, name, weight, scale, _one_value(factor))
    layout = _layout(parts, weight.shape, _exponents(scale), _block(parts))
    zeros = _zeros(parts, f"{parts.own}_zero_point", layout, _is_symmetric(parts))
    kind = "int8" if weight.dtype == "I8" else f"FP8 ({weight.dtype.removeprefix('F8_')})"
    rows = formulas.scaled_rows(weight, layout, zeros)
    return QuantizedWeight(name, weight.shape, f"{kind}, {_describe_layout(layout, weight)}", rows)


def _is_symmetric(parts: _Parts) -> bool:
    """Whether zero points may be absent: compressed-tensors states where they may not."""
    stated = [weights.get("symmetric") for weights in _stated_weights(parts)]
    return not stated or any(value is not False for value in stated)


def _zeros(parts: _Parts, ending: str, layout: BlockScales, may_lack: bool) -> BlockScales | None:
    """Zero points in the layout of the scales; None where there are none."""
    zero = (parts.maybe if may_lack else parts.take)(ending, ("I8", "I32", *_SCALES))
    if zero is None:
        return None
    parts.expect(zero, layout.scale.shape, why="as the scales")
    return replace(layout, scale=zero)


def _block(parts: _Parts) -> tuple[int, int] | None:
    """Rows and columns of a block of scales, as stated; None where nothing is."""
    stated = [w.get("block_structure") for w in _stated_weights(parts)]
    found = [parts.settings.get("weight_block_size"), *stated]
    value = next((each for each in found if each is not None), None)
    if value is None:
        return None
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or not all(type(n) is int and 0 < n < 2**31 for n in value):
        raise parts.wrong("weight_block_size", value, "two whole numbers, such as [128, 128]")
    return value[0], value[1]


def _layout(
    parts: _Parts, shape: tuple[int, ...], scale: SourceTensor, stated: tuple[int, int] | None
) -> BlockScales:
    """Which rows and columns share a scale, from the shapes of both."""
    if len(shape) < 2:
        fault = f"is quantized, of shape {list(shape)}; expected at least two dimensions"
        raise _broken(parts.base, fault)
    (*lead, height, width), got = shape, scale.shape
    block = stated or _USUAL_BLOCK
    blocks = (*lead, -(-height // block[0]), -(-width // block[1]))
    if scale.data.size == 1 and (stated is None or len(got) < 2 or got == blocks):
        return BlockScales(scale, math.prod(shape[:-1]), math.prod(shape[:-1]), width)
    if got in ((*lead, height), (*lead, height, 1)):
        return BlockScales(scale, height, 1, width)
    if lead and got in ((*lead,), (*lead, 1), (*lead, 1, 1)):
        return BlockScales(scale, height, height, width)
    if got[:-1] == (*lead, height) and got != blocks and width % got[-1] == 0:
        return BlockScales(scale, height, 1, width // got[-1])
    parts.expect(
        scale, (1,), (*lead, height), (*lead, height, 1), blocks,
        why=f"a weight of {list(shape)} in blocks of {block[0]} × {block[1]}",
    )  # fmt: skip
    return BlockScales(scale, height, *block)


_STATE: Schema = {
    "shape": ListOf(Whole(1, MAX_INT), 8), "blocksize": Whole(1, 65_536),
    "nested_blocksize": Whole(1, 65_536), "nested_offset": Real(-MAX_FIGURE),
}  # fmt: skip
_BNB_STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")


def _bitsandbytes_4bit(parts: _Parts) -> QuantizedWeight:
    weight = parts.take("", ("U8", "I8", "F16", "BF16", "F32"))
    ending = next(filter(parts.has, _BNB_STATES), _BNB_STATES[0])
    state = parts.take(ending, ("U8",))
    values = _read_state(state)
    shape, block = tuple(values["shape"]), values["blocksize"]
    n_values = math.prod(shape)
    octets = weight.data.reshape(-1).view(np.uint8)
    if octets.size < -(-n_values // 2):
        raise _broken(
            weight.name, f"has {octets.size} bytes; expected {-(-n_values // 2)} for the shape "
            f"{list(shape)} in {printable(state.name)}",
        )  # fmt: skip
    n_blocks = -(-n_values // block)
    code = parts.take(".quant_map", ("F32",), 16)
    absmax = parts.take(".absmax", ("U8", "F32"), n_blocks)
    scales = NestedScales(absmax.data)
    if absmax.dtype == "U8":
        outer, offset = values["nested_blocksize"], values["nested_offset"]
        scales = NestedScales(
            absmax.data,
            parts.take(".nested_quant_map", ("F32",), 256).data,
            parts.take(".nested_absmax", ("F32",), -(-n_blocks // outer)).data,
            outer,
            float(offset),
        )
    rows = formulas.bnb_rows(octets[: -(-n_values // 2)], code.data, scales, block, shape[-1])
    nested = ", scales quantized too" if absmax.dtype == "U8" else ""
    method = f"bitsandbytes {ending[-3:]}, blocks of {block}{nested}"
    return QuantizedWeight(parts.base, shape, method, rows)


def _read_state(state: SourceTensor) -> Mapping[str, Any]:
    """The JSON that bitsandbytes stores in a tensor, checked."""
    try:
        if state.data.size > _MOST_STATE_BYTES:
            raise ValueError
        found = json.loads(state.data.tobytes())
    except (ValueError, RecursionError):
        fault = "holds no JSON; expected bitsandbytes' shape and blocksize"
        raise _broken(state.name, fault) from None
    where, needed = f"tensor {printable(state.name)}", frozenset(("shape", "blocksize"))
    try:
        check_fields(found, _STATE, where, required=needed, others=True)
    except InputError as error:
        raise InputError(str(error), next_step=_AGAIN) from None
    if not found["shape"]:
        raise _broken(state.name, "has an empty shape; expected rows and columns")
    # Without double quantization these two are absent.
    return {"nested_blocksize": 256, "nested_offset": 0.0, **found}


def _bitsandbytes_8bit(parts: _Parts) -> QuantizedWeight:
    weight = parts.take(".weight", ("I8",))
    parts.expect(weight, weight.shape[:2], why="[rows, columns]")
    scale = parts.take(".SCB", _SCALES, weight.shape[0])
    layout = parts.maybe(".weight_format", ("U8",))
    if layout is not None and layout.data.any():
        raise _unread(
            f"tensor {printable(layout.name)} is {layout.data.reshape(-1)[0]}; expected 0 (rows)"
        )
    scales = BlockScales(scale, weight.shape[0], 1, weight.shape[1], factor=1 / 127)
    rows = formulas.scaled_rows(weight, scales)
    return parts.weight(weight.shape, "bitsandbytes int8", rows)


# Mode, bits and columns per group → what the scales are.
_MLX_FLOATS = {
    ("mxfp4", 4, 32): "F8_E8M0", ("mxfp8", 8, 32): "F8_E8M0", ("nvfp4", 4, 16): "F8_E4M3",
}  # fmt: skip


def _mlx(parts: _Parts) -> QuantizedWeight:
    own = parts.settings.get(parts.base)
    if isinstance(own, Mapping):
        parts.settings = own
    weight = parts.take(".weight", ("U32",))
    scales = parts.take(".scales", (*_SCALES, "U8"))
    mode = parts.settings.get("mode", "affine")
    bits, size = parts.number("bits"), parts.number("group_size")
    n_groups, n_words = scales.shape[-1], weight.shape[-1]
    if size is None and bits:
        size = n_words * 32 // bits // n_groups
    if size is None or size < 1:
        raise parts.wrong("group_size", size, "the number of columns per group")
    width = n_groups * size
    bits = bits or n_words * 32 // width
    parts.expect(scales, (*weight.shape[:-1], n_groups))
    if bits not in (2, 3, 4, 5, 6, 8) or width * bits != n_words * 32:
        raise parts.wrong(
            "group_size", size,
            f"{n_words * 32 // max(bits, 1) // n_groups} for {bits} bits, because tensor "
            f"{printable(weight.name)} has {n_words} words and {printable(scales.name)} "
            f"{n_groups} groups",
        )  # fmt: skip
    name, shape = f"{parts.base}.weight", (*weight.shape[:-1], width)
    words = weight.data.reshape(-1, n_words)
    if scales.dtype == "U8":
        scale_type = _MLX_FLOATS.get((str(mode), bits, size))
        if scale_type is None:
            raise parts.wrong("mode", mode, "affine, mxfp4, mxfp8 or nvfp4 with its own group size")
        layout = BlockScales(replace(scales, dtype=scale_type), shape[-2], 1, size)
        octets = words.view(np.uint8)
        stored = SourceTensor(name, "F8_E4M3", octets.shape, octets)
        rows = (formulas.fp4_rows(octets, layout) if bits == 4
                else formulas.scaled_rows(stored, layout))  # fmt: skip
        return parts.weight(shape, f"MLX {mode}", rows)
    biases = parts.take(".biases", _SCALES, *scales.shape)
    rows = formulas.affine_rows(
        formulas.along_rows(words, bits, width),
        formulas.by_row(scales),
        formulas.by_row(biases),
        np.arange(width) // size,
    )
    return parts.weight(shape, f"MLX, {bits} bits, groups of {size}", rows)


def _torchao(parts: _Parts) -> QuantizedWeight:
    name = f"{parts.base}.weight"
    try:
        stated = json.loads(parts.metadata.get(name, ""))
        kind, data = stated["_type"], stated["_data"]
    except (ValueError, RecursionError, KeyError, TypeError):
        kind, data = None, None
    known = ("Int4Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")
    if kind not in known or not isinstance(data, Mapping):
        raise _unread(
            f"the header's entry for {printable(name)} has type {shown(kind)}; "
            f"expected one of torchao's {', '.join(known)}"
        )
    weight = parts.take("._weight_qdata", (*_FP8, "I8", "U8"))
    parts.maybe("._weight_act_quant_scale", _SCALES)
    scale = parts.take("._weight_scale", _SCALES)
    if parts.maybe("._weight_act_pre_scale", _SCALES) is not None:
        raise _unread(
            f"tensor {printable(parts.base)}._weight_act_pre_scale scales what the layer reads, "
            "which is not undone here; expected none"
        )
    if kind != "Int4Tensor":
        layout = _layout(parts, weight.shape, scale, None)
        listed = stated.get("_tensor_data_names")
        may_lack = not (isinstance(listed, list) and "zero_point" in listed)
        zeros = _zeros(parts, "._weight_zero_point", layout, may_lack)
        rows = formulas.scaled_rows(weight, layout, zeros)
        return parts.weight(weight.shape, f"torchao {kind}", rows)
    if len(weight.shape) != 2 or len(scale.shape) != 2:
        raise _misshapen(weight, "two dimensions")
    (height, n_bytes), n_groups = weight.shape, scale.shape[0]
    width = 2 * n_bytes
    parts.expect(scale, (n_groups, height), why="[groups, rows of the weight]")
    size, block = width // n_groups, data.get("block_size")
    if size * n_groups != width or (block is not None and block != [1, size]):
        raise _broken(
            name, f"has block_size {shown(block)} in the header's entry; expected [1, {width} "
            f"columns / {n_groups} groups]",
        )  # fmt: skip
    zero = parts.take("._weight_zero_point", _SCALES, *scale.shape)
    rows = formulas.affine_rows(
        formulas.signed_nibbles(weight.data),
        formulas.by_group(scale),
        formulas.by_group(zero),
        np.arange(width) // size,
    )
    return parts.weight((height, width), f"torchao int4, groups of {size}", rows)


_ENDINGS: dict[str, Build] = {
    ".qweight": _gptq_or_awq,
    ".weight_packed": _packed,
    "_blocks": _mxfp4_blocks,
    "._weight_qdata": _torchao,
}


# -- pieces ----------------------------------------------------------------------------------------


def _broken(name: str, fault: str) -> InputError:
    return InputError(f"tensor {printable(name)} {fault}", next_step=_AGAIN)


def _misshapen(tensor: SourceTensor, expected: str) -> InputError:
    return _broken(tensor.name, f"has shape {list(tensor.shape)}; expected {expected}")


def _unread_setting(key: str, value: str, expected: str) -> UnsupportedModelError:
    return _unread(f"config.json: quantization_config.{key} is {value}; expected {expected}")


def _unread(fault: str) -> UnsupportedModelError:
    return UnsupportedModelError(fault, next_step=_NEXT_STEP)


def _exponents(scale: SourceTensor) -> SourceTensor:
    """Bytes that stand for powers of two, under the name of their type."""
    return replace(scale, dtype="F8_E8M0") if scale.dtype == "U8" else scale


def _one_value(tensor: SourceTensor) -> float:
    value = float(tensor.data.reshape(-1)[0])
    if tensor.data.size != 1 or not is_finite(value) or not value:
        found = f"holds {tensor.data.size} values, the first {value}"
        raise _broken(tensor.name, f"{found}; expected one finite number other than 0")
    return value


def _groups(size: int, width: int) -> str:
    return "one scale per row" if size >= width else f"groups of {size}"


def _describe_layout(layout: BlockScales, weight: SourceTensor) -> str:
    if layout.n_columns >= weight.shape[-1]:
        return "one scale per row" if layout.n_rows == 1 else "one scale per tensor"
    return f"blocks of {layout.n_rows} × {layout.n_columns}"
