"""Every recipe against upstream's own `llama_model_quantize`: the whole file, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boardfit.converters.formats.gguf.imatrix import Imatrix
from boardfit.converters.formats.gguf.recipe import list_recipes, load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.source.gguf import open_gguf
from boardfit.converters.spec import ModelSpec
from tests.converters.families.cases_gemma4 import (
    EXPERTS,
    LARGE,
    gemma3n,
    gemma3n_shapes,
    gemma4,
    gemma4_shapes,
)
from tests.converters.families.checkpoints import Case
from tests.converters.formats.gguf import upstream
from tests.converters.formats.gguf.models import (
    Dims,
    family_spec,
    make_spec,
    random_imatrix,
    write_reference,
)

pytestmark = pytest.mark.engine

QUANTIZED = [recipe.id for recipe in list_recipes() if recipe.is_quantized]
FLOAT = [recipe.id for recipe in list_recipes() if not recipe.is_quantized]

# Rows of whole blocks of 256, where the K-quant kernels run.
WIDE = {
    "llama-gqa4-bf16": Dims(n_layer=2, n_head_kv=1),
    "llama-mha-f32-tied": Dims(n_layer=1, n_head_kv=4, tied=True, dtype="F32"),
    "qwen2-896-f16": Dims("qwen2", n_layer=1, n_embd=896, n_head_kv=2, n_ff=256, dtype="F16"),
    "qwen3moe-8": Dims("qwen3moe", n_layer=1, n_head=2, n_expert=8, n_ff=256),
}
# Rows of 32 and 64: fallback types tell the rules apart as well, at a thousandth of the cost,
# so that many layers can be had.
_NARROW = dict(n_embd=32, n_head=4, head_dim=8, n_ff=64, n_vocab=260)
NARROW = {
    "llama-32-layers": Dims(n_layer=32, n_head_kv=1, **_NARROW),
    "llama-33-layers-tied": Dims(n_layer=33, n_head_kv=2, tied=True, **_NARROW),
    "llama-70b": Dims(n_layer=80, n_head_kv=1, **_NARROW),
    "llama-65b": Dims(n_layer=80, n_head_kv=4, **_NARROW),
    "qwen2-80-layers": Dims("qwen2", n_layer=80, n_head_kv=4, **_NARROW),
    "qwen3moe-8": Dims("qwen3moe", n_layer=18, n_head_kv=1, n_expert=8, **_NARROW),
    "qwen3moe-6": Dims("qwen3moe", n_layer=18, n_head_kv=2, n_expert=6, **_NARROW),
    "llama-window": Dims(n_layer=4, n_head_kv=1, window=128, **_NARROW),
    "f16-for-odd-rows": Dims(n_layer=2, n_embd=80, n_head=4, head_dim=20, n_ff=72, n_vocab=300),
    "phi3-fused": Dims("phi3", n_layer=10, n_head_kv=1, window=128, **_NARROW),
    "falcon": Dims("falcon", n_layer=34, n_head_kv=1, **_NARROW),
}


# Families whose tensors have types of their own: tables that are looked up row by row, experts
# beside a dense part, layers without keys. Whole blocks of 256, so that no fallback hides a rule.
_WHOLE = dict(hidden_size=256, intermediate_size=512, head_dim=64, global_head_dim=128)
_E2B = gemma4(hidden_size_per_layer_input=256, **_WHOLE)
_MOE = gemma4(**{**LARGE, **EXPERTS, **_WHOLE, "moe_intermediate_size": 256})
FAMILIES = {
    "gemma4-e2b": Case("gemma4-e2b", _E2B, gemma4_shapes(_E2B)),
    "gemma4-moe": Case("gemma4-moe", _MOE, gemma4_shapes(_MOE)),
    "gemma3n": Case("gemma3n", gemma3n(), gemma3n_shapes(gemma3n())),
}


def compare(dims: Dims, recipe_id: str, tmp_path: Path, *, with_imatrix: bool = False) -> None:
    compare_spec(make_spec(dims), recipe_id, tmp_path, with_imatrix=with_imatrix)


def compare_spec(
    spec: ModelSpec, recipe_id: str, tmp_path: Path, *, with_imatrix: bool = False
) -> None:
    recipe = load_recipe(recipe_id)
    matrix = random_imatrix(spec) if with_imatrix else None
    reference = write_reference(spec, tmp_path / "reference.gguf")
    theirs = upstream.quantize(reference, tmp_path / "theirs.gguf", recipe, matrix)
    ours = write_gguf(spec, recipe, tmp_path / "ours.gguf", imatrix=matrix, threads=2)
    assert_same_file(ours.path, theirs)


def assert_same_file(ours: Path, theirs: Path) -> None:
    """Equal bytes; if not, name the first tensor that differs rather than a byte offset."""
    if ours.read_bytes() == theirs.read_bytes():
        return
    mine, their = open_gguf(ours), open_gguf(theirs)
    assert mine.metadata == their.metadata
    assert [t.name for t in mine.tensors] == [t.name for t in their.tensors]
    for a, b in zip(mine.tensors, their.tensors, strict=True):
        assert (a.name, a.source_type, a.shape) == (b.name, b.source_type, b.shape)
        assert np.array_equal(a.read(0, a.n_rows), b.read(0, b.n_rows)), a.name
    raise AssertionError("tensors and metadata are equal, but headers differ")


@pytest.mark.parametrize("recipe_id", QUANTIZED)
@pytest.mark.parametrize("model", WIDE)
def test_same_file_as_upstream_with_whole_blocks(
    model: str, recipe_id: str, tmp_path: Path
) -> None:
    compare(WIDE[model], recipe_id, tmp_path)


@pytest.mark.parametrize("recipe_id", QUANTIZED)
@pytest.mark.parametrize("model", NARROW)
def test_same_file_as_upstream_over_many_layers(model: str, recipe_id: str, tmp_path: Path) -> None:
    compare(NARROW[model], recipe_id, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe_id", QUANTIZED)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_file_as_upstream_for_families(family: str, recipe_id: str, tmp_path: Path) -> None:
    spec = family_spec(FAMILIES[family], tmp_path / "checkpoint")
    compare_spec(spec, recipe_id, tmp_path)


@pytest.mark.parametrize("recipe_id", QUANTIZED)
@pytest.mark.parametrize("model", ["llama-gqa4-bf16", "qwen3moe-8"])
def test_same_file_as_upstream_with_imatrix(model: str, recipe_id: str, tmp_path: Path) -> None:
    compare(WIDE[model], recipe_id, tmp_path, with_imatrix=True)


@pytest.mark.parametrize("recipe_id", QUANTIZED)
@pytest.mark.parametrize("model", ["llama-32-layers", "qwen3moe-6"])
def test_imatrix_changes_rules_as_upstream_does(model: str, recipe_id: str, tmp_path: Path) -> None:
    compare(NARROW[model], recipe_id, tmp_path, with_imatrix=True)


@pytest.mark.parametrize("recipe_id", QUANTIZED + FLOAT)
@pytest.mark.parametrize("stored", ["q8_0", "q4_k_m", "q3_k_m", "iq4_xs", "f16"])
def test_requantizing_a_gguf_equals_upstream(stored: str, recipe_id: str, tmp_path: Path) -> None:
    spec = make_spec(Dims(n_layer=1, n_vocab=288, n_ff=256, n_head_kv=2))
    source = write_gguf(spec, load_recipe(stored), tmp_path / "source.gguf").path
    recipe = load_recipe(recipe_id)
    theirs = upstream.quantize(source, tmp_path / "theirs.gguf", recipe)
    ours = write_gguf(open_gguf(source), recipe, tmp_path / "ours.gguf")
    assert_same_file(ours.path, theirs)


@pytest.mark.parametrize("recipe_id", FLOAT)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_float_recipes_round_as_the_gguf_package_does(
    dtype: str, recipe_id: str, tmp_path: Path
) -> None:
    """Upstream's converter rounds with the `gguf` package (numpy), we with ggml."""
    import gguf

    recipe, spec = load_recipe(recipe_id), make_spec(Dims(n_layer=1, dtype=dtype))
    written = open_gguf(write_gguf(spec, recipe, tmp_path / "ours.gguf").path)
    assert [t.name for t in written.tensors] == [t.name for t in spec.tensors]
    for ours, source in zip(written.tensors, spec.tensors, strict=True):
        values = source.read(0, source.n_rows)
        if dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        target = source.keep or recipe.type
        expected = gguf.quants.quantize(
            np.ascontiguousarray(values, np.float32), gguf.GGMLQuantizationType[target]
        )
        found = np.ascontiguousarray(ours.read(0, ours.n_rows))
        assert ours.source_type == target
        assert found.tobytes() == expected.tobytes(), ours.name


def test_imatrix_of_another_model_is_refused(tmp_path: Path) -> None:
    spec = make_spec(Dims(n_layer=1))
    matrix = Imatrix({"blk.0.attn_q.weight": np.ones(128, np.float32)}, "other.gguf")
    with pytest.raises(ValueError, match="computed for another model"):
        write_gguf(spec, load_recipe("q4_0"), tmp_path / "out.gguf", imatrix=matrix)
    assert list(tmp_path.iterdir()) == []
