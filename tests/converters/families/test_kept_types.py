"""Which tensors stay float32, against upstream's bfloat16 conversion, and their stored bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boardfit.converters.spec import ModelSpec
from boardfit.edge.files.gguf import read_header
from tests.converters.families.checkpoints import Case
from tests.converters.families.conftest import all_cases
from tests.converters.families.oracle import convert_upstream, is_same, our_spec

# One bfloat16 case per architecture.
NAMES = (
    "Smol-LM2-GQA-135M-Instruct-v1.5",
    "qwen2.5-0.5b-style",
    "qwen3-untied",
    "smollm3",
    "gemma2-bf16",
    "gemma3-bf16",
    "gemma3n-e2b",
    "gemma4-e2b",
    "gemma4-moe",
    "phi4-mini",
    "lfm2-bf16",
    "lfm2-moe",
    "qwen3moe-bf16",
    "granite-tied",
    "granitemoe",
    "granite-hybrid",
    "granite-hybrid-moe",
    "nemotron-h",
    "nemotron-h-moe",
    "falcon-h1",
    "olmo2-bf16",
)
CASES = tuple(case for case in all_cases() if case.name in NAMES)


@pytest.fixture(scope="module")
def as_bf16(
    tmp_path_factory: pytest.TempPathFactory, oracle_python: Path, llama_cpp_tree: Path
) -> Path:
    """`NAME/` and upstream's bfloat16 `NAME.gguf` of every case."""
    work = tmp_path_factory.mktemp("bf16")
    convert_upstream(CASES, work, oracle_python, llama_cpp_tree, outtype="bf16")
    return work


def test_every_name_is_a_case() -> None:
    assert len(CASES) == len(NAMES)
    assert all(case.dtype == "BF16" for case in CASES)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_types_and_bytes(case: Case, as_bf16: Path) -> None:
    path = as_bf16 / f"{case.name}.gguf"
    ours = our_spec(case, as_bf16 / case.name)
    tensors = ours.tensors if isinstance(ours, ModelSpec) else ours[1]
    header, data = read_header(path), np.memmap(path, np.uint8, "r")
    for mine, theirs in zip(tensors, header.tensors, strict=True):
        assert (mine.name, mine.keep or "BF16") == (theirs.name, theirs.type_name)
        if mine.source_type == theirs.type_name:
            start = header.data_offset + theirs.offset
            stored = data[start : start + theirs.nbytes].tobytes()
            assert is_same(mine.name, mine.read(0, mine.n_rows).tobytes(), stored), mine.name
