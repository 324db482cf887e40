"""The whole road at once: our one pass and upstream's two steps give the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.source.resolve import open_model
from boardfit.edge.files.gguf import read_header
from tests.converters.families.checkpoints import Case
from tests.converters.families.conftest import all_cases
from tests.converters.formats.gguf.upstream import quantize

# Not the same file on purpose; test_oracle.py compares them entry by entry.
OTHERWISE = {
    "gpt-oss-vocabulary": "its experts stay in MXFP4, which llama-quantize makes anew",
    "hunyuan-vocabulary": "upstream writes an end of turn behind the chat template",
}
# Those with a real tokenizer: whole models.
CASES = [case for case in all_cases() if case.vocabulary and case.name not in OTHERWISE]


@pytest.mark.oracle
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_same_file_as_convert_and_quantize(case: Case, converted: Path, tmp_path: Path) -> None:
    """`convert_hf_to_gguf.py`, then `llama-quantize`, against `write_gguf` of the checkpoint."""
    recipe = load_recipe("q4_k_m")
    theirs = quantize(converted / f"{case.name}.gguf", tmp_path / "theirs.gguf", recipe)
    ours = tmp_path / "ours.gguf"
    write_gguf(open_model(converted / case.name), recipe, ours)
    is_same = read_without_exponentials(ours) == read_without_exponentials(theirs)
    assert is_same  # a difference of two whole files is printed for minutes


def read_without_exponentials(path: Path) -> bytes:
    """A file with zeros for what `exp` made, which `oracle.is_same` compares."""
    data, header = bytearray(path.read_bytes()), read_header(path)
    for tensor in header.tensors:
        if tensor.name.endswith(".ssm_a"):
            start = header.data_offset + tensor.offset
            data[start : start + tensor.nbytes] = bytes(tensor.nbytes)
    return bytes(data)
