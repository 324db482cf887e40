"""A quantized file runs as it stands, and a plan states no loss that nobody measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.formats.gguf.recipe import AS_IS, load_recipe
from boardfit.converters.plan.choose import choose_candidate
from boardfit.converters.plan.command import plan_command
from boardfit.converters.plan.make import make_plan
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import Planner
from boardfit.converters.plan.weights import WeighingScale, describe_requantizing
from boardfit.converters.source.gguf import open_gguf
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.errors import UsageError
from tests.device_profiles.cost.models import Dims, make_spec, write_hollow_gguf

PI5 = find_profile("raspberry-pi-5-8gb")
QUANTIZED = ("Q4_0", "Q4_1", "Q5_K", "Q8_0", "IQ4_XS")


def open_hollow(folder: Path, main: str) -> ModelSpec:
    path = folder / f"{main}.gguf"
    write_hollow_gguf(path, Dims(types={"w": main, "embd": main, "output": main}))
    return open_gguf(path)


@pytest.mark.parametrize("main", QUANTIZED)
@pytest.mark.parametrize("prefer", ["balanced", "quality"])
def test_a_quantized_file_runs_as_it_stands(tmp_path: Path, main: str, prefer: str) -> None:
    made = make_plan(open_hollow(tmp_path, main), PI5, PlanOptions(prefer=prefer))  # type: ignore[arg-type]
    assert made.recipe == AS_IS
    assert not any("a second time" in reason for reason in made.reasons)


@pytest.mark.parametrize("main", ["F16", "BF16", "F32"])
def test_an_unquantized_file_is_quantized(tmp_path: Path, main: str) -> None:
    assert make_plan(open_hollow(tmp_path, main), PI5, PlanOptions()).recipe == "q4_k_m"


@pytest.mark.parametrize("word", ["as-is", "as_is", "AS-IS", " As-Is "])
def test_as_is_is_a_recipe(tmp_path: Path, word: str) -> None:
    spec = open_hollow(tmp_path, "F16")
    assert make_plan(spec, PI5, PlanOptions(recipe=word)).recipe == AS_IS
    words = [str(tmp_path / "F16.gguf"), "-d", "pi5", "--recipe", word, "--as-is", "--json"]
    run = CliRunner().invoke(plan_command, words, catch_exceptions=False)
    assert json.loads(run.output)["plan"]["recipe"] == AS_IS
    with pytest.raises(UsageError, match=r"only a \.gguf"):
        make_plan(make_spec(Dims()), PI5, PlanOptions(recipe=word))


def test_a_wrong_word_names_as_is_too() -> None:
    with pytest.raises(UsageError, match="as-is"):
        load_recipe("q9")


def test_what_was_asked_goes_before(tmp_path: Path) -> None:
    """A matrix of importance asks for quantizing, `memory` for the smallest file."""
    spec = open_hollow(tmp_path, "Q8_0")
    assert make_plan(spec, PI5, PlanOptions(has_imatrix=True)).recipe == "q4_k_m"
    small = make_plan(spec, PI5, PlanOptions(prefer="memory"))
    assert small.recipe != AS_IS
    assert any("lost twice" in reason for reason in small.reasons)
    planner = Planner(spec, PI5, PlanOptions())
    rate = choose_candidate(planner).user_tps
    assert rate is not None
    fast = make_plan(spec, PI5, PlanOptions(min_tps=1.2 * rate))
    assert fast.recipe != AS_IS and (fast.decode_tps or 0) >= 1.2 * rate


def test_a_file_too_large_as_it_stands_is_quantized_again(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    types = dict.fromkeys(("w", "embd", "output"), "Q8_0")
    dims = Dims(n_embd=2560, n_head=20, n_ff=8192, n_layer=28, n_vocab=128256, types=types)
    write_hollow_gguf(path, dims.replace(head_dim=128, tied=True))
    made = make_plan(open_gguf(path), find_profile("raspberry-pi-4b-2gb"), PlanOptions())
    assert made.recipe not in (AS_IS, "q8_0")
    assert "rounds" in made.reasons[1] and "--recipe as-is" in made.reasons[1]


def test_a_recipe_that_changes_no_tensor_loses_nothing(tmp_path: Path) -> None:
    spec = open_hollow(tmp_path, "Q8_0")
    assert describe_requantizing(spec, load_recipe("q8_0")) == ""
    assert "rounds" in describe_requantizing(spec, load_recipe("q4_0"))


# -- a loss that nobody measured at this size ------------------------------------------------------

TINY = make_spec(Dims(n_embd=512, n_head=8, n_ff=1536, n_layer=8, n_vocab=8192))
EIGHT = make_spec(
    Dims(n_embd=4096, n_head=32, n_head_kv=8, head_dim=128, n_ff=14336, n_layer=32, n_vocab=128256)
)


def test_the_loss_is_known_near_the_measured_size_only() -> None:
    for recipe, known in (("q4_k_m", 0.1754), ("q4_0", 0.4685)):
        assert WeighingScale(EIGHT).weigh(load_recipe(recipe)).perplexity_known == known
        assert WeighingScale(TINY).weigh(load_recipe(recipe)).perplexity_known is None
    assert WeighingScale(TINY).weigh(load_recipe("bf16")).perplexity_known == 0.0


def test_nothing_is_recommended_by_an_unknown_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import boardfit.converters.source.resolve as resolve

    monkeypatch.setattr(
        resolve, "open_model", lambda ref, **options: {"tiny": TINY, "eight": EIGHT}[ref]
    )
    texts = {}
    for name in ("tiny", "eight"):
        words = [name, "-d", "jetson-agx-orin-64gb"]
        texts[name] = CliRunner().invoke(plan_command, words, catch_exceptions=False).output
    assert "unknown at this size" in texts["tiny"]
    assert "perplexity" not in texts["tiny"]
    assert "about 0.18 perplexity lost" in texts["eight"]
    words = ["tiny", "-d", "pi5", "--json"]
    run = CliRunner().invoke(plan_command, words, catch_exceptions=False)
    assert {row["perplexity_added"] for row in json.loads(run.output)["candidates"]} == {None}


@pytest.mark.parametrize(("arch", "is_known"), [("llama", True), ("deepseek4", False)])
def test_a_plan_states_that_the_memory_of_an_architecture_is_unknown(
    tmp_path: Path, arch: str, is_known: bool
) -> None:
    path = tmp_path / "model.gguf"
    write_hollow_gguf(path, Dims(arch=arch))
    words = [str(path), "-d", "pi5", "--as-is"]
    text = CliRunner().invoke(plan_command, words, catch_exceptions=False).output
    run = CliRunner().invoke(plan_command, [*words, "--json"], catch_exceptions=False)
    reasons = json.loads(run.output)["plan"]["reasons"]
    phrase = f"the memory of the architecture {arch} is unknown here"
    assert any(phrase in reason for reason in reasons) != is_known
    assert (phrase in text) != is_known


def test_a_plan_names_what_no_token_reads(tmp_path: Path) -> None:
    mixture = Dims(arch="qwen3moe", n_expert=8, n_expert_used=2, n_ff_expert=256)
    reasons = make_plan(make_spec(mixture), PI5, PlanOptions()).reasons
    assert any(reason.startswith("2 of 8 experts at work: a token reads") for reason in reasons)
    with_more = replace(make_spec(Dims()), shape=replace(make_spec(Dims()).shape, n_layer=3))
    reasons = make_plan(with_more, PI5, PlanOptions()).reasons
    assert any("blocks of next-token prediction: not loaded" in reason for reason in reasons)
