"""Quantized checkpoints against upstream's converter: the layouts that it dequantizes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.layout import to_f32
from boardfit.edge.files.gguf import read_header
from tests.converters.families.cases_llama import llama
from tests.converters.families.checkpoints import (
    Case,
    decoder_shapes,
    random_values,
    write_safetensors,
)
from tests.converters.families.oracle import convert_upstream, our_spec
from tests.converters.source.layouts import LAYOUTS

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
KINDS = (
    "gptq", "gptq-8bit", "gptq-act-order", "gptq-v2-act-order", "compressed-4bit",
    "compressed-4bit-zeros", "fp8-block", "fp8-tensor", "fp8-mistral",
)  # fmt: skip


def write_quantized(kind: str, directory: Path) -> Case:
    """A Llama whose projections are in one layout; sizes divide into its groups."""
    config: dict[str, Any] = llama(
        hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96,
    )  # fmt: skip
    rng, tensors = np.random.default_rng(0), dict[str, tuple[str, np.ndarray]]()
    for name, shape in decoder_shapes(config).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = ("BF16", random_values(rng, shape, "BF16"))
            continue
        layout = LAYOUTS[kind](rng, *shape)
        config["quantization_config"] = layout.config
        module = name.removesuffix(".weight")
        tensors |= {module + ending: stored for ending, stored in layout.tensors.items()}
    if kind == "fp8-mistral":
        # Upstream ignores scales of activations under the names of this layout only.
        tensors = {n.replace(".input_scale", ".qscale_act"): t for n, t in tensors.items()}
    if kind.startswith("fp8"):
        tensors = {
            n.replace(".weight_scale", ".weight_scale_inv").replace("_inv_inv", "_inv")
            .replace(".input_scale", ".activation_scale"): t
            for n, t in tensors.items()
        }  # fmt: skip
    directory.mkdir()
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config))
    return Case(kind, config, {})


@pytest.fixture(scope="module")
def converted_quantized(
    tmp_path_factory: pytest.TempPathFactory, oracle_python: Path, llama_cpp_tree: Path
) -> tuple[Path, dict[str, Case]]:
    work = tmp_path_factory.mktemp("quantized")
    cases = {kind: write_quantized(kind, work / kind) for kind in KINDS}
    convert_upstream((), work, oracle_python, llama_cpp_tree, ready=list(cases.values()))
    return work, cases


@pytest.mark.parametrize("kind", KINDS)
def test_equals_upstreams_floats(
    kind: str, converted_quantized: tuple[Path, dict[str, Case]]
) -> None:
    work, cases = converted_quantized
    refused = work / f"{kind}.refused"
    assert not refused.exists(), f"upstream refused the case:\n{refused.read_text()}"
    found = our_spec(cases[kind], work / kind)
    assert isinstance(found, tuple)
    header = read_header(work / f"{kind}.gguf")
    data = np.memmap(work / f"{kind}.gguf", np.uint8, "r")
    # Upstream appends weights that it made to the end.
    assert sorted(t.name for t in found[1]) == sorted(t.name for t in header.tensors)
    theirs = {tensor.name: tensor for tensor in header.tensors}
    for tensor in found[1]:
        other = theirs[tensor.name]
        assert (tensor.shape, other.type_name) == (tuple(reversed(other.dims)), "F32")
        start = header.data_offset + other.offset
        expected = data[start : start + other.nbytes].view(np.float32)
        got = to_f32(tensor.read(0, tensor.n_rows), tensor.source_type).reshape(-1)
        np.testing.assert_array_equal(got, expected, tensor.name)
