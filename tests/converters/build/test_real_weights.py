"""Published, quantized models: planned and built as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.converters.plan.command import plan_command
from boardfit.edge.bundle.bundle import open_bundle, sha256_file

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.engine]
BOARD = ("-d", "raspberry-pi-5-8gb")


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_a_quantized_model_is_planned_and_built_as_it_stands(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(model)
    planned = CliRunner().invoke(
        plan_command, [str(source), *BOARD, "--json"], catch_exceptions=False
    )
    record = json.loads(planned.output)
    assert record["plan"]["recipe"] == "as-is" and record["model"] == source.stem
    rows = {row["recipe"]: row["perplexity_added"] for row in record["candidates"]}
    assert rows.pop("as-is") == 0.0 and set(rows.values()) <= {None}
    words = [str(source), *BOARD, "-o", str(tmp_path / "b")]
    built = CliRunner().invoke(build_command, words, catch_exceptions=False)
    assert built.exit_code == 0
    bundle = open_bundle(tmp_path / "b")
    assert sha256_file(bundle.model_path) == sha256_file(source)
    assert bundle.name == source.stem


def test_quantizing_it_again_says_what_is_lost(smollm2: Path, tmp_path: Path) -> None:
    words = [str(smollm2), *BOARD, "-o", str(tmp_path / "b"), "--recipe", "q4_k_m", "--no-quality"]
    built = CliRunner().invoke(build_command, words, catch_exceptions=False)
    said = built.stderr.index("rounds 210 of 272 tensors a second time")
    assert said < built.stderr.index("quantizing to q4_k_m")
