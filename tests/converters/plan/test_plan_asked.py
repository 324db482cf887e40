"""Plans that must keep a time, serve several users, learn from results, or do without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import boardfit.converters.source.resolve as resolve
from boardfit.converters.plan.candidate import Candidate, dominates, find_better, list_qualities
from boardfit.converters.plan.choose import choose_candidate
from boardfit.converters.plan.command import plan_command
from boardfit.converters.plan.compare import make_hollow_spec, plan_boards, plan_sizes
from boardfit.converters.plan.learned import Learned, MeasuredRun, read_learned
from boardfit.converters.plan.make import assemble_plan, list_candidates, make_plan
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import Planner, Way
from boardfit.converters.plan.text import (
    accelerator_lines,
    accelerator_record,
    answer_lines,
    board_lines,
    bound_text,
    plan_record,
    prompt_lines,
    prompt_record,
    speed_text,
)
from boardfit.converters.plan.weights import AS_IS, RecipeWeights, weigh_as_is
from boardfit.converters.source.gguf import open_gguf
from boardfit.device_profiles.catalog import all_profiles, find_profile
from boardfit.device_profiles.models import known_models
from boardfit.device_profiles.profile import Storage
from boardfit.edge.bench.conditions import machine_facts
from boardfit.edge.bench.store import append_results, data_directory
from boardfit.edge.engines.llama.ready import SHELF_BYTES
from boardfit.edge.errors import DeadlineError, DoesNotFitError, InputError, UsageError
from boardfit.edge.probe.machine import probe_this_machine
from boardfit.edge.serve.unit import FORM_BYTES, FORM_BYTES_PER_TOKEN, SERVER_BYTES
from boardfit.edge.units import format_seconds
from tests.device_profiles.cost.models import Dims, make_spec, write_hollow_gguf

PI5, PI4 = find_profile("raspberry-pi-5-8gb"), find_profile("raspberry-pi-4b-4gb")
SMALL = make_spec(Dims(n_embd=512, n_head=8, n_ff=1536, n_layer=8, n_vocab=8192))
LARGE = make_spec(Dims(n_embd=3072, n_head=24, n_ff=8192, n_layer=28, n_vocab=128256, tied=True))


# -- what is said beside the plan ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "engine", "has_prefill"),
    [
        ("jetson-orin-nano-8gb", "llama.cpp-cuda", True),
        ("jetson-nano-4gb", "llama.cpp-cuda-old", True),
        ("rock-4d-8gb", "rkllm-npu", False),
        ("snapdragon-8-elite-reference", "qnn-npu", False),
    ],
)
def test_an_accelerator_is_told_with_its_own_wide_bound(
    board: str, engine: str, has_prefill: bool
) -> None:
    planner = Planner(LARGE, find_profile(board), PlanOptions(n_ctx=1024, recipe="q4_0"))
    chosen = planner.find_leanest(planner.weights[0], 1024)
    record = accelerator_record(planner, chosen)
    assert record is not None and record["engine_class"] == engine
    assert record["decode_tps"] > 0 and record["decode_bound"] >= 0.75
    assert (record["prefill_tps"] is not None) == has_prefill
    assert (record["prefill_bound"] is not None) == has_prefill
    [line] = accelerator_lines(planner, chosen)
    assert ("no published row" in line) != has_prefill


def test_a_board_without_an_accelerator_says_nothing_of_one() -> None:
    planner = Planner(SMALL, PI5, PlanOptions())
    assert accelerator_record(planner, choose_candidate(planner)) is None
    assert accelerator_lines(planner, choose_candidate(planner)) == []


def test_loading_and_heat_are_told_where_they_are_known() -> None:
    planner = Planner(SMALL, PI5, PlanOptions())
    chosen = choose_candidate(planner)
    load, heat = board_lines(PI5, assemble_plan(planner, chosen))
    seconds = chosen.weights.artifact_bytes / (PI5.storage.read or 0)
    assert format_seconds(seconds) in load and "microSD reads 90 MB/s" in load
    assert "95% of a cool start's" in heat
    unknown = replace(PI5, storage=Storage(), sustained_share=None)
    assert board_lines(unknown, assemble_plan(planner, chosen)) == []


def test_each_figure_says_what_it_rests_on() -> None:
    planner = Planner(LARGE, PI5, PlanOptions(n_ctx=1024, recipe="q4_0"))
    chosen = planner.find_leanest(planner.weights[0], 1024)
    assert speed_text(chosen, PI5.basis).endswith(", measured on this SoC")
    half = MeasuredRun(9.0, None, None, 4, 0.03, "2026-11-22")
    mixed = replace(chosen, measured=half, speed=replace(chosen.speed, decode_tps=9.0))
    text = speed_text(mixed, PI5.basis)
    assert "decode 9.0" in text.split("measured here")[0] and text.endswith("measured on this SoC")
    assert bound_text(0.35) == "±35%" and bound_text(1.5) == "×/÷2.5"


# -- time asked for --------------------------------------------------------------------------------


def test_a_plan_keeps_the_time_it_is_asked_for() -> None:
    free = choose_candidate(Planner(LARGE, PI5, PlanOptions(prefer="quality")))
    assert free.speed.decode_tps is not None
    asked = PlanOptions(prefer="quality", min_tps=free.speed.decode_tps * 1.5)
    planner = Planner(LARGE, PI5, asked)
    chosen = choose_candidate(planner)
    assert (chosen.speed.decode_tps or 0) >= free.speed.decode_tps * 1.5
    assert chosen.weights.perplexity_added > free.weights.perplexity_added
    patient = PlanOptions(prefer="quality", max_ttft_s=60, n_prompt=256)
    soon = choose_candidate(Planner(LARGE, PI5, patient))
    assert (soon.ttft_s(256) or 99) <= 60


def test_an_impossible_time_says_what_is_possible() -> None:
    with pytest.raises(DeadlineError, match=r"at best [\d.]+ tokens/s") as caught:
        make_plan(LARGE, PI5, PlanOptions(min_tps=500))
    assert caught.value.exit_code == 8
    with pytest.raises(DeadlineError, match=r"a first token 10\.0 ms after 4000 tokens"):
        make_plan(LARGE, PI5, PlanOptions(max_ttft_s=0.01, n_prompt=4000))


def test_no_known_speed_promises_nothing() -> None:
    memory = replace(PI5.memory, bandwidth_sustained=None, bandwidth_theoretical=None)
    unknown = replace(PI5, memory=memory)
    assert make_plan(SMALL, unknown).decode_tps is None
    with pytest.raises(DeadlineError, match="no speed is known") as caught:
        make_plan(SMALL, unknown, PlanOptions(min_tps=0.1))
    assert "edge probe" in (caught.value.next_step or "")


def test_short_memory_comes_before_short_time() -> None:
    tiny = replace(PI5, memory=replace(PI5.memory, ram_bytes=PI5.memory.reserved_bytes + 2**20))
    with pytest.raises(DoesNotFitError):
        make_plan(LARGE, tiny, PlanOptions(min_tps=500))


@pytest.mark.parametrize("n_users", [2, 4])
def test_every_user_has_a_cache(n_users: int) -> None:
    options = PlanOptions(recipe="q4_0", n_ctx=2048, kv_type="f16", n_threads=4)
    one = choose_candidate(Planner(SMALL, PI5, options))
    planner = Planner(SMALL, PI5, replace(options, n_users=n_users))
    many = choose_candidate(planner)
    assert many.memory["kv_cache"] == n_users * one.memory["kv_cache"]
    assert many.user_tps == pytest.approx((one.speed.decode_tps or 0) / n_users)
    assert (many.ttft_s(256) or 0) > (one.ttft_s(256) or 0)
    assert any(f"{n_users} users" in reason for reason in plan_reasons(planner))


def plan_reasons(planner: Planner) -> tuple[str, ...]:
    return make_plan(SMALL, planner.profile, planner.options).reasons


@pytest.mark.parametrize(
    "wrong", [{"min_tps": 0}, {"max_ttft_s": float("nan")}, {"n_users": 0}, {"n_prompt": 0}]
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PlanOptions(**wrong)


def test_reasons_compare_recipes_in_words() -> None:
    reasons = make_plan(LARGE, PI5).reasons
    assert any(reason.startswith("q4_k_m over ") for reason in reasons), reasons


# -- the front -------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 11), min_size=1))
@settings(max_examples=40, deadline=None)
def test_the_front_is_what_nothing_beats(picked: set[int]) -> None:
    every = list_candidates(Planner(SMALL, PI5, PlanOptions(prefer="quality", n_ctx=512)))
    rows = [every[i % len(every)] for i in picked]
    assert any(find_better(row, rows) is None for row in rows)
    for row in rows:
        better = find_better(row, rows)
        assert (better is None) == (not any(dominates(other, row) for other in rows))
        if better is not None:
            pairs = list(zip(list_qualities(better), list_qualities(row), strict=True))
            assert all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
        assert not dominates(row, row)


# -- boards and sizes ------------------------------------------------------------------------------


def test_sizes_of_a_board_end_where_it_is_full() -> None:
    rows = plan_sizes(PI4, PlanOptions())
    fitting = [row.n_params for row in rows if row.chosen]
    assert fitting == sorted(fitting) and 1e9 < max(fitting) < 8e9
    assert "too much" in rows[-1].why
    rates = [row.chosen.speed.decode_tps or 0 for row in rows if row.chosen]
    assert rates == sorted(rates, reverse=True)


def test_hollow_models_have_the_public_number_of_parameters() -> None:
    for name, billions in (("llama-3.1-8b", 8.03), ("llama-3.2-1b", 1.236)):
        model = known_models()[name]
        counted = sum(tensor.n_elements for tensor in make_hollow_spec(model).tensors)
        assert counted / 1e9 == pytest.approx(billions, rel=0.01)


def test_boards_that_reach_a_time() -> None:
    boards = [PI5, PI4, find_profile("raspberry-pi-zero-2-w")]
    rows = plan_boards(LARGE, boards, PlanOptions(min_tps=4))
    assert [row.profile.id for row in rows if row.chosen] == [PI5.id]
    why = {row.profile.id: row.why for row in rows}
    assert why[PI4.id] == "too slow" and "too much" in why["raspberry-pi-zero-2-w"]


def test_all_boards_take_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a time: an evaluation takes a tenth of a millisecond."""
    seen, evaluate = [], Planner.evaluate

    def counted(self: Planner, weights: RecipeWeights, n_ctx: int, way: Way) -> Candidate:
        seen.append(self.profile.id)
        return evaluate(self, weights, n_ctx, way)

    monkeypatch.setattr(Planner, "evaluate", counted)
    rows = plan_boards(LARGE, all_profiles().values(), PlanOptions())
    assert len(rows) == len(all_profiles()) >= 60
    assert len(seen) < 400 * len(rows)


