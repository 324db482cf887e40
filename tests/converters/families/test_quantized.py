"""From a checkpoint to Q4_K_M in one pass, against upstream's two steps, for every architecture.

What the recipes' rules say about a tensor depends on its name, its family's metadata and what is
kept in float32: all of that comes from the family here, from upstream's converter there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boardfit.converters.families.registry import family_for
from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.spec import ModelSpec, SourceIdentity
from boardfit.edge.files.gguf import read_header
from tests.converters.families.checkpoints import Case
from tests.converters.families.oracle import is_same, our_spec
from tests.converters.families.test_kept_types import CASES
from tests.converters.formats.gguf import upstream

# Matrices of Gemma 3n and 4 that no recipe quantizes.
FLOATS = ("per_layer_model_proj", "altup_", "laurel_l.", "laurel_r.")

pytestmark = [pytest.mark.oracle, pytest.mark.engine, pytest.mark.slow]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_equals_upstreams_two_steps(case: Case, converted: Path, tmp_path: Path) -> None:
    recipe = load_recipe("q4_k_m")
    theirs = upstream.quantize(converted / f"{case.name}.gguf", tmp_path / "theirs.gguf", recipe)
    ours = write_gguf(spec_of(case, converted / case.name), recipe, tmp_path / "ours.gguf").path
    mine, other = read_header(ours), read_header(theirs)
    # Matrices that stay floats: ours in the checkpoint's type, theirs in that of the middle file.
    floats = {t.name for t in mine.tensors if any(part in t.name for part in FLOATS)}
    assert [(t.name, t.dims, "F32" if t.name in floats else t.type_name) for t in mine.tensors] == [
        (t.name, t.dims, t.type_name) for t in other.tensors
    ]
    data, expected = np.memmap(ours, np.uint8, "r"), np.memmap(theirs, np.uint8, "r")
    for tensor, twin in zip(mine.tensors, other.tensors, strict=True):
        if tensor.name in floats:
            continue  # test_kept_types.py compares these
        start, at = mine.data_offset + tensor.offset, other.data_offset + twin.offset
        stored = data[start : start + tensor.nbytes].tobytes()
        assert is_same(tensor.name, stored, expected[at : at + twin.nbytes].tobytes()), tensor.name


def spec_of(case: Case, directory: Path) -> ModelSpec:
    """A case as a whole spec, without a tokenizer."""
    found = our_spec(case, directory)
    assert not isinstance(found, ModelSpec)
    metadata, tensors = found
    shape = family_for(case.config)(SafetensorsCheckpoint(directory, case.config)).shape()
    source = SourceIdentity("hf-directory", str(directory), {}, case.name)
    return ModelSpec(case.name, shape.arch, shape, tuple(metadata), tuple(tensors), source)
