"""Upstream's converter out of the engine's source distribution."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from boardfit.converters.formats.upstream import tree
from boardfit.edge.errors import InputError, UsageError

TABLE = 'TEXT_MODEL_MAP: dict[str, str] = {"OneForCausalLM": "one"}\nraise SystemExit("run")\n'
INSIDE = f"{tree.PACKAGE}-{tree.VERSION}/vendor/llama.cpp/"


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sdist.tar.gz"
    files = {
        "convert_hf_to_gguf.py": "",
        "conversion/__init__.py": TABLE,
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


def test_the_table_is_read_and_not_run(sdist: Path) -> None:
    assert tree.list_architectures(tree.converter_tree(print)) == {"OneForCausalLM": "one"}


def test_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion/__init__.py").write_text("OTHER = {}\n")
    with pytest.raises(InputError, match="has no TEXT_MODEL_MAP"):
        tree.list_architectures(tmp_path)


def test_a_tree_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tree.OVERRIDE, str(tmp_path))
    with pytest.raises(UsageError, match=r"where no convert_hf_to_gguf\.py lies"):
        tree.converter_tree(print)
    (tmp_path / tree.SCRIPT).touch()
    assert tree.converter_tree(print) == tmp_path


@pytest.mark.oracle
def test_the_pinned_table_names_what_people_have(llama_cpp_tree: Path) -> None:
    known = tree.list_architectures(llama_cpp_tree)
    assert {"Starcoder2ForCausalLM", "StableLmForCausalLM", "BertModel"} <= set(known)