# -- results in place of estimates -----------------------------------------------------------------


def result(recipe: str, n_bytes: int, machine: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    figure = {"n": 5, "median": 33.0, "p10": 32.0, "p90": 34.0, "minimum": 31.0, "maximum": 35.0}
    return {
        "run_id": "r1",
        "time": "2026-11-20T10:00:00+00:00",
        "kit": {},
        "engine": {},
        "artifact": {"name": "m", "n_bytes": n_bytes, "arch": "llama"},
        "board": PI5.id,
        "machine": dict(machine),
        "settings": {"recipe": recipe, "n_threads": 3},
        "test": {"kind": "decode", "n_depth": 0},
        "metrics": {"decode_tps": figure},
        **changes,
    }


PI5_FACTS = {"model": "Raspberry Pi 5 Model B Rev 1.0", "ram_bytes": 8256000 * 1024}


def test_a_result_of_this_board_replaces_the_estimate() -> None:
    size = Planner(SMALL, PI5, PlanOptions(recipe="q4_0")).weights[0].artifact_bytes
    learned = Learned([result("q4_0", size, PI5_FACTS)])
    chosen = choose_candidate(Planner(SMALL, PI5, PlanOptions(recipe="q4_0"), learned=learned))
    assert chosen.speed.decode_tps == 33.0
    assert chosen.speed.decode_bound == pytest.approx(1 / 33)
    assert chosen.cost.speed.decode_tps not in (None, 33.0)
    assert chosen.speed.prefill_tps == chosen.cost.speed.prefill_tps  # not measured
    assert chosen.measured is not None and chosen.n_threads == 3


@pytest.mark.parametrize(
    "record",
    [
        result("q4_k_m", 1, PI5_FACTS),  # another artifact
        result("q4_0", 0, {**PI5_FACTS, "ram_bytes": 3794 * 2**20}),  # the 4 GB board
        result("q4_0", 0, {"model": None, "ram_bytes": 2**34}),  # its bundle tried on a laptop
    ],
)
def test_results_of_something_else_are_not_taken(record: dict[str, Any]) -> None:
    size = Planner(SMALL, PI5, PlanOptions(recipe="q4_0")).weights[0].artifact_bytes
    record["artifact"]["n_bytes"] = record["artifact"]["n_bytes"] or size
    learned = Learned([record])
    assert (
        choose_candidate(Planner(SMALL, PI5, PlanOptions(recipe="q4_0"), learned=learned)).measured
        is None
    )


def test_stored_results_are_found_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "open_model", lambda ref, **options: SMALL)
    here = probe_this_machine()
    size = Planner(SMALL, here, PlanOptions(recipe="q4_0")).weights[0].artifact_bytes
    record = result("q4_0", size, machine_facts(), board="this-machine")
    append_results(data_directory() / "2026-11.jsonl", [record])
    (data_directory() / "broken.jsonl").write_text('{"kind": "other"}\n{}\n')
    outcome = CliRunner().invoke(plan_command, ["m", "--recipe", "q4_0"], catch_exceptions=False)
    assert "decode 33.0 (predicted" in outcome.output and "measured here" in outcome.output
    assert "broken.jsonl" in outcome.output  # noted, not fatal
    assert len(read_learned().notes) == 1


