"""Keep the answers of a session within budgets of seconds.

Before the prefill, the fullest version of the question that fits is chosen, or the request refused
(`admission`). The answer is ended in time, and teaches the time model (`pacer`).
"""

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

from boardfit.edge.deadline.admission import Question, QuestionGate
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.pacer import PacedTurn
from boardfit.edge.deadline.time_model import Prior, TimeModel
from boardfit.edge.deadline.timing import Timing
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import InputError
from boardfit.edge.types import Engine, EngineInfo, GenerationConfig, Plan

_MAX_STORED_BYTES = 256 * 1024
# What is assumed before anything is known: a small board. The trial corrects it at once.
_UNKNOWN = Prior(prefill_tps=40.0, decode_tps=8.0, bound=1.0)
_TRIAL_TEXT = "The quick brown fox jumps over the lazy dog and runs on through the night. "
_TRIAL_PROMPT, _TRIAL_LONG, _TRIAL_TOKENS = 16, 96, 8
# A trial takes no longer than this, however slow the board is.
_TRIAL_S = 3.0


class TimeStore:
    """The file of one board, model and way to run it. Losing it costs accuracy, nothing else."""

    def __init__(self, model_id: str, info: EngineInfo, folder: Path | None = None) -> None:
        """`model_id` is the bundle's id or a model file's identity."""
        key = {
            "board": f"{platform.node()} {platform.machine()} {os.cpu_count()}",
            "model": model_id,
            "engine": [info.name, info.build, info.n_ctx, info.n_threads, info.kv_type],
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
        self.path = (folder or state / "boardfit/time") / f"{name}.json"

    def load(self, prior: Prior) -> TimeModel:
        """The stored model, or a new one from `prior` where there is none that can be read."""
        try:
            if self.path.stat().st_size > _MAX_STORED_BYTES:
                raise InputError(f"{self.path} is too large")
            stored = json.loads(self.path.read_bytes())
            return TimeModel.from_dict(stored["times"], prior)
        except Exception:  # a damaged file is learned again
            return TimeModel(prior)

    @property
    def is_known(self) -> bool:
        return self.path.exists()

    def save(self, times: TimeModel, info: EngineInfo) -> None:
        """Keep `times`; a read-only home is no error."""
        document = {"times": times.to_dict(), "engine": {**asdict(info), "details": {}}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(document).encode(), mode=0o600)
        except OSError:
            pass


class Deadline:
    """Keeps budgets on one engine. A session asks it before each answer."""

    def __init__(
        self, engine: Engine, times: TimeModel, *, store: TimeStore | None = None, cold: bool = True
    ) -> None:
        """`store` keeps `times`. `cold`: nothing was computed since loading."""
        self.timing = Timing(engine, times, cold)
        self._store = store

    def predict_prefill_s(self, n_tokens: int) -> float:
        return self.timing.follow_threads().prefill(n_tokens).mid

    def admit(
        self, question: Question, budget: Budget, received_ns: int, asked_ns: int
    ) -> PacedTurn:
        """Choose a version of the question. Raise DeadlineError when none fits the time."""
        gate = QuestionGate(self.timing, question, budget, received_ns)
        return PacedTurn(self.timing, gate.admit(asked_ns), question.filter_answer)

    def save(self) -> None:
        if self._store is not None:
            self._store.save(self.timing.times, self.timing.engine.describe())


def open_deadline(engine: Engine, model_id: str, plan: Plan | None) -> Deadline:
    """Make a deadline that knows this board, from earlier runs or from the plan.

    A short trial reads the weights into memory and measures how fast the board is now.
    """
    store = TimeStore(model_id, engine.describe())
    is_known = store.is_known
    times = store.load(prior_from_plan(plan))
    try_out(engine, times, is_known=is_known)
    return Deadline(engine, times, store=store, cold=False)


def prior_from_plan(plan: Plan | None) -> Prior:
    if plan is None or plan.decode_tps is None or plan.prefill_tps is None:
        return _UNKNOWN
    bound = max(plan.error_bound or 0.0, 0.3)
    return Prior(plan.prefill_tps, plan.decode_tps, bound=bound)


def try_out(engine: Engine, times: TimeModel, *, is_known: bool = False) -> None:
    """Teach `times` with prefills and a few tokens, for a few seconds at most; with fewer where
    the board `is_known`. The first prefill is cold and not counted.
    """
    text = _TRIAL_TEXT * 12
    tokens = engine.tokenize(text)
    config = GenerationConfig(max_tokens=_TRIAL_TOKENS, ignore_eos=True)
    end_s = time.monotonic() + _TRIAL_S
    lengths = [_TRIAL_PROMPT, _TRIAL_PROMPT, min(_TRIAL_LONG, engine.n_ctx // 4)]
    for i, n in enumerate(lengths[:2] if is_known else lengths):
        engine.reset()
        times.use_threads(engine.threads_now)
        began_ns = time.monotonic_ns()
        events = list(engine.stream(tokens[:n], config, lambda: time.monotonic() > end_s))
        start = engine.last_start
        times_ns = [event.t_ns for event in events if event.token_id is not None]
        if start is None or not times_ns:
            break
        seconds = (start.t_prefill_end_ns - began_ns) / 1e9
        times.observe_prefill(n, 0, seconds, cold=i == 0)
        if i and len(times_ns) > 1:
            times.observe_decode(len(times_ns) - 1, n, (times_ns[-1] - times_ns[0]) / 1e9)
    engine.reset()
