"""The queue of requests, and the one thread that computes them.

The thread owns the engine. Requests are taken by their deadlines, earliest first, and answered in
rounds: each that runs is asked on once, and the engine's step serves all. A request is accepted,
and joins others, only if every promise made before still holds, by the upper bounds of the time
model; so a later arrival breaks none. Rendering and predictions run beside the engine, on other
threads.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from boardfit.edge.chat.session import Session
from boardfit.edge.chat.timed_open import open_session
from boardfit.edge.deadline.deadline import Deadline
from boardfit.edge.deadline.time_model import Span
from boardfit.edge.engines.target import OpenModel
from boardfit.edge.errors import EdgeError, InputError, UsageError
from boardfit.edge.process.live import STATUS
from boardfit.edge.serve.ask import Ask
from boardfit.edge.serve.counters import Counters
from boardfit.edge.serve.job import Begun, Ended, Job, JobCost
from boardfit.edge.serve.notify import Heartbeat
from boardfit.edge.serve.refused import RequestRefused, busy, not_ready, too_long
from boardfit.edge.serve.schedule import JoinGate, simulate
from boardfit.edge.serve.scoring import Score, TokenSession, check_scoring, score_answer
from boardfit.edge.serve.spoilers import PrefixLost, PromptHistory, steady
from boardfit.edge.template.render import kept_worker
from boardfit.edge.template.tools import ToolUse
from boardfit.edge.types import TemplateChoice, TokenEvent

MAX_QUEUED = 16
_SAVE_EVERY_S = 600.0
#: A request that gives way does so between two steps.
_STEP_S = 0.3
_ENDED = object()
LOG = logging.getLogger("boardfit.serve")


class AnswerQueue:
    """Loads a model and answers requests with it, as many at a time as that is quicker for."""

    def __init__(
        self,
        load: Callable[[], OpenModel],
        *,
        most_s: float = 600.0,
        is_steady: bool = False,
        is_gated: bool = True,
    ) -> None:
        """`load` opens the model, on the engine's thread. No answer takes more than `most_s`.
        `is_steady`: clocks leave the head of system prompts. `is_gated`: answers are computed
        together only while that is measured to be quicker.
        """
        self._is_gated = is_gated
        self._load = load
        self._most_s = most_s
        self._is_steady = is_steady
        self._history = PromptHistory()
        self._wake = threading.Condition()
        self._waiting: list[Job] = []
        #: What runs, and how it goes on. What gives way is not asked on while others run.
        self._running: dict[Job, Iterator[None]] = {}
        self._n_slots = 1
        self._gate = JoinGate()
        self._is_closing = False
        self._saved_s = time.monotonic()
        self._monotonic_ns = time.monotonic_ns
        self._heart = Heartbeat()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.opened: OpenModel | None = None
        self.failure: Exception | None = None
        self.counters = Counters()
        self.ready = threading.Event()  # set when loading has ended, well or not

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End what runs and what waits, and accept no more."""
        with self._wake:
            self._is_closing = True
            for job in self._others():
                job.give_up()
            self._wake.notify()

    def close(self) -> None:
        """Stop, and free the engine."""
        self.stop()
        self._thread.join()

    # ---- what clients ask, from any thread ----------------------------------------------------

    @property
    def is_ready(self) -> bool:
        return self.opened is not None and not self._is_closing

    def use(self) -> OpenModel:
        """The open model. Raises RequestRefused while there is none."""
        if self.failure is not None:
            raise not_ready(f"the model could not be loaded: {self.failure}", 60.0)
        if self._is_closing:
            raise not_ready("the server is ending")
        if self.opened is None:
            raise not_ready("the model is loading")
        return self.opened

    def counts(self) -> dict[str, int]:
        """How many requests compute and wait."""
        return {"running": len(self._running), "waiting": len(self._waiting)}

    async def submit(self, ask: Ask) -> Job:
        """Accept a request, or raise RequestRefused."""
        loop, received_ns = asyncio.get_running_loop(), time.monotonic_ns()
        self.use()
        if len(self._waiting) >= MAX_QUEUED:
            raise busy(f"{MAX_QUEUED} requests are waiting", self._end_s())
        job = self._make_job(ask, loop, received_ns)
        while not self._try_admit(job):
            await asyncio.to_thread(self._estimate_all, job)
        return job

    def _try_admit(self, job: Job) -> bool:
        """Queue a request, or raise RequestRefused. False while the costs of all are not known."""
        with self._wake:
            self.use()
            others = self._others()
            # Alone it harms no other, and the deadline itself looks closer.
            if others and any(each.cost is None for each in (*others, job)):
                return False
            self._admit(job)
            self._waiting.append(job)
            self._wake.notify()
            return True

    def _others(self) -> list[Job]:
        return [*self._running, *self._waiting]

    def _estimate_all(self, job: Job) -> None:
        for each in (*self._others(), job):
            if each.cost is None:
                each.cost = self._estimate(each)

    def give_up(self, job: Job) -> None:
        """End a request for a client that is gone, wherever it stands."""
        job.give_up()
        with self._wake:
            if job in self._waiting:
                self._waiting.remove(job)
                job.post(not_ready("the client is gone"))

    async def predict(self, ask: Ask) -> dict[str, Any]:
        """What a request would take, with nothing computed. Times in seconds."""
        self.use()
        job = self._make_job(ask, asyncio.get_running_loop(), time.monotonic_ns())
        tokens = await asyncio.to_thread(self._render, job)
        n_reused, prefill, token = self._predict(tokens)
        usual = round(self._deadline.timing.times.usual_answer)
        return {
            "prompt_tokens": len(tokens),
            "reused_tokens": n_reused,
            "queue_s": self._end_s(),
            "first_token_s": _to_dict(prefill),
            "token_s": _to_dict(token),
            "usual_answer_tokens": usual,
            "usual_answer_s": prefill.mid + usual * token.mid,
        }

    # ---- preparing and admitting --------------------------------------------------------------

    @property
    def _deadline(self) -> Deadline:
        deadline = self._base.deadline
        assert deadline is not None
        return deadline

    def _make_job(self, ask: Ask, loop: asyncio.AbstractEventLoop, received_ns: int) -> Job:
        engine = self.use().engine
        ask = steady(ask) if self._is_steady else ask
        is_raw = not ask.messages
        if not is_raw and not engine.has_template:
            raise RequestRefused(
                400, "the model has no chat template; ask for a completion of plain text"
            )
        choice, notes = self._check_choice(ask.choice)
        check_scoring(engine, ask)
        session = (TokenSession if ask.prompt_ids else Session)(
            engine,
            system=ask.system,
            states=None if is_raw else self._base.states,
            raw=is_raw,
            deadline=self._base.deadline,
            choice=choice,
        )
        session.messages, session.prefixes = ask.history, self._base.prefixes
        if isinstance(session, TokenSession):
            session.tokens = ask.prompt_ids
            ask = replace(ask, prompt=engine.detokenize(ask.prompt_ids))
        if ask.uses_tools:
            notes = (*notes, *self._offer_tools(session, ask))
        elif not is_raw and ask.logprobs is None:
            session.small = self._base.small
        return Job(ask, session, loop, (*ask.notes, *notes), received_ns)

    def _offer_tools(self, session: Session, ask: Ask) -> tuple[str, ...]:
        """Show a session the tools of its request. Returns notes on how that is done."""
        form = self.use().tool_format
        session.offer(ToolUse(form, ask.tools, ask.tool_choice, ask.parallel))
        is_told = ask.tools and ask.tool_choice != "none" and not form.variable
        return ("the template lists no tools: the system prompt does",) if is_told else ()

    def _render(self, job: Job) -> Sequence[int]:
        """The prompt's tokens. Raises InputError if they leave no room for an answer."""
        ask = job.ask
        tokens = job.session.trim([*ask.history, ask.question], ask.config)[1]
        if ask.budget is None:  # with one, a longer question may be shortened
            job.session.check_room(tokens)
        return tokens

    def _check_choice(
        self, choice: TemplateChoice | None
    ) -> tuple[TemplateChoice | None, tuple[str, ...]]:
        """The choice as the template takes it: thinking is a wish, variables are none."""
        if choice is None:
            return None, ()
        engine = self.use().engine
        try:
            engine.check_choice(choice)
        except UsageError:
            if choice.thinking != "on":
                raise
            choice = TemplateChoice("auto", choice.variables)
            engine.check_choice(choice)
            return choice, ("this model has no thinking that could be switched on",)
        return choice, ()

    def _predict(self, tokens: Sequence[int]) -> tuple[int, Span, Span]:
        """Tokens that need no computing, seconds to read the rest, and for one of the answer."""
        timing = self._deadline.timing
        n_reused = timing.engine.reusable(tokens)
        prefill = timing.times.prefill(len(tokens) - n_reused, n_reused, cold=timing.cold)
        return n_reused, prefill, timing.times.token(len(tokens))

    def _estimate(self, job: Job, tokens: Sequence[int] | None = None) -> JobCost:
        ask, engine = job.ask, self.use().engine
        tokens = self._render(job) if tokens is None else tokens
        _, prefill, token = self._predict(tokens)
        room = max(1, engine.n_ctx - len(tokens))
        n_most = room if ask.config.max_tokens < 0 else min(room, ask.config.max_tokens)
        n_least = min(ask.budget.n_min if ask.budget else 1, n_most)
        if ask.budget is not None and ask.budget.within_s is None:
            n_least = 1
        needs_s = prefill.high + (n_least - 1) * token.high + self._deadline.timing.times.tail_s
        n_scored = 0 if ask.logprobs is None else len(tokens) + n_most
        job.n_cells = len(tokens) + min(n_most, job.session.count_reserve(ask.config))
        most_s = min(self._most_s, prefill.high + (n_most + n_scored) * token.high)
        return JobCost(needs_s, most_s, prefill.high)

    def _admit(self, job: Job) -> None:
        """Raise RequestRefused unless this request's promise and all earlier ones hold, one after
        another or together.
        """
        if not self._others() or job.gives_way:
            return
        now_ns = self._monotonic_ns()
        waiting = sorted([*self._waiting, job], key=lambda each: each.due_ns)
        harmed, queue_s = self._find_harmed(waiting, 1, now_ns)
        if harmed is None:
            return
        n = self._n_slots
        if n == 1 or not self._pays(n) or self._find_harmed(waiting, n, now_ns)[0] is not None:
            self._refuse(job, harmed, queue_s)

    def _find_harmed(
        self, waiting: Sequence[Job], n_slots: int, now_ns: int
    ) -> tuple[Job | None, float]:
        """The first request whose promise would not hold if all take as long as they may, and the
        seconds until its turn. `n_slots` answer together from now on.
        """
        running = [job for job in self._running if not job.gives_way]
        start_s = _STEP_S if self._running and not running else 0.0
        works = {job: job.work(now_ns) for job in (*running, *waiting)}
        simulate(
            [works[job] for job in running],
            [works[job] for job in waiting],
            n_slots,
            self._slowdown,
            start_s,
        )
        for job, work in works.items():
            promised_ns = job.promised_ns
            if promised_ns is not None and now_ns + work.reached_s * 1e9 > promised_ns:
                if job in self._running and now_ns + work.alone_s * 1e9 > promised_ns:
                    continue  # late without the others
                return job, work.begun_s
        return None, 0.0

    def _slowdown(self, n: int) -> float:
        return self.use().engine.slowdown(n) if n > 1 else 1.0

    def _pays(self, n: int) -> bool:
        """Whether `n` answers are sooner done together. True for a fixed number."""
        return not self._is_gated or self.use().engine.sharing_pays(n)

    def _refuse(self, job: Job, harmed: Job, queue_s: float) -> None:
        assert job.cost is not None
        needs_s, budget = job.cost.needs_s, job.ask.budget
        self.counters.count_refusal("busy" if harmed is job else "promises")
        if harmed is job and budget is not None and needs_s > budget.limit_s:
            what = f"the shortest answer needs {needs_s:.1f} s"
            raise too_long(what, needs_s, budget.limit_s)
        raise busy(
            "other requests are before this one"
            if harmed is job
            else "this answer would break the promise to a request that was accepted before",
            queue_s,
            queue_s=queue_s,
            nearest_s=queue_s + needs_s,
        )

    def _end_s(self) -> float:
        """Seconds until everything accepted is over, at the latest."""
        with self._wake:
            now_ns = time.monotonic_ns()
            known = [job for job in self._others() if job.cost is not None]
            works = [job.work(now_ns) for job in sorted(known, key=lambda job: job.due_ns)]
        return simulate([], works, 1, lambda n: 1.0)

    # ---- the engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        with kept_worker():  # before the model makes this process large
            self._run_engine()

    def _run_engine(self) -> None:
        try:
            opened = self._load()
            self._base = open_session(opened, timed=opened.engine.has_template)
            if self._base.deadline is None:
                from boardfit.edge.deadline.deadline import open_deadline
                from boardfit.edge.states import model_identity

                self._base.deadline = open_deadline(
                    opened.engine, model_identity(opened), opened.plan
                )
            with suppress(EdgeError):  # else the first request with tools would wait for it
                _ = opened.engine.has_template and opened.tool_format
            STATUS.publish_model(opened.name, opened.engine.describe())
            self.opened = opened
        except Exception as error:
            self.failure = error
            self.ready.set()
            return
        self.ready.set()
        details = opened.engine.describe().details
        self._n_slots = int(details.get("n_slots", 1))
        while self._take():
            self._go_round()
        with suppress(EdgeError):
            self._base.save_times()
        if self._base.small is not None:
            self._base.small.engine.close()
        opened.engine.close()

    def _take(self) -> bool:
        """Wait until there is something to do, and begin what may. False when the server ends."""
        with self._wake:
            while True:
                for job in [each for each in self._waiting if each.is_given_up()]:
                    self._waiting.remove(job)
                    job.post(not_ready("the server is ending"))
                while (found := self._find_next()) is not None:
                    self._waiting.remove(found)
                    found.started_ns = time.monotonic_ns()
                    self._running[found] = self._answer(found)
                if self._running:
                    return True
                if self._is_closing:
                    return False
                self._heart.beat()
                self._wake.wait(self._heart.pause_s)

    def _find_next(self) -> Job | None:
        """The request that begins now: the first one, where no promise is against it."""
        job = min(self._waiting, key=lambda each: (each.gives_way, each.due_ns), default=None)
        beside = [each for each in self._running if not each.gives_way]
        if job is None or (job.gives_way and self._running):
            return None
        if not beside:
            return job
        n = len(beside) + 1
        takes_all = any(each.ask.logprobs is not None for each in (job, *beside))
        if takes_all or n > self._n_slots or not self._has_cells(job, beside):
            return None
        if not self._gate.opens(self._pays(n)):
            return None
        promised = [each for each in (*beside, *self._waiting) if each.promised_ns is not None]
        if promised:
            if any(each.cost is None for each in (*beside, *self._waiting)):
                return None
            rest = sorted(self._waiting, key=lambda each: each.due_ns)
            if self._find_harmed(rest, self._n_slots, time.monotonic_ns())[0] is not None:
                return None
        return job

    def _has_cells(self, job: Job, beside: Sequence[Job]) -> bool:
        """Whether the context's cells hold what these are likely to take together."""
        return sum(each.n_cells for each in (job, *beside)) <= self.use().engine.n_ctx

    def _go_round(self) -> None:
        """Ask every request on, once. What gives way waits while others run."""
        urgent = [job for job in self._running if not job.gives_way]
        began_ns, n_ended = time.monotonic_ns(), 0
        for job in urgent or list(self._running):
            if next(self._running[job], _ENDED) is _ENDED:
                with self._wake:
                    del self._running[job]
                n_ended += 1
                if not (self._waiting or self._running):
                    self._keep(job)
        if not urgent:
            return
        spent_ns = time.monotonic_ns() - began_ns
        share = spent_ns / self._slowdown(len(urgent))
        for job in urgent:
            job.worked_s += share / 1e9
        for job in self._running:
            if job.gives_way:
                job.paused_ns += spent_ns
                job.n_passed += n_ended

    def _answer(self, job: Job) -> Iterator[None]:
        """Answer a request, step by step."""
        ask, session = job.ask, job.session
        assert job.started_ns is not None
        end_ns = job.started_ns + round(self._most_s * 1e9)
        queue_s = (job.started_ns - job.received_ns) / 1e9

        def must_stop() -> bool:
            if threading.current_thread() is self._thread:  # a watcher asks too, all the time
                self._heart.beat()
            return job.is_given_up() or time.monotonic_ns() > end_ns + job.paused_ns

        prompt, events = list[int](), list[TokenEvent]()

        def begin(tokens: Sequence[int]) -> None:
            prompt.extend(tokens)
            if tokens:
                job.cost = self._estimate(job, tokens)
            job.post(Begun())

        config = replace(ask.config, ticks=True)
        try:
            if session.keeps_marks:
                session.hints = (self._history.shared(session.system_prefix()),)
            stream = session.ask(
                ask.question,
                config,
                must_stop,
                budget=ask.budget,
                received_ns=job.received_ns,
                begun=begin,
            )
            for event in stream:
                if not event.is_tick:
                    events.append(event)
                    job.post(event)
                if event.finish_reason is None:
                    yield
            answer = session.last_answer
            if answer is None:
                raise InputError("the model gave no answer")
            self.counters.count_answer(answer, session.last_outcome, queue_s)
            scores: tuple[Score, ...] = ()
            if ask.logprobs is not None:
                scores = score_answer(session.engine, ask, prompt, events, must_stop)
            job.lost = self._find_lost(job)
            notes = job.all_notes()
            job.post(Ended(answer, session.last_outcome, queue_s, notes, scores, job.lost))
        except Exception as error:
            if not isinstance(error, (EdgeError, RequestRefused)):  # its type alone: no prompt
                LOG.exception("a request failed: %s", type(error).__name__, exc_info=False)
            self.counters.count_error(error)
            job.post(error)

    def _find_lost(self, job: Job) -> PrefixLost | None:
        system = job.ask.system
        if system is None:
            return None
        lost = self._history.compare(system, job.session.system_prefix())
        if lost is not None:
            self.counters.count_lost(lost)
        return lost

    def _keep(self, job: Job) -> None:
        """Store what is worth it, while no request waits."""
        with suppress(EdgeError, OSError):
            if job.lost is None:  # else the next one is different again
                job.session.store_prefix()
            if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
                self._saved_s = time.monotonic()
                self._base.save_times()


def _to_dict(span: Span) -> dict[str, float]:
    return {"low": span.low, "mid": span.mid, "high": span.high}