# -- a GGUF file as it stands ----------------------------------------------------------------------


def test_a_gguf_is_planned_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_hollow_gguf(path, Dims())
    spec = open_gguf(path)
    weights = weigh_as_is(spec)
    assert weights.artifact_bytes == path.stat().st_size
    assert weights.recipe.type == "Q4_0"
    made = make_plan(spec, PI5, PlanOptions(recipe=AS_IS))
    assert made.recipe == AS_IS and made.artifact_bytes == path.stat().st_size
    assert made.reasons[0] == "as it is, mostly Q4_0: nothing is converted"
    words = [str(path), "-d", "pi5", "--json"]
    run = CliRunner().invoke(plan_command, words, catch_exceptions=False)
    rows = json.loads(run.output)["candidates"]
    assert {"as-is", "q4_k_m"} <= {row["recipe"] for row in rows}
    with pytest.raises(UsageError, match=r"only a \.gguf"):
        make_plan(SMALL, PI5, PlanOptions(recipe=AS_IS))


@pytest.mark.parametrize("cut", [1, 4096, 200_000])
def test_a_header_that_promises_more_than_the_file_has_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.gguf"
    write_hollow_gguf(path, Dims())
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    outcome = CliRunner().invoke(plan_command, [str(path), "-d", "pi5"])
    assert isinstance(outcome.exception, InputError)
    assert outcome.output == ""


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def _models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"small": SMALL, "large": LARGE}
    monkeypatch.setattr(resolve, "open_model", lambda ref, **options: found[ref])


