"""Formats besides GGUF: planned, refused with the way out, chosen by `auto`, built end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.converters.build.jobs import job_name, make_jobs
from boardfit.converters.formats.base import AUTO, FORMATS, GGUF, parse_formats
from boardfit.converters.formats.converted import prefill_lengths
from boardfit.converters.formats.measured import MeasuredRecipe, divergence_ratio, measured_rows
from boardfit.converters.plan.command import plan_command
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.make import choose_format, plan_any, plan_format
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.quality.card import find_bound
from boardfit.converters.source.resolve import open_model
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.catalog import all_profiles, find_profile
from boardfit.edge.engines import ENGINES
from boardfit.edge.errors import (
    DoesNotFitError,
    EdgeError,
    EngineError,
    InputError,
    UnsupportedModelError,
    UsageError,
)
from boardfit.edge.types import Plan

OTHERS = [name for name in FORMATS if name != GGUF]
NOTHING = Learned(())


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return open_model("sample")


# ---- the table ----------------------------------------------------------------------------------


def test_every_format_has_an_engine_a_recipe_and_a_bound() -> None:
    known = {recipe for name in OTHERS for recipe in FORMATS[name].load().list_recipes()}
    for target in FORMATS.values():
        assert Path(target.file).suffix in ENGINES[target.engine].formats
        assert target.id == GGUF or (target.recipe in known and find_bound(target.recipe))
    assert all(find_bound(recipe) for recipe in known)


def test_formats_on_the_command_line() -> None:
    assert parse_formats(" gguf, onnx,gguf") == ("gguf", "onnx")
    assert parse_formats("auto") == ("auto",)
    for text, said in (("onxx", "onnx"), ("", "name formats"), ("auto,gguf", "auto alone")):
        with pytest.raises(UsageError, match=said):
            parse_formats(text)


# ---- plans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_a_plan_of_every_format_fits_every_board_it_runs_on(name: str, spec: ModelSpec) -> None:
    planned = 0
    for profile in all_profiles().values():
        try:
            plan = plan_format(spec, profile, FORMATS[name], PlanOptions())
        except EngineError:
            continue
        planned += 1
        assert plan.peak_bytes <= plan.budget_bytes and plan.engine == FORMATS[name].engine
        assert plan.n_ctx <= spec.shape.n_ctx_train and plan.n_threads <= profile.n_cores
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert planned > 50


def test_a_board_whose_cpu_the_library_aborts_on_is_refused_with_its_source(
    spec: ModelSpec,
) -> None:
    with pytest.raises(EngineError, match=r"LSE.*qemu") as caught:
        plan_format(spec, find_profile("raspberry-pi-4b-4gb"), FORMATS["litertlm"], PlanOptions())
    assert "gguf" in (caught.value.next_step or "")
    no_lse = dataclasses.replace(find_profile("raspberry-pi-4b-4gb"), engines=())
    with pytest.raises(EngineError, match="LSE atomics"):
        FORMATS["litertlm"].load().check_supported(spec, no_lse)


@pytest.mark.parametrize("name", OTHERS)
def test_families_and_sources_that_a_format_cannot_hold(name: str, spec: ModelSpec) -> None:
    board = find_profile("raspberry-pi-5-8gb")
    strange = dataclasses.replace(spec, family="quantum")
    with pytest.raises(UnsupportedModelError, match="quantum") as caught:
        plan_format(strange, board, FORMATS[name], PlanOptions())
    assert "--format gguf" in (caught.value.next_step or "")
    without = dataclasses.replace(spec, tokenizer_dir=None)
    with pytest.raises(UnsupportedModelError, match="is a GGUF file"):
        plan_format(without, board, FORMATS[name], PlanOptions())


@pytest.mark.parametrize("name", OTHERS)
def test_wishes_that_a_format_cannot_grant(name: str, spec: ModelSpec) -> None:
    board, target = find_profile("raspberry-pi-5-8gb"), FORMATS[name]
    with pytest.raises(UsageError, match="kv-type"):
        plan_format(spec, board, target, PlanOptions(kv_type="q8_0"))
    with pytest.raises(InputError, match="trained"):
        plan_format(spec, board, target, PlanOptions(n_ctx=spec.shape.n_ctx_train + 1))
    with pytest.raises(UsageError, match="recipe"):
        plan_format(spec, board, target, PlanOptions(recipe="q4_0"))
    tiny = dataclasses.replace(board, memory=dataclasses.replace(board.memory, ram_bytes=450 << 20))
    with pytest.raises(DoesNotFitError) as caught:
        plan_format(spec, tiny, target, PlanOptions())
    assert caught.value.shortfall_bytes and caught.value.shortfall_bytes > 0


def test_prefill_lengths_go_into_the_cache() -> None:
    assert prefill_lengths(4096) == [16, 128, 512]
    assert prefill_lengths(512) == [16, 128] and prefill_lengths(8) == [8]


def test_a_recipe_with_fewer_bits_weighs_less(spec: ModelSpec) -> None:
    for target, less, more in (
        ("litertlm", "litert_int4_small", "litert_int8"),
        ("onnx", "onnx_int4_b32", "onnx_int8"),
    ):
        small, large = (FORMATS[target].load().weigh(spec, r).artifact_bytes for r in (less, more))
        assert spec.shape.n_params / 2 < small < large < spec.shape.n_params * 1.6


# ---- auto ---------------------------------------------------------------------------------------


def plan_with(engine: str, recipe: str, prefill: float | None, decode: float | None) -> Plan:
    return Plan(
        engine=engine, recipe=recipe, device="raspberry-pi-5-8gb", n_ctx=512, kv_type="f16",
        n_threads=1, n_batch=64, n_ubatch=64, use_mmap=True, repack=False, artifact_bytes=1,
        memory={}, budget_bytes=1, prefill_tps=prefill, decode_tps=decode,
    )  # fmt: skip


def row(recipe: str, kld: float, model: str = "m") -> MeasuredRecipe:
    return MeasuredRecipe(model, "onnx", recipe, 1, kld, 0.0, 0.9, 1.0, 1.0, "a machine")


def test_divergence_is_the_worst_over_models_measured_with_both() -> None:
    rows = (
        row("q4_0", 0.1), row("x", 0.05), row("q4_0", 0.2, "n"), row("x", 0.3, "n"),
        row("x", 9.0, "without a yardstick"),
    )  # fmt: skip
    assert divergence_ratio("x", rows) == pytest.approx(1.5)
    assert divergence_ratio("y", rows) is None


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe of LiteRT that is measured to be as good as Q4_0, one of ONNX that is not."""
    rows = (row("q4_0", 0.1), row("good", 0.1), row("bad", 0.2))
    monkeypatch.setattr("boardfit.converters.formats.measured.measured_rows", lambda: rows)
    return "good"


