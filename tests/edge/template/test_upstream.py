"""On upstream's own files: its vocabularies pass the linter, its templates render as transformers
renders them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from boardfit.edge.files.gguf import read_header
from boardfit.edge.template.lint import check

pytestmark = pytest.mark.oracle


@pytest.mark.slow
def test_every_template_renders_as_in_transformers(
    llama_cpp_tree: Path, oracle_python: Path
) -> None:
    """In the oracle's interpreter, which has transformers; ours need not."""
    driver = Path(__file__).with_name("template_driver.py")
    done = subprocess.run(
        [str(oracle_python), str(driver), str(llama_cpp_tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 500


@pytest.mark.slow
def test_every_template_can_be_checked(llama_cpp_tree: Path) -> None:
    for path in sorted((llama_cpp_tree / "models/templates").glob("*.jinja")):
        notes = check(path.read_text(encoding="utf-8"))
        assert all(isinstance(note, str) and note for note in notes), path.name


@pytest.mark.slow
def test_every_vocabulary_passes(llama_cpp_tree: Path) -> None:
    gguf = pytest.importorskip("gguf")
    paths = sorted((llama_cpp_tree / "models").glob("ggml-vocab-*.gguf"))
    assert len(paths) > 15
    for path in paths:
        header = read_header(path, arrays="full")
        summary = read_header(path)
        assert list(summary.kv) == list(header.kv)
        tokens = header.get("tokenizer.ggml.tokens")
        assert len(summary.get("tokenizer.ggml.tokens")) == len(tokens)
        if len(tokens) > 33_000:
            continue  # the package takes seconds for those
        theirs = gguf.GGUFReader(path).fields
        assert header.arch == theirs["general.architecture"].contents()
        assert tokens == theirs["tokenizer.ggml.tokens"].contents()
