"""One accepted request: what the engine's thread does for it, and what the client reads of it."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

from boardfit.edge.chat.session import Answer, Session
from boardfit.edge.deadline.outcome import Outcome
from boardfit.edge.serve.ask import Ask, Rank
from boardfit.edge.serve.schedule import WorkLeft
from boardfit.edge.serve.scoring import Score
from boardfit.edge.serve.spoilers import PrefixLost
from boardfit.edge.types import TokenEvent

#: A client that leaves this much unread is given up.
MAX_UNREAD_BYTES = 1 << 20
#: Seconds after which a request without a limit is as urgent as one whose time is up.
_PATIENCE_S: dict[Rank, float] = {"interactive": 60.0, "normal": 600.0, "background": 3600.0}


@dataclass(frozen=True)
class Begun:
    """The request was admitted; its prompt is read from now on."""


@dataclass(frozen=True)
class Ended:
    """How a request ended. Times in seconds."""

    answer: Answer
    outcome: Outcome | None
    queue_s: float
    notes: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    lost: PrefixLost | None = None


Item = Begun | TokenEvent | Ended | Exception


@dataclass(frozen=True)
class JobCost:
    """Predicted seconds, by upper bounds: for the shortest answer worth giving, and for the
    longest, both with the prompt's `prefill_s`.
    """

    needs_s: float
    most_s: float
    prefill_s: float = 0.0


@dataclass(eq=False)
class Job:
    """A request on its way. `give_up` may be called from any thread, and more than once."""

    ask: Ask
    session: Session
    loop: asyncio.AbstractEventLoop
    notes: tuple[str, ...] = ()
    received_ns: int = field(default_factory=time.monotonic_ns)
    started_ns: int | None = None
    cost: JobCost | None = None  # known once another asks, or its prompt is read
    lost: PrefixLost | None = None
    n_passed: int = 0  # requests that it let pass, while it was paused for `paused_ns`
    paused_ns: int = 0
    worked_s: float = 0.0  # of the engine alone
    n_cells: int = 0  # of the context, that prompt and answer are likely to take

    def __post_init__(self) -> None:
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._gone = threading.Event()
        self._unread = 0

    # ---- for the queue ------------------------------------------------------------------------

    @property
    def promised_ns(self) -> int | None:
        """When the answer, or its first token, has to be there; None without a promise."""
        budget = self.ask.budget
        if budget is None or budget.on_miss == "best":
            return None
        return self.received_ns + round(budget.limit_s * 1e9)

    @property
    def due_ns(self) -> int:
        """What the queue is ordered by."""
        budget = self.ask.budget
        limit_s = budget.limit_s if budget else _PATIENCE_S[self.ask.rank]
        return self.received_ns + round(limit_s * 1e9)

    @property
    def gives_way(self) -> bool:
        """Whether others pass it: it is in the background, and was promised nothing."""
        return self.ask.rank == "background" and self.ask.budget is None

    def all_notes(self) -> tuple[str, ...]:
        """What was done otherwise than asked, its pauses among it."""
        n, s = self.n_passed, self.paused_ns / 1e9
        paused = (f"paused for {s:.1f} s while {n} more urgent were answered",) if n else ()
        return (*self.notes, *self.session.notes, *paused)

    def work(self, now_ns: int) -> WorkLeft:
        """What is left of it, by upper bounds."""
        assert self.cost is not None
        cost, done_s = self.cost, self.worked_s
        left = max(0.0, cost.needs_s - done_s), max(0.0, cost.most_s - done_s)
        budget, prefill_s = self.ask.budget, 0.0 if done_s else cost.prefill_s
        if budget is None or budget.within_s is None:
            return WorkLeft(*left, prefill_s)
        return WorkLeft(*left, prefill_s, (self.received_ns - now_ns) / 1e9 + budget.within_s)

    # ---- for the engine's thread --------------------------------------------------------------

    def post(self, item: Item) -> None:
        """Hand an item to the client's side. A client that reads too slowly is given up."""
        if isinstance(item, TokenEvent):
            self._unread += _size(item)
            if self._unread > MAX_UNREAD_BYTES:
                self.give_up()
        try:
            self.loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop has ended
            self.give_up()

    def give_up(self) -> None:
        """Stop computing: within 50 ms, wherever it stands."""
        self._gone.set()

    def is_given_up(self) -> bool:
        return self._gone.is_set()

    # ---- for the client's side ----------------------------------------------------------------

    async def next(self, timeout_s: float | None = None) -> Item | None:
        """The next item; None when nothing came in time. Raises what the request ended in."""
        try:
            item = await asyncio.wait_for(self._items.get(), timeout_s)
        except asyncio.TimeoutError:
            return None
        if isinstance(item, Exception):
            raise item
        if isinstance(item, TokenEvent):
            self._unread -= _size(item)
        return item


def _size(event: TokenEvent) -> int:
    """What an event that waits takes, roughly."""
    return 64 + len(event.text) + len(event.thought)
