"""`--task` of `edge run` and `edge chat`, and `edge bench --workload`, on real small models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from boardfit.edge.bench.command import bench
from boardfit.edge.bench.deadline_summary import summarize
from boardfit.edge.bench.store import read_results, sealed
from boardfit.edge.chat.command import chat
from boardfit.edge.chat.run_command import run
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.errors import DeadlineError, InputError, IntegrityError, UsageError
from boardfit.edge.report.command import report
from boardfit.edge.tasks import find_task
from boardfit.edge.tasks.use import TaskUse
from tests.edge.engines import tiny_gguf

pytestmark = pytest.mark.engine

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('system role not supported') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level models of random weights: a token per character, answers of any length."""
    made = tmp_path_factory.mktemp("tasks")
    tiny_gguf.random_llama(made / "wide.gguf", n_ctx=2048, n_embd=64, n_layer=1)
    tiny_gguf.random_llama(made / "middle.gguf", n_ctx=700, n_embd=64, n_layer=1)
    tiny_gguf.random_llama(made / "narrow.gguf", n_ctx=256, n_embd=64, n_layer=1)
    tiny_gguf.random_llama(
        made / "plain.gguf", n_ctx=1024, n_embd=64, n_layer=1, template=NO_SYSTEM
    )
    (made / "page.txt").write_text("The pump stands in room 117. " * 3)
    return made


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def call(command: object, *words: object) -> Result:
    return CliRunner().invoke(command, [*map(str, words), "--threads", "1"], catch_exceptions=False)  # type: ignore[arg-type]


def test_a_task_brings_its_prompt_and_its_time(folder: Path) -> None:
    words = ("--task", "translate", "--to", "zh", "Where is the station?", "--json")
    record = json.loads(call(run, folder / "wide.gguf", *words).stdout)
    assert record["task"] == "translate"
    assert record["deadline"]["within_s"] == 2.0 and record["deadline"]["first_within_s"] == 0.8
    assert record["n_out"] <= 2 * find_task("translate").answer.high
    whole = record["n_prompt"]
    text = "Translate into Chinese: Where is the station?" + (find_task("translate").system or "")
    assert whole > len(text)  # a token per character: all of it was asked