def test_auto_takes_what_answers_first_if_it_is_as_good(good: str) -> None:
    plans = {
        GGUF: plan_with("llama_cpp", "q4_0", 100, 10),
        "litertlm": plan_with("litert", good, 500, 10),
        "onnx": plan_with("onnx", "bad", 5000, 50),
    }
    long, short = (choose_format(plans, n, {}) for n in (2000, 16))
    assert long.engine == "litert" and short.engine == "llama_cpp"
    assert any("2.0 times Q4_0's" in reason for reason in long.reasons), "onnx is faster, but worse"
    assert any("2000 tokens" in reason and "gguf" in reason for reason in long.reasons)


def test_auto_takes_the_better_of_two_that_answer_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = (row("q4_0", 0.1), row("near", 0.05), row("nearer", 0.04))
    monkeypatch.setattr("boardfit.converters.formats.measured.measured_rows", lambda: rows)
    plans = {
        GGUF: plan_with("llama_cpp", "q4_0", 100, 10),
        "tflite": plan_with("tflite", "near", 510, 20),
        "litertlm": plan_with("litert", "nearer", 500, 20),
    }
    assert choose_format(plans, 1000, {}).engine == "litert"


def test_auto_keeps_gguf_for_little_gain_unknown_speed_and_says_what_is_out(good: str) -> None:
    base = plan_with("llama_cpp", "q4_0", 100, 10)
    slightly = plan_with("litert", good, 105, 10.5)
    assert choose_format({GGUF: base, "litertlm": slightly}, 256, {}).engine == base.engine
    unknown = plan_with("llama_cpp", "q4_0", None, None)
    choice = choose_format({GGUF: unknown, "litertlm": slightly}, 256, {"onnx": "no reason"})
    assert choice.engine == unknown.engine
    assert choice.reasons[0] == "onnx is out: no reason" and "no speed" in choice.reasons[1]


