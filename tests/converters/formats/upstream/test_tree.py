"""Upstream's converter out of the engine's source distribution."""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path

import pytest

from boardfit.converters.formats.upstream import tree
from boardfit.edge.errors import InputError, UsageError

INSIDE = f"{tree.PACKAGE}-{tree.VERSION}/vendor/llama.cpp/"


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sdist.tar.gz"
    files = {
        "convert_hf_to_gguf.py": "",
        "conversion/__init__.py": "",
        "gguf-py/gguf/constants.py": "",
        "gguf-py/tests/test_a.py": "",
        "ggml/src/ggml.c": "",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(INSIDE + name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    monkeypatch.setattr(tree, "fetch_sdist", lambda say: path)
    monkeypatch.delenv(tree.OVERRIDE, raising=False)
    return path


def test_the_converter_alone_is_unpacked_once(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tree.converter_tree(print)
    files = {str(p.relative_to(found)) for p in found.rglob("*") if p.is_file()}
    assert files - {".boardfit-owned"} == {
        "convert_hf_to_gguf.py",
        "conversion/__init__.py",
        "gguf-py/gguf/constants.py",
    }
    sdist.unlink()
    assert tree.converter_tree(print) == found


def test_another_layout_is_refused(sdist: Path) -> None:
    with tarfile.open(sdist, "w:gz"):
        pass
    with pytest.raises(InputError, match="not laid out like"):
        tree.converter_tree(print)
    assert not [p for p in tree.cache_directory().glob("converter/*") if p.is_dir()]


def test_a_tree_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tree.OVERRIDE, str(tmp_path))
    with pytest.raises(UsageError, match=r"where no convert_hf_to_gguf\.py lies"):
        tree.converter_tree(print)
    (tmp_path / tree.SCRIPT).touch()
    assert tree.converter_tree(print) == tmp_path


@pytest.mark.oracle
def test_the_list_is_that_of_the_pinned_converter(llama_cpp_tree: Path) -> None:
    text = (llama_cpp_tree / "conversion/__init__.py").read_text()
    (table,) = (
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP"
    )
    assert table is not None
    assert set(tree.known_architectures()) == set(ast.literal_eval(table))
