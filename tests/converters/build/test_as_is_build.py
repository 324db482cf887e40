"""`edge build` of a file that is quantized already."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from boardfit.converters.build.command import build_command
from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.source.resolve import open_model
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.errors import UsageError

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "model.gguf"
    write_gguf(open_model("sample"), load_recipe("q4_0"), path)
    return path


def build(*arguments: str | Path) -> Result:
    words = [*map(str, arguments), "-d", "raspberry-pi-5-8gb", "--threads", "1"]
    return CliRunner().invoke(build_command, words, catch_exceptions=False)


@pytest.mark.parametrize("asked", [(), ("--recipe", "as-is"), ("--recipe", "AS_IS")])
def test_a_quantized_file_is_bundled_as_it_stands(
    quantized: Path, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    run = build(quantized, "-o", tmp_path / "b", *asked)
    bundle = open_bundle(tmp_path / "b")
    assert bundle.plan.recipe == "as-is"
    assert bundle.model_path.read_bytes() == quantized.read_bytes()
    assert bundle.plan.artifact_bytes == quantized.stat().st_size
    assert "nothing was converted" in run.stdout and "lost twice" not in run.stderr


def test_the_loss_of_a_second_rounding_is_said_before_it_starts(
    quantized: Path, tmp_path: Path
) -> None:
    run = build(quantized, "-o", tmp_path / "b", "--recipe", "q4_k_m", "--no-quality")
    assert run.stderr.index("lost twice") < run.stderr.index("quantizing to q4_k_m")


def test_a_recipe_that_the_file_has_already_only_copies(quantized: Path, tmp_path: Path) -> None:
    run = build(quantized, "-o", tmp_path / "b", "--recipe", "q4_0", "--no-quality")
    assert "lost twice" not in run.stderr and "copying: the file is q4_0 already" in run.stderr


def test_a_matrix_of_importance_is_of_no_use_as_it_stands(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="converts nothing"):
        build(quantized, "-o", tmp_path / "b", "--recipe", "as-is", "--imatrix", quantized)