@pytest.mark.usefixtures("_models")
def test_the_command_without_a_model_lists_sizes() -> None:
    out = CliRunner().invoke(plan_command, ["-d", "pi5"], catch_exceptions=False).output
    assert "Raspberry Pi 5, 8 GB" in out and "8.0B" in out and "±" in out
    lines = CliRunner().invoke(plan_command, ["-d", "pi5", "--json"], catch_exceptions=False).output
    assert json.loads(lines)["sizes"][0]["fits"] is True


@pytest.mark.usefixtures("_models")
def test_the_command_lists_boards_that_reach_a_time() -> None:
    args = ["large", "--any-device", "--max-ttft", "8s", "--min-tps", "4"]
    out = CliRunner().invoke(plan_command, args, catch_exceptions=False).output
    assert "boards" in out and "these do not fit, or are too slow" in out and "too slow" in out
    out = CliRunner().invoke(plan_command, [*args, "--json"]).output
    records = [json.loads(line) for line in out.splitlines()]
    reached = [r for r in records if r["reached"]]
    assert reached and all(r["decode_tps"] >= 4 and r["ttft_s"] <= 8 for r in reached)


@pytest.mark.usefixtures("_models")
def test_explain_shows_every_term() -> None:
    out = CliRunner().invoke(plan_command, ["large", "-d", "pi5", "--explain"]).output
    made = make_plan(LARGE, PI5)
    for kind, n_bytes in made.memory.items():
        assert f"{n_bytes:,} {kind}" in out
    assert f"{made.loading_bytes:,} at most while loading" in out
    assert f"{made.running_bytes:,} with the context full" in out
    assert "bytes of weights read" in out


