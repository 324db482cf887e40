"""The solver in reverse: what answers a workload in time, on which board, and what is nearest."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.converters.plan.candidate import find_weakest
from boardfit.converters.plan.choose import (
    choose_candidate,
    find_highest_fitting,
    find_nearest_time,
)
from boardfit.converters.plan.command import plan_command
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions, make_needs
from boardfit.converters.plan.planner import Planner
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.plan.workload import WorkloadPlan, find_best_row
from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.cost.model import CostModel
from boardfit.edge.errors import DeadlineError, DoesNotFitError, InputError, UsageError
from boardfit.edge.tasks import find_task, load_tasks
from boardfit.edge.units import parse_seconds
from tests.device_profiles.cost.models import Dims, make_spec, write_hollow_gguf

PI5, PI4 = find_profile("raspberry-pi-5-8gb"), find_profile("raspberry-pi-4b-4gb")
SMALL = make_spec(Dims(n_embd=512, n_head=8, n_ff=1536, n_layer=8, n_vocab=8192), name="small")
LARGE = make_spec(
    Dims(n_embd=1536, n_head=24, n_ff=4096, n_layer=16, n_vocab=32000, tied=True), name="large"
)
SHORT = make_spec(Dims(n_ctx_train=512), name="short")
SCALES = {spec.name: WeighingScale(spec) for spec in (SMALL, LARGE)}
NOTHING = Learned(())
WORKLOADS = [*load_tasks(), "mix"]


def planner_for(
    spec: object, workload: str, within_s: float | None, board: object = PI5
) -> Planner:
    options = PlanOptions(needs=make_needs(workload, within_s, None))
    return Planner(spec, board, options, scale=SCALES[spec.name])  # type: ignore[arg-type, attr-defined]


def rows_of(within_s: float, workload: str = "customer-service") -> WorkloadPlan:
    options = PlanOptions(needs=make_needs(workload, within_s, None))
    return WorkloadPlan([LARGE, SMALL], options, ["gguf"], NOTHING)


def test_a_need_holds_the_longest_request_and_is_of_nine_in_ten() -> None:
    for task in load_tasks().values():
        [need] = make_needs(task.name, 2.0, None)
        assert need.n_ctx >= task.prompt.high + task.answer.high + need.n_past
        assert task.prompt.typical < need.n_prompt < task.prompt.high + 60
        assert task.answer.typical <= need.n_answer <= task.answer.high
        assert (need.within_s, need.first_within_s) == (2.0, None)
    own = make_needs("mix", None, None)
    assert [need.within_s for need in own] == [t.within_s for t in load_tasks().values()]


def test_seconds_are_reading_and_writing_and_their_bounds() -> None:
    planner = planner_for(SMALL, "customer-service", 60.0)
    chosen = choose_candidate(planner)
    [answer] = planner.predict_answers(chosen) or []
    need = answer.need
    n_prompt = need.n_past + need.n_prompt
    costs = CostModel(SMALL.shape, PI5, [])
    depth = n_prompt + need.n_answer // 2
    speed = costs.cost(chosen.weights, chosen, n_prompt=n_prompt, depth=depth).speed
    assert speed.prefill_tps and speed.decode_tps
    expected = need.n_prompt / speed.prefill_tps + need.n_answer / speed.decode_tps
    assert answer.whole.mid == pytest.approx(expected)
    assert answer.whole.low < answer.whole.mid < answer.whole.high
    assert answer.first.mid == pytest.approx(
        need.n_prompt / speed.prefill_tps + 1 / speed.decode_tps
    )
    assert chosen.n_ctx == need.n_ctx


@given(
    st.sampled_from(WORKLOADS), st.floats(0.05, 60), st.floats(1, 8), st.sampled_from([PI4, PI5])
)
@settings(max_examples=12)
def test_more_time_never_gives_less(
    workload: str, seconds: float, factor: float, board: object
) -> None:
    """Neither a worse recipe of a model, nor a smaller model, nor a weaker promise."""
    before: tuple[float, int] | None = None
    for within_s in (seconds, seconds * factor):
        planner = planner_for(LARGE, workload, within_s, board)
        chosen = find_highest_fitting(planner)
        if chosen is None:
            assert before is None
            continue
        found = chosen.weights.perplexity_added
        if before is not None:
            assert found <= before[0]
        before = (found, chosen.n_ctx)
    plans = [rows_of(w, workload) for w in (seconds, seconds * factor)]
    sizes = [find_best_row(plan.list_rows(board)) for plan in plans]  # type: ignore[arg-type]
    if sizes[0] is not None:
        assert sizes[1] is not None and sizes[1].n_params >= sizes[0].n_params


@given(
    st.sampled_from(WORKLOADS),
    st.floats(0.001, 30),
    st.one_of(st.none(), st.floats(0.001, 5)),
    st.sampled_from([SMALL, LARGE]),
    st.sampled_from([PI4, PI5]),
)
@settings(max_examples=20)
def test_the_nearest_time_is_kept_when_asked_for(
    workload: str, within_s: float, first_s: float | None, spec: object, board: object
) -> None:
    options = PlanOptions(needs=make_needs(workload, within_s, first_s))
    planner = Planner(spec, board, options, scale=SCALES[spec.name])  # type: ignore[arg-type, attr-defined]
    if find_highest_fitting(planner) is not None:
        return
    near = find_nearest_time(planner)
    assert near is not None
    words = shlex.split(near.options)
    asked = {words[i]: parse_seconds(words[i + 1]) for i in range(0, len(words), 2)}
    again = PlanOptions(needs=make_needs(workload, asked["--within"], asked.get("--first-within")))
    chosen = choose_candidate(planner.with_options(again))
    assert planner.with_options(again).is_in_time(chosen)
    # Nothing nearer would do: both limits a tenth shorter are refused again.
    tight = PlanOptions(
        needs=make_needs(
            workload, asked["--within"] * 0.85, (asked.get("--first-within") or 0) * 0.85 or None
        )
    )
    assert find_highest_fitting(planner.with_options(tight)) is None


def test_what_is_sure_is_likely_too() -> None:
    planner = planner_for(SMALL, "translate", 60.0)
    chosen = choose_candidate(planner)
    [answer] = planner.predict_answers(chosen) or []
    middle = (answer.whole.mid + answer.whole.high) / 2
    assert find_weakest(planner.predict_answers(chosen) or ()) == "sure"
    for within_s, reach in ((middle, "likely"), (answer.whole.mid * 0.9, "no")):
        assert replace(answer, need=make_needs("translate", within_s, None)[0]).reach == reach


def call(*words: object) -> Result:
    return CliRunner().invoke(plan_command, [str(w) for w in words], catch_exceptions=False)


def test_without_a_model_the_sizes_that_do_it_are_told() -> None:
    words = ("-d", "raspberry-pi-5-8gb", "--workload", "customer-service", "--within")
    shown = call(*words, "20s").output
    assert "1.2B like llama-3.2-1b" in shown and "at the high bound" in shown
    assert "too slow; nearest" in shown and "context" in shown
    lines = [json.loads(line) for line in call(*words, "20s", "--json").output.splitlines()]
    good = [line for line in lines if line["reach"] != "no"]
    assert good and good == lines[: len(good)] and lines[-1]["nearest"]["within_s"] > 20
    assert all(line["tasks"][0]["whole_s"][1] <= 20 for line in good)


def test_several_models_are_compared_and_one_is_taken(tmp_path: Path) -> None:
    for name, dims in (("a", Dims()), ("b", Dims(n_layer=12, n_embd=1024, n_head=16, n_ff=3072))):
        write_hollow_gguf(tmp_path / f"{name}.gguf", dims)
    words = (tmp_path / "a.gguf", tmp_path / "b.gguf", "-d", "raspberry-pi-5-8gb")
    shown = call(*words, "--workload", "translate", "--within", "5s").output
    assert shown.count("▸") == 1 and "llama_cpp" in shown
    with pytest.raises(UsageError, match="2 models"):
        call(*words)


def test_the_impossible_names_the_nearest_time_and_a_board_that_can(tmp_path: Path) -> None:
    write_hollow_gguf(tmp_path / "m.gguf", Dims(n_layer=12, n_embd=1024, n_head=16, n_ff=3072))
    words = (tmp_path / "m.gguf", "-d", "raspberry-pi-zero-2-w", "--workload", "customer-service")
    with pytest.raises(
        DeadlineError, match="impossible on Raspberry Pi Zero 2 W; nearest"
    ) as error:
        call(*words, "--within", "2s")
    step = error.value.next_step or ""
    option, board = step.split(" or this board: ")
    assert call(*words, *shlex.split(option)).exit_code == 0
    other = board.split("--device ")[1].rstrip(")")
    again = call(words[0], "-d", other, *words[3:], "--within", "2s")
    assert again.exit_code == 0


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("--within", "2s"), UsageError, "--workload customer-service"),
        (("--workload", "asistant"), UsageError, "Did you mean 'assistant'"),
        (("--workload", "mix", "--ctx", "128"), UsageError, "does not hold the requests of"),
        (("--workload", "summarize", "--within", "9s"), InputError, "trained for 512"),
    ],
)
def test_bad_questions_are_refused(
    tmp_path: Path, words: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    write_hollow_gguf(tmp_path / "m.gguf", Dims(n_ctx_train=512))
    with pytest.raises(kind) as caught:
        call(tmp_path / "m.gguf", "-d", "raspberry-pi-5-8gb", *words)
    assert said in f"{caught.value} {getattr(caught.value, 'next_step', '')}"


@pytest.mark.parametrize("text", ["0", "-1s", "nan", "2 parsecs", "inf"])
def test_what_is_no_time_is_a_usage_error(text: str) -> None:
    done = call("-d", "raspberry-pi-5-8gb", "--workload", "assistant", "--within", text)
    assert done.exit_code == 2 and "time" in done.output


def test_what_does_not_fit_says_so_and_not_that_it_is_slow(tmp_path: Path) -> None:
    big = Dims(n_embd=4096, n_head=32, n_head_kv=8, head_dim=128, n_ff=14336, n_layer=32)
    write_hollow_gguf(tmp_path / "m.gguf", big)
    with pytest.raises(DoesNotFitError):
        call(tmp_path / "m.gguf", "-d", "raspberry-pi-3b-plus", "--workload", "assistant")


def test_long_answers_need_more_time_than_short_ones() -> None:
    short, long = find_task("translate"), find_task("summarize")
    assert short.within_s < long.within_s
    seconds = []
    for name in (short.name, long.name):
        planner = planner_for(SMALL, name, 600.0)
        [answer] = planner.predict_answers(choose_candidate(planner)) or []
        seconds.append(answer.whole.mid)
    assert seconds[0] < seconds[1]
