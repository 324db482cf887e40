"""An engine over a decoder that only evaluates tokens, with a Hugging Face tokenizer beside it."""

import contextlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from boardfit.edge.engines.base import EngineBase, LogitRows
from boardfit.edge.engines.constraint import TokenSampler
from boardfit.edge.engines.generation import AnswerStream
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.numpy_sampler import NumpyCloser, NumpySampler
from boardfit.edge.engines.prefix_cache import PrefixCache, SavableCache
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import EngineError, UnsupportedModelError, UsageError
from boardfit.edge.types import EngineInfo, GenerationConfig

#: What may run without looking up, so that a stop is honoured within 50 ms: a whole step, or a node
#: of one where steps can be cancelled.
_STEP_BUDGET_S = 0.040


class Runner:
    """What runs a decoder's steps. `can_cancel`: a step in progress can be ended from outside."""

    can_cancel = False

    def cancel(self) -> None:
        """End the step in progress and those after it, where `can_cancel`; from any thread."""

    def allow(self) -> None:
        """Take `cancel` back."""

    def close(self) -> None:
        """Free everything."""


class Decoder(PrefixCache):
    """Tokens in, logits out. Knows nothing of threads, text or sampling.

    `logits` are float32 [n_logits] after the last token, a view that the next step overwrites;
    `lengths` are those of prefill steps.
    """

    graph: Runner
    n_ctx: int
    n_logits: int
    logits: Any
    lengths: tuple[int, ...]

    @abstractmethod
    def prefill(self, tokens: Sequence[int], *, budget_s: float | None) -> bool:
        """Evaluate a first part of `tokens` behind the cached ones, as much as one step takes,
        within `budget_s` where there is a choice. False if it was cancelled, and then nothing of
        it is cached.
        """

    @abstractmethod
    def decode(self, token: int) -> bool:
        """Evaluate one token; `logits` are those after it. False if cancelled."""


D = TypeVar("D", bound=Decoder)


@dataclass(frozen=True)
class Identity:
    """What an open model is. `fingerprint` identifies its bytes; `details` are for `describe`."""

    version: str
    build: str
    model_name: str
    fingerprint: str
    quant: str
    kv_type: str
    stop_texts: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class StepEngine(EngineBase[D]):
    """An engine over a decoder."""

    longer_context = (
        "build the model with a larger context: its length is fixed when it is exported"
    )

    def __init__(
        self,
        decoder: D,
        tokenizer: HfTokenizer,
        identity: Identity,
        settings: EngineSettings,
        n_threads: int,
    ) -> None:
        """Raises UsageError for a long context, UnsupportedModelError for a wrong tokenizer."""
        n_ctx = choose_n_ctx(decoder.n_ctx, settings.n_ctx, identity.model_name)
        if tokenizer.n_tokens > decoder.n_logits:
            raise UnsupportedModelError(
                f"{identity.model_name}: the tokenizer has {tokenizer.n_tokens} tokens, the model "
                f"{decoder.n_logits}: they do not belong together"
            )
        self._identity, self._n_threads = identity, n_threads
        graph = decoder.graph
        lease = Lease([decoder], interrupt=graph.cancel, allow=graph.allow, release=graph.close)
        stop_texts = identity.stop_texts
        super().__init__(identity.model_name, lease, tokenizer, n_ctx, stop_texts)
        self._closer = NumpyCloser(tokenizer) if tokenizer.end_tokens else None

    @property
    def threads_now(self) -> int:
        return self._n_threads

    def _compute_logits(self, stream_id: int, tokens: list[int], found: LogitRows) -> None:
        """One decode step per token, for exported prefill gives no logits."""
        n_vocab = self._vocabulary.n_tokens
        self.reset()
        try:
            for token in tokens:
                with self._lease.lock:
                    decoder = self._lease.get_for(stream_id)
                    if decoder is None or not decoder.decode(token):
                        raise EngineError("the engine was closed before its logits were known")
                    found.add(decoder.logits[None, :n_vocab])
        finally:
            with self._lease.lock:
                if (held := self._lease.held) is not None:
                    held.truncate(0)

    def _samplers(
        self, config: GenerationConfig, prompt: list[int]
    ) -> contextlib.nullcontext[tuple[TokenSampler, TokenSampler | None]]:
        return contextlib.nullcontext((NumpySampler(config, prompt), self._closer))

    def _logits(self, held: D) -> Any:
        # A vocabulary padded for speed has logits that stand for nothing.
        return held.logits[: self._vocabulary.n_tokens]

    def _mask(self, source: Any, index: int, allowed: Any) -> Any:
        import numpy as np

        return np.where(allowed, source, np.float32(-np.inf))

    def _step(self, streams: list[AnswerStream]) -> bool:
        """A decoder takes one token a step, so there are no guesses."""
        (stream,) = streams
        decoder = self._lease.get_for(stream.id)
        assert decoder is not None
        new = stream.known[len(decoder.cached) :]
        if len(new) > 1:
            budget_s = _STEP_BUDGET_S if stream.watcher.active else None
            return decoder.prefill(new[:-1], budget_s=budget_s)
        if not decoder.decode(new[0]):
            return False
        self._choose(stream, decoder)
        return True

    def _identify(self) -> dict[str, Any]:
        return {
            "model": self._identity.fingerprint,
            "engine": self.name,
            "build": self._identity.build,
            "n_ctx": self.n_ctx,
            "kv_type": self._identity.kv_type,
        }

    def describe(self) -> EngineInfo:
        decoder, identity = self._lease.get(), self._identity
        return EngineInfo(
            name=self.name,
            version=identity.version,
            build=identity.build,
            n_ctx=self.n_ctx,
            n_threads=self._n_threads,
            n_batch=max((1, *decoder.lengths)),
            kv_type=identity.kv_type,
            quant=identity.quant,
            details={
                "n_ctx_allocated": decoder.n_ctx,
                "prefill_lengths": list(decoder.lengths),
                "n_vocab": self._vocabulary.n_tokens,
                "n_logits": decoder.n_logits,
                "can_close": bool(self._vocabulary.end_tokens),
                "can_abort_prefill": True,
                "aborts_inside_a_step": decoder.graph.can_cancel,
                "can_save_prefix": isinstance(decoder, SavableCache),
                **identity.details,
            },
        )


def choose_n_ctx(exported: int, wanted: int | None, name: str) -> int:
    """The context in force. Raises UsageError for one beyond the exported."""
    if wanted is not None and wanted > exported:
        raise UsageError(
            f"a context of {wanted} tokens was asked for; {name} was exported with a cache of "
            f"{exported}, which cannot grow",
            next_step=f"--ctx {exported}, or build it again with a larger context",
        )
    return min(exported, wanted or exported)
