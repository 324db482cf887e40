"""One server: its sockets, its queue and its application. `edge serve` runs it, and so do programs.

with boardfit.serve("here", within_s=5) as server:
    print(server.url)
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.serve.access import AccessRules, own_names
from boardfit.edge.serve.app import App
from boardfit.edge.serve.ask import Defaults
from boardfit.edge.serve.listen import open_sockets, run_server
from boardfit.edge.serve.notify import notify
from boardfit.edge.serve.queue import AnswerQueue
from boardfit.edge.serve.vectors import VectorQueue, makes_vectors

if TYPE_CHECKING:
    from boardfit.edge.types import Thinking

LOOPBACK = ("127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
#: Conversations kept beside the one that is answered, within the planned cells.
N_SHELVES = 6
#: Answers computed at once, where that is quicker.
N_SLOTS = 4


def make_queue(
    path: str | Path,
    overrides: dict[str, Any],
    *,
    most_s: float = 600.0,
    is_steady: bool = False,
    n_slots: int | None = None,
) -> AnswerQueue:
    """The queue of a bundle or a model file: of answers, or of vectors for an embedding model.
    `n_slots` answers are computed at once; None: several, while that is quicker.
    """
    if makes_vectors(path):
        return VectorQueue(path, overrides, most_s=most_s)

    def load() -> OpenModel:
        return open_model(path, n_shelves=N_SHELVES, n_slots=n_slots or N_SLOTS, **overrides)

    return AnswerQueue(load, most_s=most_s, is_steady=is_steady, is_gated=n_slots is None)


class Server:
    """A model, answering over HTTP. The sockets are open from the beginning, the model loads after
    `run` or `start`. Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        queue: AnswerQueue,
        *,
        port: int = 0,
        is_public: bool = False,
        token: str | None = None,
        names: Iterable[str] = (),
        origins: Iterable[str] = (),
        defaults: Defaults | None = None,
    ) -> None:
        """`queue` is what `make_queue` returns. `is_public`: listen on every interface. Raises
        InputError for a port in use.
        """
        addresses = EVERYWHERE if is_public else LOOPBACK
        self._sockets: list[socket.socket] = open_sockets(addresses, port)
        self._queue = queue
        access = AccessRules(own_names(addresses, names), token, frozenset(origins))
        self._app = App(self._queue, access, defaults)
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] | None = None
        self.url = f"http://{addresses[0]}:{self._sockets[0].getsockname()[1]}"

    @property
    def model(self) -> str:
        """The model's name."""
        return self._queue.use().name

    def wait(self) -> None:
        """Wait until the model is loaded. Raises the error that it could not be loaded for."""
        self._queue.ready.wait()
        if self._queue.failure is not None:
            raise self._queue.failure

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until a signal, or until `close`. `ready` is called once the model is loaded.

        Raises the error that the model could not be loaded for.
        """

        def watch(stop: Callable[[], None]) -> None:
            self._queue.ready.wait()
            if self._queue.failure is None:
                notify("READY=1")
                ready()
            else:
                stop()

        def started(stop: Callable[[], None]) -> None:
            self._stop = stop
            threading.Thread(target=watch, args=(stop,), daemon=True).start()

        self._queue.start()
        try:
            run_server(self._app, self._sockets, started, self._queue.stop)
        finally:
            self._queue.close()
        if self._queue.failure is not None:
            raise self._queue.failure

    def start(self) -> None:
        """Serve on a thread of its own, and return once the model is loaded."""
        self._thread = threading.Thread(target=self._run_quietly, name="server", daemon=True)
        self._thread.start()
        self.wait()

    def _run_quietly(self) -> None:
        try:
            self.run()
        except Exception:
            if self._queue.failure is None:  # else `wait` raises it
                raise

    def close(self) -> None:
        """End the answers that are under way, and free the model."""
        if self._stop is not None:
            self._stop()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    path: str | Path,
    *,
    port: int = 0,
    within_s: float | None = None,
    first_within_s: float | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_type: str | None = None,
    thinking: Thinking | None = None,
) -> Server:
    """Serve a bundle (or a model file) on this machine's loopback, on a thread of its own.

    A request that names no time has `within_s` for its whole answer and `first_within_s` for its
    first word. Port 0 takes a free one; `url` of the result names it.

    Raises what `boardfit.open` raises, and InputError for a port in use.
    """
    from boardfit.edge.deadline.budget import Budget

    has_limit = within_s is not None or first_within_s is not None
    budget = Budget(within_s, first_within_s) if has_limit else None

    overrides = {"n_ctx": n_ctx, "n_threads": n_threads, "kv_type": kv_type, "thinking": thinking}
    server = Server(make_queue(path, overrides), port=port, defaults=Defaults(budget=budget))
    server.start()
    return server