@pytest.mark.usefixtures("_models")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--any-device"], "name a MODEL"),
        (["small", "--any-device", "-d", "pi5"], "all boards"),
        (["small", "--as-is", "--recipe", "q4_0"], "converts nothing"),
        (["small", "--max-ttft", "soon"], "not a time"),
    ],
)
def test_contradictions_are_usage_errors(args: list[str], message: str) -> None:
    outcome = CliRunner().invoke(plan_command, args)
    assert outcome.exit_code != 0
    assert message in outcome.output + str(outcome.exception) + str(
        getattr(outcome.exception, "next_step", "")
    )


def test_a_server_and_its_clients_are_counted() -> None:
    options = PlanOptions(recipe="q4_0", n_ctx=2048, kv_type="f16", n_threads=4, n_users=3)
    alone = choose_candidate(Planner(SMALL, PI5, options))
    planner = Planner(SMALL, PI5, replace(options, is_served=True))
    served = choose_candidate(planner)
    n_bytes = SERVER_BYTES + FORM_BYTES + FORM_BYTES_PER_TOKEN * SMALL.shape.n_vocab
    assert "server" not in alone.memory and served.memory["server"] == n_bytes
    assert served.peak_bytes >= alone.peak_bytes + n_bytes
    assert any("--ctx 6144" in line for line in answer_lines(planner, served))
    assert plan_record(planner, served)["served_ctx"] == 6144


def test_states_that_a_server_keeps_are_counted() -> None:
    layers = tuple(replace(layer, state_values=1000) for layer in SMALL.shape.layers)
    hybrid = replace(SMALL, shape=replace(SMALL.shape, layers=layers))
    planner = Planner(hybrid, PI5, PlanOptions(recipe="q4_0", is_served=True))
    n_bytes = SERVER_BYTES + FORM_BYTES + FORM_BYTES_PER_TOKEN * SMALL.shape.n_vocab
    assert choose_candidate(planner).memory["server"] == n_bytes + SHELF_BYTES


def test_serve_and_for_exclude_each_other() -> None:
    command = ["sample", "--device", "raspberry-pi-5-8gb", "--serve", "2", "--for", "3"]
    done = CliRunner().invoke(plan_command, command)
    assert isinstance(done.exception, UsageError) and "--for" in str(done.exception)


# -- an agent's prompt -----------------------------------------------------------------------------


def test_a_long_prompt_costs_more_than_its_tokens() -> None:
    """Each token attends to all before it: the rate of 512 tokens is too good for 20,000."""
    planner = Planner(LARGE, PI5, PlanOptions(recipe="q4_0", n_ctx=24576, n_prompt=20000))
    chosen = choose_candidate(planner)
    cold = planner.first_token_s(chosen)
    assert cold is not None and cold > 1.2 * (chosen.ttft_s(20000) or cold)
    cost = prompt_record(planner, chosen)
    assert cost is not None and cost["cold_s"] == cold and cost["needs_n_ctx"] is None
    assert cost["warm_s"] is None or cost["warm_s"] < cold / 20
    cells = 20000 * chosen.memory["kv_cache"] / 24576
    assert cost["state_bytes"] == pytest.approx(cells, rel=0.02)
    (line,) = prompt_lines(planner, chosen)
    assert "edge build --warm" in line


def test_a_prompt_beyond_the_context_names_the_context() -> None:
    planner = Planner(SMALL, PI5, PlanOptions(recipe="q4_0", n_ctx=4096, n_prompt=20000))
    lines = prompt_lines(planner, choose_candidate(planner))
    assert "--ctx 20480" in lines[-1]
    short = Planner(SMALL, PI5, PlanOptions(recipe="q4_0", n_ctx=4096))
    assert prompt_lines(short, choose_candidate(short)) == []