@settings(max_examples=25)
@given(st.sampled_from(["raspberry-pi-5-8gb", "raspberry-pi-4b-4gb", "n100-16gb"]),
       st.integers(1, 4000))  # fmt: skip
def test_auto_always_gives_a_plan_that_fits(board: str, n_prompt: int) -> None:
    sample = open_model("sample")
    plan = plan_any(sample, find_profile(board), AUTO, PlanOptions(n_prompt=n_prompt), NOTHING)
    assert plan.peak_bytes <= plan.budget_bytes and any("tokens" in r for r in plan.reasons)


def test_the_measured_file_is_read() -> None:
    assert all(r.format in FORMATS and r.kld_mean >= 0 for r in measured_rows())


def test_jobs_of_several_boards_and_formats_have_names(spec: ModelSpec) -> None:
    boards = [find_profile("raspberry-pi-5-8gb"), find_profile("n100-16gb")]
    jobs = make_jobs(spec, boards, ["gguf", "onnx"], PlanOptions(), NOTHING)
    assert [job.name for job in jobs] == [
        "raspberry-pi-5-8gb-gguf", "raspberry-pi-5-8gb-onnx", "n100-16gb-gguf", "n100-16gb-onnx"
    ]  # fmt: skip
    assert job_name("b", "f", 1, 1) == "" and job_name("b", "f", 1, 2) == "f"
    with pytest.raises(UsageError, match="one format"):
        make_jobs(spec, boards, ["gguf", "onnx"], PlanOptions(recipe="q4_0"), NOTHING)


def test_plans_side_by_side() -> None:
    words = ["sample", "-d", "raspberry-pi-4b-4gb", "--format", "auto"]
    shown = CliRunner().invoke(plan_command, words, catch_exceptions=False)
    assert shown.exit_code == 0 and "auto takes" in shown.stdout and "LSE" in shown.stdout
    lines = CliRunner().invoke(plan_command, [*words, "--json"], catch_exceptions=False).stdout
    records = [json.loads(line) for line in lines.splitlines()]
    assert {r["format"] for r in records} == set(FORMATS)
    assert sum(bool(r.get("taken")) for r in records) == 1
    assert next(r for r in records if r["format"] == "litertlm")["error"] == "EngineError"
    with pytest.raises(EdgeError):  # a single refusal is raised
        CliRunner().invoke(plan_command, [*words[:-1], "litertlm"], catch_exceptions=False)


def test_a_plan_learns_from_a_race(spec: ModelSpec) -> None:
    """A stored run of the recipe on this very machine stands in for the estimate."""
    from boardfit.edge.bench.conditions import machine_facts

    target, profile = FORMATS["onnx"], find_profile("n100-16gb")
    here = dataclasses.replace(profile, id="this-machine")
    size = int(target.load().weigh(spec, target.recipe).artifact_bytes * 1.1)
    figure = {"median": 123.0, "p10": 120.0, "p90": 126.0, "maximum": 126.0}
    record = {
        "run_id": "r", "time": "2026-11-22T05:00:00+00:00", "machine": machine_facts(),
        "artifact": {"n_bytes": size, "arch": spec.arch}, "board": None,
        "settings": {"recipe": target.recipe, "n_threads": 2},
        "test": {"kind": "decode", "n_depth": 0}, "metrics": {"decode_tps": figure},
    }  # fmt: skip
    plan = plan_format(spec, here, target, PlanOptions(), learned=Learned([record]))
    assert plan.decode_tps == 123.0 and plan.n_threads == 2 and plan.basis == "measured here"