def test_what_the_user_says_goes_before_the_task(folder: Path) -> None:
    words = ("--task", "assistant", "lamp", "--json", "--within", "9s", "--max-tokens", "5")
    record = json.loads(call(run, folder / "wide.gguf", *words).stdout)
    assert record["deadline"]["within_s"] == 9.0 and record["deadline"]["first_within_s"] is None
    assert record["n_out"] <= 5
    free = json.loads(
        call(run, folder / "wide.gguf", *words[:4], "--within", "none", "--max-tokens", "5").stdout
    )
    assert "deadline" not in free


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "translate", "hello"), "--task translate --to zh"),
        (("--task", "transalte", "hello"), "Did you mean 'translate'"),
        (("--task", "translate", "--to", "klingon", "hello"), "unknown language 'klingon'"),
        (("--task", "assistant", "--to", "zh", "hello"), "takes no --to"),
        (("--to", "zh", "hello"), "belongs to a task"),
        (("--task", "manual-question", "hello"), "--document FILE"),
        (("--task", "summarize", "nothing-here.txt"), "no such file"),
        (("--task", "assistant", "--within", "2 parsecs", "hello"), "not a time"),
        (("--task", "assistant", "--within", "0s", "hello"), "more than zero"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_opened(words: tuple[str, ...], said: str) -> None:
    with pytest.raises((UsageError, InputError)) as caught:
        call(run, "no-model-is-opened.gguf", *words)
    assert said in f"{caught.value} {caught.value.next_step}"


def test_a_page_longer_than_the_context_is_shortened_and_it_is_said(
    folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "long.txt"
    page.write_text(" ".join(f"Pump {i} stands in room {100 + i}." for i in range(200)))
    words = ("--task", "manual-question", "--document", page, "In which room is pump 17?")
    done = call(run, folder / "wide.gguf", *words, "--within", "none", "--max-tokens", "4")
    assert done.exit_code == 0 and "longer than the context" in done.stderr


def test_a_template_without_a_system_role_gets_it_in_the_message(folder: Path) -> None:
    engine = open_engine("llama_cpp", folder / "plain.gguf", EngineSettings(n_threads=1))
    try:
        system, use = TaskUse(find_task("assistant"), {}).place_system(engine)
    finally:
        engine.close()
    assert system is None
    assert use.message("lamp {x}") == f"{find_task('assistant').system}\n\nlamp {{x}}"
    words = ("--task", "assistant", "lamp", "--max-tokens", "4")
    assert call(run, folder / "plain.gguf", *words).exit_code == 0


def test_chat_keeps_turns_only_where_they_count(folder: Path) -> None:
    options = ("--within", "none", "--max-tokens", "4", "--threads", "1")
    for name, more, kept in (("assistant", (), 6), ("translate", ("--to", "de"), 2)):
        saved = folder / f"{name}.json"
        done = CliRunner().invoke(
            chat,
            [str(folder / "wide.gguf"), "--task", name, *more, *options],
            input=f"one\ntwo\nthree\n/save {saved}\n",
            catch_exceptions=False,
        )
        assert done.exit_code == 0
        messages = json.loads(saved.read_text())["messages"]
        assert len(messages) == kept


def test_a_workload_is_measured_stored_and_shown(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    words = ("--workload", "translate", "--within", "3s", "--requests", "6", "--cold", "2")
    done = call(bench, folder / "wide.gguf", *words, "-o", results)
    assert done.exit_code == 0 and "in time" in done.stdout and "95 % interval" in done.stdout
    warm, cold = read_results([results]).records
    assert (warm["test"]["kind"], warm["test"]["start"]) == ("deadline", "warm")
    assert cold["test"]["start"] == "cold" and cold["deadline"]["summary"]["n_requests"] == 2
    for record in (warm, cold):
        rows = record["deadline"]["requests"]
        assert record["deadline"]["summary"] == json.loads(json.dumps(summarize(rows)))
        assert len(record["traces"]) == sum(row["accepted"] for row in rows)
        assert all(row["within_s"] == 3.0 for row in rows)
    assert "--workload translate --within 3s --requests 6 --cold 2" in warm["repeat"]
    text = CliRunner().invoke(report, [str(results)], catch_exceptions=False).output
    assert "translate within 3.00 s, warm" in text and "tokens given" in text
    checked = CliRunner().invoke(report, [str(results), "--verify"], catch_exceptions=False)
    assert checked.exit_code == 0 and "all equal" in checked.output
    for key, value in (("n_met", 6000), ("hit_rate_low", 0.999999)):
        forged = json.loads(results.read_text().splitlines()[0])
        forged["deadline"]["summary"][key] = value
        path = tmp_path / f"{key}.jsonl"
        path.write_text(json.dumps(sealed(forged)) + "\n")
        with pytest.raises(IntegrityError):
            CliRunner().invoke(report, [str(path), "--verify"], catch_exceptions=False)


def test_requests_without_time_are_refused_and_counted(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    words = ("--workload", "assistant", "--within", "1ms", "--requests", "3")
    done = call(bench, folder / "wide.gguf", *words, "--cold", "0", "-o", results, "--json")
    record = json.loads(done.stdout.splitlines()[0])
    found = record["deadline"]["summary"]
    assert found["n_refused"] == 3 and found["hit_rate"] is None
    rows = record["deadline"]["requests"]
    assert "nearest feasible" in rows[0]["why"]
    assert all(row["rightly"] and row["need_s"] > 0.001 for row in rows), "asked again"
    assert found["refused_rightly_share"] == 1.0
    shown = CliRunner().invoke(report, [str(results)], catch_exceptions=False).output
    assert "all 3 were refused (100.0 % of them rightly)" in " ".join(shown.split())
    forged = json.loads(results.read_text().splitlines()[0])
    forged["deadline"]["requests"][1]["rightly"] = False
    path = tmp_path / "forged.jsonl"
    path.write_text(json.dumps(sealed(forged)) + "\n")
    with pytest.raises(IntegrityError):
        CliRunner().invoke(report, [str(path), "--verify"], catch_exceptions=False)


def test_a_workload_larger_than_the_context_is_an_error_and_a_mix_says_what_it_left_out(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="too small for the workload summarize") as caught:
        call(bench, folder / "narrow.gguf", "--workload", "summarize", "--requests", "2")
    assert "--ctx" in (caught.value.next_step or "")
    results = tmp_path / "r.jsonl"
    words = ("--within", "2s", "--requests", "6", "--cold", "0", "-o", results)
    done = call(bench, folder / "middle.gguf", *words)
    assert done.exit_code == 0 and "note: summarize was left out" in done.stdout
    [record] = read_results([results]).records
    assert record["test"]["workload"] == "mix"
    section = record["deadline"]
    assert section["by_task"] and section["notes"]
    assert len(section["by_task"]) + len(section["notes"]) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workload", "translat"), "Did you mean 'translate'"),
        (("--within", "2 parsecs"), "not a time"),
        (("--within", "0"), "more than zero"),
        (("--within", "nan"), "not a time"),
        (("--workload", "mix", "--quick"), "--quick"),
        (("--workload", "mix", "--gen", "9"), "--gen"),
    ],
)
def test_bad_workloads_are_refused(folder: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(bench, folder / "wide.gguf", *words)
    assert said in str(caught.value)


def test_a_budget_below_one_token_is_refused_with_the_nearest(folder: Path) -> None:
    words = ("--task", "assistant", "lamp", "--within", "1ms", "--on-miss", "refuse")
    with pytest.raises(DeadlineError, match="nearest feasible"):
        call(run, folder / "wide.gguf", *words)
