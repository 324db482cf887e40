"""Checkpoints that are quantized already: every layout's numbers, and every way of being broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.source.dequantize import decode
from boardfit.converters.source.resolve import open_model
from boardfit.edge.errors import EdgeError, InputError, UnsupportedModelError
from tests.converters.families.checkpoints import write_safetensors
from tests.converters.source.layouts import LAYOUTS, Layout, bitsandbytes_4bit, e4m3, fp8, gptq
from tests.converters.source.test_hf import edit_json

MODULE = "model.layers.0.mlp.up_proj"
NAME = f"{MODULE}.weight"


def write_layout(folder: Path, layout: Layout, module: str = MODULE) -> Path:
    """A checkpoint of one quantized weight and a norm."""
    folder.mkdir(exist_ok=True)
    norm = {"model.norm.weight": ("F32", np.ones(8, np.float32))}
    tensors = {module + ending: stored for ending, stored in layout.tensors.items()}
    metadata = {module + ending: text for ending, text in layout.metadata.items()}
    write_safetensors(folder / "model.safetensors", tensors | norm, metadata)
    return folder


def open_layout(folder: Path, layout: Layout) -> SafetensorsCheckpoint:
    return SafetensorsCheckpoint(folder, {"quantization_config": layout.config})


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("shape", [(64, 128), (160, 192)])
def test_numbers_of_every_layout(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    layout = LAYOUTS[kind](np.random.default_rng(1), *shape)
    found = open_layout(write_layout(tmp_path, layout), layout)
    assert sorted(found.names()) == [NAME, "model.norm.weight"]
    tensor = found.tensor(NAME)
    assert (tensor.shape, tensor.dtype) == (shape, "F32")
    # Products of three numbers differ in the last bit with the order of multiplication.
    np.testing.assert_allclose(np.asarray(tensor.data), layout.weight, rtol=3e-7, atol=0)
    chosen = np.array([5, 3, 40, 63])
    np.testing.assert_array_equal(tensor.data[chosen], np.asarray(tensor.data)[chosen])
    assert found.quantized and found.quantized.endswith("(1 tensors)")


@pytest.mark.parametrize(
    ("dtype", "exponent_bits", "bias"), [("F8_E4M3", 4, 7), ("F8_E5M2", 5, 15)]
)
def test_every_fp8_number(dtype: str, exponent_bits: int, bias: int) -> None:
    fraction_bits = 7 - exponent_bits
    for code, got in enumerate(decode(np.arange(256, dtype=np.uint8), dtype)):
        exponent = code >> fraction_bits & (1 << exponent_bits) - 1
        fraction = (code & (1 << fraction_bits) - 1) / (1 << fraction_bits)
        if dtype == "F8_E5M2" and exponent == 31:
            assert np.isnan(got) if fraction else np.isinf(got)
        elif code & 127 == 127:
            assert np.isnan(got)
        else:
            size = (1 + fraction) * 2.0 ** (exponent - bias) if exponent else (
                fraction * 2.0 ** (1 - bias))  # fmt: skip
            assert got == (-size if code & 128 else size)


def test_odd_rows_of_bitsandbytes(tmp_path: Path) -> None:
    layout = bitsandbytes_4bit(nested=True)(np.random.default_rng(2), 7, 33)
    found = open_layout(write_layout(tmp_path, layout), layout)
    np.testing.assert_array_equal(np.asarray(found.tensor(NAME).data), layout.weight)


@pytest.mark.parametrize("size", [48, 128])
def test_last_group_or_block_may_be_short(size: int, tmp_path: Path) -> None:
    for writer in (gptq(size=size), fp8(block=size)):
        layout = writer(np.random.default_rng(3), 72, 160)
        found = open_layout(write_layout(tmp_path, layout), layout)
        np.testing.assert_array_equal(np.asarray(found.tensor(NAME).data), layout.weight)


def test_stacked_experts_of_mxfp4(tmp_path: Path) -> None:
    flat = LAYOUTS["mxfp4"](np.random.default_rng(4), 96, 64)
    octets, scales = flat.tensors[".weight_packed"][1], flat.tensors[".weight_scale"][1]
    stacked = {
        "_blocks": ("U8", octets.reshape(3, 32, 2, 16)),
        "_scales": ("U8", scales.reshape(3, 32, 2)),
    }
    layout = Layout(stacked, flat.weight.reshape(3, 32, 64), {"quant_method": "mxfp4"})
    found = open_layout(write_layout(tmp_path, layout, "experts.up_proj"), layout)
    tensor = found.tensor("experts.up_proj")
    np.testing.assert_array_equal(np.asarray(tensor.data), layout.weight)
    np.testing.assert_array_equal(np.asarray(tensor.data[1, 3:9]), layout.weight[1, 3:9])


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (3, 32, 1)])
def test_stacked_experts_of_fp8(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 120, (3, 32, 64)).astype(np.uint8)
    scales = rng.uniform(0.5, 2, shape).astype(np.float32)
    tensors = {"": ("F8_E4M3", codes), "_scale": ("F32", scales)}
    layout = Layout(tensors, codes, {"quant_method": "fp8"})
    found = open_layout(write_layout(tmp_path, layout, "experts.up_proj"), layout)
    values = np.vectorize(e4m3)(codes).astype(np.float32)
    expected = values * scales.reshape(*shape, *[1] * (3 - len(shape)))
    tensor = found.tensor("experts.up_proj")
    np.testing.assert_array_equal(np.asarray(tensor.data), expected)
    np.testing.assert_array_equal(np.asarray(tensor.data[2]), expected[2])


def change(ending: str, how: Callable[[np.ndarray], np.ndarray], kind: str | None = None) -> Any:
    def edit(layout: Layout) -> None:
        dtype, array = layout.tensors[ending]
        layout.tensors[ending] = (kind or dtype, how(array))

    return edit


def set_config(**settings: object) -> Any:
    return lambda layout: layout.config.update(settings)


def drop(ending: str) -> Any:
    return lambda layout: layout.tensors.pop(ending)


def state(**values: object) -> Any:
    ending = ".weight.quant_state.bitsandbytes__nf4"

    def how(array: np.ndarray) -> np.ndarray:
        text = json.dumps({**json.loads(array.tobytes()), **values})
        return np.frombuffer(text.encode(), np.uint8)

    return change(ending, how)


BROKEN = {
    "group size": ("gptq", set_config(group_size=64), ("group_size", "is 64", "4 groups")),
    "group size no number": ("gptq", set_config(group_size="x"), ("group_size", "'x'")),
    "huge group size": ("awq", set_config(group_size=2**40), ("group_size", "whole number")),
    "bits": ("gptq", set_config(bits=8), ("qzeros", "[4, 8]", "[4, 16]", "8 bits")),
    "five bits": ("gptq", set_config(bits=5), ("bits", "is 5", "2, 3, 4 or 8")),
    "scales": ("gptq", change(".scales", lambda a: a[:, :32]), (".scales", "[4, 32]", "[4, 64]")),
    "scales in one row": ("gptq", change(".scales", lambda a: a[0]), (".scales", "two dim")),
    "g_idx absent": ("gptq-act-order", drop(".g_idx"), (".g_idx", "missing", "desc_act")),
    "g_idx too large": ("gptq", change(".g_idx", lambda a: a + 4), (".g_idx", "4 to 7", "0 to 3")),
    "g_idx below 0": ("gptq", change(".g_idx", lambda a: a - 1), (".g_idx", "-1 to 2")),
    "g_idx short": ("gptq", change(".g_idx", lambda a: a[1:]), (".g_idx", "[127]", "[128]")),
    "marlin": ("gptq", set_config(checkpoint_format="marlin"), ("checkpoint_format", "'marlin'")),
    "packing": ("gptq", set_config(packing_format="auto_round:own"), ("packing_format", "own")),
    "zeros absent": ("awq", drop(".qzeros"), (".qzeros", "missing")),
    "gemv": ("awq", set_config(version="gemv"), ("gemv", "gemm")),
    "floats as words": ("awq", change(".qweight", np.asarray, "F32"), (".qweight", "F32", "I32")),
    "method": ("fp8-row", set_config(quant_method="hqq"), ("quant_method", "'hqq'", "gptq")),
    "method a list": ("fp8-row", set_config(quant_method=[1]), ("quant_method", "[1]")),
    "rotations": ("fp8-row", set_config(transform_config={"R1": {}}), ("transform_config",)),
    "blocks": ("fp8-block", set_config(weight_block_size=[64, 64]),
               ("weight_scale_inv", "[1, 1]", "[1, 2]", "64 × 64")),
    "blocks of no size": ("fp8-block", set_config(weight_block_size=[0, 128]),
                          ("weight_block_size", "[0, 128]")),
    "scale of rows": ("fp8-row", change(".weight_scale", lambda a: a[:9]), ("[9, 1]", "[64, 1]")),
    "zero point": ("int8-rows", change(".weight_zero_point", lambda a: a[:9]), ("[9, 1]",)),
    "packed bits": ("compressed-4bit", change(".weight_packed", lambda a: a[:, :13]),
                    ("weight_packed", "13 words", "128 columns")),
    "packed rows": ("compressed-4bit", change(".weight_packed", lambda a: a[1:]),
                    ("weight_shape", "[64, 128]", "[63, 16]")),
    "packed shape": ("compressed-4bit", change(".weight_shape", lambda a: a - 300), ("[-236, ",)),
    "packed groups": ("compressed-4bit", change(".weight_scale", lambda a: a[:, :2]),
                      ("group_size", "32", "64", "2 groups")),
    "groups a list": ("compressed-4bit", lambda layout: (
        layout.config.update(config_groups=["x"]), layout.tensors.pop(".weight_shape")),
        (".weight_shape", "missing")),
    "no absmax": ("bitsandbytes-nf4", drop(".weight.absmax"), (".absmax", "missing")),
    "short absmax": ("bitsandbytes-nf4", change(".weight.absmax", lambda a: a[:5]), ("[5]",)),
    "short weight": ("bitsandbytes-nf4", change(".weight", lambda a: a[:99]), ("99 bytes",)),
    "no state": ("bitsandbytes-nf4", drop(".weight.quant_state.bitsandbytes__nf4"), ("missing",)),
    "state no JSON": ("bitsandbytes-nf4", change(".weight.quant_state.bitsandbytes__nf4",
                      lambda a: a[:9]), ("quant_state", "JSON")),
    "state's block": ("bitsandbytes-nf4", state(blocksize=0), ("blocksize", "got 0", "65536")),
    "state's shape": ("bitsandbytes-nf4", state(shape=[64, -1]), ("shape", "[64, -1]")),
    "state's empty shape": ("bitsandbytes-nf4", state(shape=[]), ("shape", "empty")),
    "state's offset": ("bitsandbytes-nf4", state(nested_offset="x"), ("nested_offset", "'x'")),
    "mlx mode": ("mlx-mxfp4", set_config(mode="x"), ("mode", "'x'", "mxfp4")),
    "column format": ("bitsandbytes-int8", change(".weight_format", lambda a: a + 1),
                      ("weight_format", "is 1", "0 (rows)")),
    "mlx bits": ("mlx", set_config(bits=8), ("group_size", "64", "32 for 8 bits")),
    "mlx without settings": ("mlx", lambda layout: layout.config.clear(), ("group_size", "None")),
    "mlx biases": ("mlx", drop(".biases"), (".biases", "missing")),
    "no zero points": ("compressed-4bit-zeros", drop(".weight_zero_point"), ("missing",)),
    "no zero points of rows": ("int8-rows", drop(".weight_zero_point"), ("missing",)),
    "no zero points of torchao": ("torchao-intx", drop("._weight_zero_point"), ("missing",)),
    "no global scale": ("nvfp4", drop(".weight_global_scale"), ("global_scale", "missing")),
    "global scale": ("nvfp4", change(".weight_global_scale", lambda a: a * 0), ("global_scale",)),
    "torchao type": ("torchao-int4", lambda layout: setattr(layout, "metadata", {}),
                     ("torchao", "Int4Tensor")),
    "torchao groups": ("torchao-int4", change("._weight_scale", lambda a: a[:3]), ("3 groups",)),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_parts_are_named(fault: str, tmp_path: Path) -> None:
    kind, edit, words = BROKEN[fault]
    layout = LAYOUTS[kind](np.random.default_rng(1), 64, 128)
    edit(layout)
    with pytest.raises((InputError, UnsupportedModelError)) as caught:
        open_layout(write_layout(tmp_path, layout), layout)
    message = str(caught.value)
    assert message.isprintable() and caught.value.next_step
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


NUMPY = {
    "U8": np.uint8, "I8": np.int8, "I32": np.int32, "U32": np.uint32, "I64": np.int64,
    "F16": np.float16, "F32": np.float32, "F8_E4M3": np.uint8, "F8_E8M0": np.uint8,
}  # fmt: skip
VALUES = (None, 0, -1, 3, 8, 64, 2**70, 1.5, "x", [], [1, 2, 3], {}, {"a": 1}, True, "awq")
KEYS = ("bits", "group_size", "quant_method", "weight_block_size", "config_groups", "mode")


def mutate(rng: np.random.Generator, layout: Layout) -> None:
    """Change one tensor or setting into something else."""
    name = str(rng.choice(list(layout.tensors)))
    dtype, array = layout.tensors.pop(name)
    other = str(rng.choice(list(NUMPY)))
    with np.errstate(all="ignore"):
        kinds: list[tuple[str, np.ndarray]] = [
            (other, np.nan_to_num(array).astype(NUMPY[other])),
            (dtype, array.reshape(-1)[: max(1, array.size - 3)]),
            (dtype, array.T),
            (dtype, array[None]),
            (dtype, array),
        ]
    choice = int(rng.integers(len(kinds) + 1))
    if choice < len(kinds):
        layout.tensors[name] = kinds[choice]
    if choice == len(kinds) - 1:
        layout.config[str(rng.choice(KEYS))] = VALUES[int(rng.integers(len(VALUES)))]


def test_nothing_but_our_own_errors(tmp_path: Path) -> None:
    """What opens after a change can be read to its last row."""
    rng, n_opened = np.random.default_rng(11), 0
    for number in range(200):
        layout = LAYOUTS[list(LAYOUTS)[number % len(LAYOUTS)]](rng, 32, 64)
        mutate(rng, layout)
        if not layout.tensors:
            continue
        write_layout(tmp_path, layout)
        with np.errstate(all="ignore"):
            try:
                found = open_layout(tmp_path, layout)
                tensors = [found.tensor(name) for name in found.names()]
            except EdgeError as error:
                assert str(error).isprintable()
                continue
            for tensor in tensors:
                assert np.asarray(tensor.data).shape == tensor.shape
            n_opened += 1
    assert n_opened > 10


def test_a_weight_stored_twice(tmp_path: Path) -> None:
    layout = gptq()(np.random.default_rng(1), 64, 128)
    layout.tensors[".weight"] = ("F16", np.zeros((64, 128), np.float16))
    with pytest.raises(InputError, match="stored twice"):
        open_layout(write_layout(tmp_path, layout), layout)


@pytest.mark.parametrize("dtype", ["U8", "I8", "I32", "F8_E5M2"])
def test_an_unknown_layout_is_refused(dtype: str, tmp_path: Path) -> None:
    kinds = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "F8_E5M2": np.uint8}
    layout = Layout({".W_q": (dtype, np.zeros((8, 8), kinds[dtype]))}, np.zeros(0), {})
    with pytest.raises(UnsupportedModelError, match=rf"already quantized.*W_q.*{dtype}"):
        SafetensorsCheckpoint(write_layout(tmp_path, layout), {})


@pytest.fixture
def quantized(checkpoint: Path) -> Path:
    """The tiny Llama with projections of layer 0 as GPTQ and of layer 1 as FP8 blocks."""
    found = SafetensorsCheckpoint(checkpoint, json.loads((checkpoint / "config.json").read_text()))
    rng, tensors = np.random.default_rng(6), dict[str, tuple[str, np.ndarray]]()
    for name in found.names():
        source = found.tensor(name)
        if not name.endswith("_proj.weight"):
            tensors[name] = (source.dtype, source.data)
            continue
        writer = gptq(act_order=True) if ".layers.0." in name else fp8(block=128)
        layout = writer(rng, *source.shape)
        module = name.removesuffix(".weight")
        tensors |= {module + ending: stored for ending, stored in layout.tensors.items()}
    for shard in [*checkpoint.glob("model*")]:
        shard.unlink()
    write_safetensors(checkpoint / "model.safetensors", tensors)
    return checkpoint


def test_a_whole_model_is_planned_and_named(quantized: Path) -> None:
    """Sizes come from the shapes of the floats, and the manifest's source names the layouts."""
    edit_json(quantized / "config.json", lambda c: c.update(quantization_config={"bits": 4}))
    spec = open_model(quantized)
    query = next(t for t in spec.tensors if t.name == "blk.0.attn_q.weight")
    assert query.shape == (64, 64) and query.read(3, 9).shape == (6, 64)
    assert spec.shape.n_params == sum(tensor.n_elements for tensor in spec.tensors)
    assert any("quantized already: GPTQ, 4 bits" in note and "FP8" in note for note in spec.notes)
    assert spec.source.quantized and "groups of 32 (7 tensors)" in spec.source.quantized
    for recipe in ("f16", "q4_k_m"):
        weights = WeighingScale(spec).weigh(load_recipe(recipe))
        assert weights.n_params == spec.shape.n_params
