"""`edge probe` times the kernels that the engine would choose, in wheels with several of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from boardfit.edge.probe.ggml import cpu_library
from tests.converters.board.conftest import require

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries are named as on Linux")


def compile_variant(folder: Path, name: str, score: int | None) -> Path:
    library = folder / f"libggml-cpu{name}.so"
    code = "int other;" if score is None else f"int ggml_backend_score(void) {{ return {score}; }}"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=code.encode(), check=True
    )
    return library


def test_the_highest_score_wins(tmp_path: Path) -> None:
    require("gcc")
    for name, score in (("-armv8.0_1", 1), ("-armv8.6_1", 0), ("-broken", None)):
        compile_variant(tmp_path, name, score)
    best = compile_variant(tmp_path, "-armv8.2_1", 7)
    (tmp_path / "libggml-cpu-text.so").write_text("no library")
    assert cpu_library(tmp_path) == best


def test_none_that_runs_here(tmp_path: Path) -> None:
    require("gcc")
    assert cpu_library(tmp_path) is None
    compile_variant(tmp_path, "-armv9", 0)
    assert cpu_library(tmp_path) is None


def test_a_single_library_is_taken_as_it_is(tmp_path: Path) -> None:
    require("gcc")
    compile_variant(tmp_path, "-armv8.0_1", 9)
    plain = compile_variant(tmp_path, "", 0)
    assert cpu_library(tmp_path) == plain
