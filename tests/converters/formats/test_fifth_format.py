"""A fifth format is one class and one row: it goes through every door of the others."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.build.jobs import make_jobs, plan_any
from boardfit.converters.formats.base import (
    AUTO,
    FORMATS,
    GGUF,
    Conversion,
    FormatArtifact,
    FormatRow,
    format_of_engine,
    parse_formats,
)
from boardfit.converters.formats.converted import ConvertedFormat, Made, Role
from boardfit.converters.plan.command import plan_command
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.source.resolve import open_model
from boardfit.converters.spec import ModelSpec, TargetTensor
from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.cost.engine_classes import LITERT_LM
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import EngineError, UnsupportedModelError, UsageError
from boardfit.edge.types import Plan

ROOT = Path(__file__).parents[3]
ROW = FormatRow(
    "toy", f"{__name__}:ToyFormat", "toy_engine", "model.toy", "toy_int8", ("toy_engine",),
    "a toy: one byte per weight",
)  # fmt: skip
PI5, OLD = find_profile("raspberry-pi-5-8gb"), find_profile("raspberry-pi-4b-4gb")


class ToyFormat(ConvertedFormat):
    engine_class = LITERT_LM
    engine_bytes = 1 << 20

    def list_recipes(self) -> tuple[str, ...]:
        return ("toy_int8",)

    def describe_recipe(self, recipe_id: str) -> str:
        return "one byte per weight"

    def check_family(self, family: str) -> None:
        if family != "llama":
            raise UnsupportedModelError(f"no toy can be made of {family}")

    def check_board(self, profile: DeviceProfile) -> None:
        if "dotprod" not in profile.isa:
            raise EngineError("toys need dot products")

    def weigh_matrix(
        self, tensor: TargetTensor, recipe_id: str, role: Role, n_layers: int
    ) -> Iterable[tuple[int, int]]:
        if recipe_id not in self.list_recipes():
            raise UsageError(f"no toy recipe {recipe_id!r}")
        return [(8, tensor.n_elements)]

    def make(self, job: Conversion, checkpoint: Path) -> Made:
        job.stage("making a toy")
        job.folder.mkdir()
        (job.folder / self.row.file).write_bytes(b"toy")
        return Made({self.row.file: "model"}, {"int8": job.spec.shape.n_params}, 8.0)


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelSpec]:
    """The sample model, with the toy in the table."""
    monkeypatch.setitem(FORMATS, ROW.id, ROW)
    yield open_model("sample")


def plan_toy(spec: ModelSpec, board: DeviceProfile, **options: str) -> Plan:
    return plan_any(spec, board, ROW.id, PlanOptions(**options), Learned(()))  # type: ignore[arg-type]


def test_it_is_planned_and_weighed(spec: ModelSpec) -> None:
    assert parse_formats("gguf,toy") == ("gguf", "toy") and format_of_engine(ROW.engine) is ROW
    plan = plan_toy(spec, PI5)
    weights = ToyFormat(ROW).weigh(spec, ROW.recipe)
    assert plan.engine == ROW.engine and plan.artifact_bytes == weights.artifact_bytes
    assert plan.decode_tps and plan.reasons[1] == "recipe toy_int8: one byte per weight"
    with pytest.raises(UsageError, match="no toy recipe"):
        plan_toy(spec, PI5, recipe="q4_0")
    with pytest.raises(UnsupportedModelError, match="quantum"):
        plan_toy(dataclasses.replace(spec, family="quantum"), PI5)
    with pytest.raises(EngineError, match="dot products"):
        plan_toy(spec, OLD)


def test_auto_and_the_table_of_plans_include_it(spec: ModelSpec) -> None:
    plan = plan_any(spec, PI5, AUTO, PlanOptions(), Learned(()))
    assert any("divergence of toy_int8 was not measured" in reason for reason in plan.reasons)
    words = ["sample", "-d", PI5.id, "--format", "gguf,toy", "--json"]
    shown = CliRunner().invoke(plan_command, words, catch_exceptions=False).stdout
    assert [json.loads(line)["format"] for line in shown.splitlines()] == ["gguf", "toy"]


def test_it_is_converted_once(spec: ModelSpec, tmp_path: Path) -> None:
    (job,) = make_jobs(spec, [PI5], ["toy"], PlanOptions(), Learned(()))
    assert job.is_converted and job.key == f"toy-toy_int8-{job.plan.n_ctx}"
    stages: list[str] = []

    target = job.target.load()
    assert isinstance(target, ConvertedFormat)

    def convert() -> FormatArtifact:
        return target.convert(
            Conversion(
                spec, job.plan, job.device, tmp_path / job.key, threads=1,
                stage=stages.append, progress=lambda done, total: None,
            )
        )  # fmt: skip

    made = convert()
    assert made.path.read_bytes() == b"toy" and made.nbytes == 3 and made.recipe == ROW.recipe
    assert convert() == made and stages == ["making a toy"], "a finished one is kept"
    made.path.write_bytes(b"boy")
    assert convert() == dataclasses.replace(made, seconds=convert().seconds) and len(stages) == 2


def test_gguf_is_one_of_them() -> None:
    target = FORMATS[GGUF].load()
    plan = plan_any(open_model("sample"), PI5, GGUF, PlanOptions(recipe="q4_0"), Learned(()))
    assert target.name_artifact(plan, PI5) == "gguf-q4_0"
    assert "q4_0" in target.list_recipes() and target.describe_recipe("q4_0")


def test_no_formats_id_is_compared_outside_its_folder() -> None:
    """`spec.source.kind` is where a model comes from; what an option's default is, is no format."""
    own = [ROOT / "converters/formats" / name for name in ("gguf", "litert", "onnx")]
    found = []
    for path in (ROOT / "converters").rglob("*.py"):
        if any(folder in path.parents for folder in own):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            sides = {ast.unparse(side).strip("'\"") for side in (node.left, *node.comparators)}
            if sides & {"GGUF", *FORMATS} and not any(side.endswith(".kind") for side in sides):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not found, found
