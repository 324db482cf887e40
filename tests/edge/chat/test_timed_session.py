"""Answers within a budget, on a real engine with small models: what is promised is kept."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle, seal_bundle
from boardfit.edge.bundle.pair import pair_bundles
from boardfit.edge.chat.session import Session
from boardfit.edge.chat.timed_open import open_session
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.deadline import Deadline, try_out
from boardfit.edge.deadline.outcome import Outcome
from boardfit.edge.deadline.time_model import Prior, TimeModel
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.target import open_model
from boardfit.edge.errors import DeadlineError, DoesNotFitError, InputError, UsageError
from boardfit.edge.types import Engine, GenerationConfig, Message
from tests.edge.engines.conftest import model_shelf, models  # noqa: F401  (fixtures)
from tests.edge.engines.engine_models import Models

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine-llama_cpp")]

LONG = "The pump in room seven was serviced in May. The valve beside it is older. " * 8


@pytest.fixture
def engine(models: Models) -> Iterator[Engine]:  # noqa: F811
    settings = EngineSettings(n_threads=1, n_ctx=1024, n_draft=4)
    with open_engine("llama_cpp", models.random, settings) as opened:
        yield opened


def session_on(engine: Engine, times: TimeModel | None = None) -> Session:
    if times is None:
        times = TimeModel(Prior(prefill_tps=2000, decode_tps=400))
        try_out(engine, times)
    return Session(engine, deadline=Deadline(engine, times, cold=False))


def ask(session: Session, text: str, budget: Budget, **config: object) -> Outcome:
    limited = GenerationConfig(ignore_eos=True, **config)  # type: ignore[arg-type]
    for _ in session.ask(text, limited, budget=budget):
        pass
    assert session.last_outcome is not None
    return session.last_outcome


def test_an_endless_answer_is_ended_in_time(engine: Engine) -> None:
    session = session_on(engine)
    budget = Budget(within_s=0.3, on_miss="best")
    outcomes = [ask(session, "How warm is it?", budget) for _ in range(5)]
    # A machine may stall once; what is promised is nearly always kept.
    assert sum(outcome.met for outcome in outcomes) >= 4
    for outcome in outcomes:
        assert outcome.shortened
        assert outcome.n_possible is not None and 0 < outcome.n_out <= outcome.n_possible
        assert outcome.total_s == pytest.approx(sum(outcome.seconds.values()), abs=1e-6)


@pytest.mark.parametrize("options", [[], ["--task", "assistant", "--within", "none"]])
def test_a_chat_without_a_budget_never_imports_the_deadline(
    models: Models,  # noqa: F811
    options: list[str],
) -> None:
    script = (
        "import sys; from boardfit.edge.chat.command import chat\n"
        "chat.main(sys.argv[1:], standalone_mode=False)\n"
        "print('LOADED', *(m for m in sys.modules if m.startswith('boardfit.edge.deadline.')))"
    )
    words = [models.scripted, "--threads", "1", "--max-tokens", "4", *options]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        input="hello\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer, _, loaded = done.stdout.partition("LOADED ")
    assert answer.strip() and loaded.split() == ["boardfit.edge.deadline.options"]


def test_a_budget_needs_a_deadline(engine: Engine) -> None:
    with pytest.raises(UsageError, match="deadline"):
        list(Session(engine).ask("Hi", budget=Budget(within_s=1.0)))


def test_no_limit_is_no_limit(engine: Engine) -> None:
    outcome = ask(session_on(engine), "How warm is it?", Budget(), max_tokens=20)
    assert outcome.met and outcome.n_out == 20 and not outcome.adjustments


def test_what_cannot_be_met_is_refused_before_it_is_computed(engine: Engine) -> None:
    slow = TimeModel(Prior(prefill_tps=1, decode_tps=0.5))
    session = session_on(engine, slow)
    with pytest.raises(DeadlineError, match="nearest feasible") as error:
        ask(session, "How warm is it?", Budget(within_s=0.5))
    typed = re.search(r"--within (\S+),", str(error.value.next_step))
    assert typed and Budget.parse(typed[1]).within_s > 0.5  # type: ignore[union-attr, operator]
    assert session.messages == []
    outcome = ask(session, "How warm is it?", Budget(within_s=0.5, on_miss="best"))
    assert outcome.n_out > 0, "asked for the best, something is given"


def test_a_refusal_that_rests_on_a_slow_moment_looks_again(engine: Engine) -> None:
    times = TimeModel(Prior(prefill_tps=50, decode_tps=20))
    for _ in range(20):
        times.observe_prefill(50, 0, 1.0)
        times.observe_decode(20, 50, 1.0)
    for _ in range(6):  # a neighbour that is gone meanwhile
        times.observe_prefill(50, 0, 6.0)
        times.observe_decode(20, 50, 6.0)
    session = session_on(engine, times)
    assert times.prefill(60).mid > 3, "refused, if nobody looked"
    outcome = ask(session, "How warm is it?", Budget(within_s=3.0), max_tokens=4)
    assert outcome.n_out == 4


def test_a_message_longer_than_the_context_is_shortened(engine: Engine) -> None:
    session = session_on(engine)
    text = LONG * 3 + "\n\nWhich valve is older?"
    assert engine.count(text) > engine.n_ctx
    outcome = ask(session, text, Budget(within_s=30.0), max_tokens=4)
    assert [a.kind for a in outcome.adjustments if a.kind != "told"] == ["selected"]
    asked = session.messages[0].content
    assert asked.endswith("Which valve is older?") and "[…]" in asked


def test_a_single_word_longer_than_the_context_is_refused(engine: Engine) -> None:
    session = session_on(engine)
    with pytest.raises(InputError, match="context holds"):
        ask(session, "a" * 4_000, Budget(within_s=30.0))
    assert session.messages == []


def test_a_long_paste_is_shortened_to_fit_the_time(engine: Engine) -> None:
    times = TimeModel(Prior(prefill_tps=400, decode_tps=200, bound=0.1))
    session = session_on(engine, times)
    outcome = ask(session, f"{LONG}\n\nWhich valve is older?", Budget(within_s=1.2), max_tokens=9)
    kinds = [a.kind for a in outcome.adjustments]
    assert "selected" in kinds
    assert session.messages[0].content.endswith("Which valve is older?") or "told" in kinds


def test_the_model_is_told_where_time_is_short_and_only_there(engine: Engine) -> None:
    times = TimeModel(Prior(prefill_tps=2000, decode_tps=40, bound=0.1))
    session = session_on(engine, times)
    outcome = ask(session, "How warm is it?", Budget(within_s=1.0), max_tokens=4)
    assert any(a.kind == "told" for a in outcome.adjustments)
    assert "words.)" in session.messages[0].content
    session.messages = []
    ask(session, "How warm is it?", Budget(within_s=60.0), max_tokens=4)
    assert "words" not in session.messages[0].content
    session.messages = []
    ask(session, "How warm is it?", Budget(within_s=1.0, tell=False), max_tokens=4)
    assert "words" not in session.messages[0].content


def test_a_second_turn_reuses_what_the_first_computed(engine: Engine) -> None:
    session = session_on(engine)
    ask(session, LONG[:400], Budget(within_s=20.0), max_tokens=4)
    outcome = ask(session, "And now?", Budget(within_s=20.0), max_tokens=4)
    reused = [a for a in outcome.adjustments if a.kind == "reused"]
    assert reused and reused[0].gain_s > 0


def test_a_stop_by_the_caller_is_no_deadline(engine: Engine) -> None:
    session = session_on(engine)
    end_s = time.monotonic() + 0.2
    config = GenerationConfig(ignore_eos=True)
    budget = Budget(within_s=20.0)
    stream = session.ask("Hi", config, lambda: time.monotonic() > end_s, budget=budget)
    events = list(stream)
    assert events[-1].finish_reason == "aborted"
    assert session.last_outcome is not None and not session.last_outcome.shortened


# ---- two models in one bundle --------------------------------------------------------------------


def make_bundle(folder: Path, model: Path, n_bytes: int, device: str = "this-machine") -> Path:
    """A sealed bundle of a model file, planned to need `n_bytes` of 100 MB."""
    folder.mkdir()
    (folder / "model.gguf").write_bytes(model.read_bytes())
    plan = {
        "engine": "llama_cpp", "recipe": "f16", "device": device, "n_ctx": 512, "kv_type": "f16",
        "n_threads": 1, "n_batch": 64, "n_ubatch": 64, "use_mmap": True, "repack": False,
        "artifact_bytes": model.stat().st_size, "memory": {"weights_mapped": n_bytes},
        "budget_bytes": 100_000_000,
    }  # fmt: skip
    manifest = {"model": {"name": model.stem}, "recipe": {"id": "f16"}, "plan": plan}
    seal_bundle(folder, manifest, {"model.gguf": "model"}, {})
    return folder


def test_the_smaller_model_answers_what_the_other_would_refuse(
    models: Models,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert models.heavy is not None
    big = make_bundle(tmp_path / "big", models.heavy, 60_000_000)
    small = make_bundle(tmp_path / "small", models.random, 1_000_000)
    made = pair_bundles(big, small, tmp_path / "pair")
    assert made.small is not None
    with open_model(tmp_path / "pair", check_memory=False).engine as unused:
        assert unused.n_ctx == 512
    opened = open_model(tmp_path / "pair", check_memory=False)
    with opened.engine:
        session = open_session(opened, timed=True)
        assert session.deadline is not None
        # Whatever this machine is: the large one is slow.
        session.deadline.timing.times = TimeModel(Prior(prefill_tps=1, decode_tps=0.5))
        session.messages = [Message("user", "Hi"), Message("assistant", "Hello.")]
        outcome = ask(session, "How warm is it?", Budget(within_s=1.0))
        assert outcome.adjustments[0].kind == "smaller model"
        assert outcome.n_out > 0
        assert len(session.messages) == 4, "the conversation goes on with its answer"
        session.save_times()


def test_models_that_do_not_belong_together_are_not_paired(
    models: Models,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert models.heavy is not None
    big = make_bundle(tmp_path / "big", models.heavy, 60_000_000)
    small = make_bundle(tmp_path / "small", models.random, 1_000_000)
    other = make_bundle(tmp_path / "other", models.random, 1_000_000, "raspberry-pi-5-8gb")
    large = make_bundle(tmp_path / "large", models.random, 50_000_000)
    with pytest.raises(UsageError, match="built for"):
        pair_bundles(big, other, tmp_path / "x")
    with pytest.raises(UsageError, match="not smaller"):
        pair_bundles(small, big, tmp_path / "x")
    with pytest.raises(DoesNotFitError, match="together"):
        pair_bundles(big, large, tmp_path / "x")
    pair_bundles(big, small, tmp_path / "pair")
    with pytest.raises(InputError, match="two models"):
        pair_bundles(tmp_path / "pair", small, tmp_path / "x")
    with pytest.raises(UsageError, match="exists"):
        pair_bundles(big, small, tmp_path / "pair")
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*partial"))
    assert open_bundle(tmp_path / "pair", verify=True).small is not None
