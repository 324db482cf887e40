"""Vectors of an embedding model, for clients: one text at a time, in order of arrival."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from boardfit.edge.chat.embed import open_embedder
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.engines.target import OpenModel, engine_of
from boardfit.edge.errors import EdgeError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.gguf.purpose import is_embedder
from boardfit.edge.process.live import STATUS
from boardfit.edge.serve.ask import Ask
from boardfit.edge.serve.job import Job
from boardfit.edge.serve.queue import MAX_QUEUED, AnswerQueue
from boardfit.edge.serve.refused import RequestRefused, busy, not_ready, too_long

if TYPE_CHECKING:
    from boardfit.edge.engines.llama.embedding import LlamaEmbedder

_NO_TEXT = "this is an embedding model, which generates no text; POST /v1/embeddings or /api/embed"
#: Read at load, for the seconds that a token takes; what later requests take counts by `_LEARN`.
_LEARN = 0.3
_FIRST_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class VectorAsk:
    """Texts that become a vector each."""

    texts: tuple[str, ...]
    budget: Budget | None = None
    n_dims: int | None = None
    is_base64: bool = False


@dataclass(frozen=True)
class Vectors:
    """The vectors of a request, in float32, and what they took."""

    rows: Sequence[array[float]]
    n_tokens: int
    queue_s: float
    total_s: float
    within_s: float | None

    def to_facts(self) -> dict[str, Any]:
        """What we know of them beyond the wire."""
        facts: dict[str, Any] = {"queue_s": self.queue_s, "total_s": self.total_s}
        if self.within_s is not None:
            facts |= {"within_s": self.within_s, "met": self.total_s <= self.within_s}
        return facts


def makes_vectors(path: str | Path) -> bool:
    """Whether a model is an embedding model; False for what cannot be read."""
    from boardfit.edge.bundle.bundle import open_bundle
    from boardfit.edge.engines.model_file import model_file

    try:
        if Path(path).is_dir():
            return "pooling" in open_bundle(path, verify=False).manifest["model"]
        file = model_file(Path(path))
        return engine_of(file) == "llama_cpp" and is_embedder(read_header(file))
    except (EdgeError, OSError, KeyError, TypeError):
        return False


class VectorQueue(AnswerQueue):
    """Loads an embedding model and makes vectors with it. No text comes from it."""

    def __init__(self, path: str | Path, overrides: dict[str, Any], *, most_s: float) -> None:
        super().__init__(lambda: cast(OpenModel, open_embedder(path, **overrides)), most_s=most_s)
        self._turn, self._n_waiting, self._token_s = threading.Lock(), 0, 0.0

    def counts(self) -> dict[str, int]:
        return {"running": int(self._turn.locked()), "waiting": self._n_waiting}

    async def submit(self, ask: Ask) -> Job:
        raise RequestRefused(400, _NO_TEXT)

    async def predict(self, ask: Ask) -> dict[str, Any]:
        raise RequestRefused(400, _NO_TEXT)

    async def embed(self, ask: VectorAsk, is_gone: Callable[[], bool]) -> Vectors:
        """The vectors of all texts, or RequestRefused."""
        n_dims = self._embedder.n_embd
        if ask.n_dims not in (None, n_dims):
            raise RequestRefused(400, f"dimensions: this model makes {n_dims}", param="dimensions")
        if self._n_waiting >= MAX_QUEUED:
            raise busy(f"{MAX_QUEUED} requests are waiting", 1.0)
        received_s = time.monotonic()
        self._n_waiting += 1
        return await asyncio.to_thread(self._embed_in_turn, ask, is_gone, received_s)

    @property
    def _embedder(self) -> LlamaEmbedder:
        return cast("LlamaEmbedder", self.use().engine)

    def _embed_in_turn(
        self, ask: VectorAsk, is_gone: Callable[[], bool], received_s: float
    ) -> Vectors:
        try:
            self._turn.acquire()
        finally:
            self._n_waiting -= 1
        try:
            started_s = time.monotonic()
            embedder, rows, n_tokens = self._embedder, list[Any](), 0
            self._check_time(ask, started_s - received_s)

            def must_stop() -> bool:
                is_late = time.monotonic() > started_s + self._most_s
                return is_gone() or is_late or not self.is_ready

            for text in ask.texts:
                if must_stop():
                    raise not_ready("the request was ended")
                vector, n = embedder.embed(text, must_stop)
                rows.append(array("f", vector))
                n_tokens += n
            now_s = time.monotonic()
            within_s = ask.budget.within_s if ask.budget else None
            self._count(n_tokens, now_s - started_s)
            return Vectors(rows, n_tokens, started_s - received_s, now_s - received_s, within_s)
        finally:
            self._turn.release()

    def _check_time(self, ask: VectorAsk, queue_s: float) -> None:
        """Raise RequestRefused where the texts cannot become vectors in their time."""
        budget = ask.budget
        if budget is None or budget.within_s is None or budget.on_miss == "best":
            return
        needs_s = self._token_s * sum(len(self._embedder.tokenize(text)) for text in ask.texts)
        if needs_s > budget.within_s:
            raise too_long(f"the vectors need {needs_s:.2g} s", needs_s, budget.within_s)
        if queue_s + needs_s > budget.within_s:
            raise busy("other requests were before this one", needs_s, queue_s=queue_s)

    def _count(self, n_tokens: int, seconds: float) -> None:
        self.counters.count("prompt_tokens_total", '{from="computed"}', n_tokens)
        self.counters.count("answer_seconds_total", "", seconds)
        if n_tokens:
            self._token_s += _LEARN * (seconds / n_tokens - self._token_s)

    def _run_engine(self) -> None:
        try:
            opened = self._load()
            embedder = cast("LlamaEmbedder", opened.engine)
            for _ in range(2):  # the first reads the weights from the disk
                began_s = time.monotonic()
                _, n_tokens = embedder.embed(_FIRST_TEXT)
                self._token_s = (time.monotonic() - began_s) / n_tokens
            STATUS.publish_model(opened.name, embedder.describe())
            self.opened = opened
        except Exception as error:
            self.failure = error
            self.ready.set()
            return
        self.ready.set()
        with self._wake:
            while not self._is_closing:
                self._heart.beat()
                self._wake.wait(self._heart.pause_s)
        with self._turn:
            embedder.close()
