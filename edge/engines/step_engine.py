"""An engine over a decoder that only evaluates tokens, with a Hugging Face tokenizer beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from boardfit.edge.engines.base import EngineBase
from boardfit.edge.engines.decoder import Decoder
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.logit_rows import LogitRows
from boardfit.edge.engines.prefix_cache import SavableCache
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.engines.step_generation import StepGeneration
from boardfit.edge.errors import EngineError, UnsupportedModelError, UsageError
from boardfit.edge.types import EngineInfo

D = TypeVar("D", bound=Decoder)


@dataclass(frozen=True)
class Identity:
    """What an open model is: versions, file. `fingerprint` identifies its bytes; `details` are for
    `describe`.
    """

    version: str
    build: str
    model_name: str
    fingerprint: str
    quant: str
    kv_type: str
    stop_texts: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class StepEngine(EngineBase[D]):
    """See the module."""

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
        """Raises UsageError for a context beyond the exported one, UnsupportedModelError if the
        tokenizer knows ids that the model does not.
        """
        n_ctx = choose_n_ctx(decoder.n_ctx, settings.n_ctx, identity.model_name)
        if tokenizer.n_tokens > decoder.n_logits:
            raise UnsupportedModelError(
                f"{identity.model_name}: the tokenizer has {tokenizer.n_tokens} tokens, the model "
                f"{decoder.n_logits}: they do not belong together"
            )
        self._identity, self._n_threads = identity, n_threads
        graph = decoder.graph
        lease = Lease(decoder, interrupt=graph.cancel, allow=graph.allow, release=graph.close)
        super().__init__(
            identity.model_name, StepGeneration(lease, tokenizer, n_ctx, identity.stop_texts)
        )

    @property
    def threads_now(self) -> int:
        return self._n_threads

    def _compute_logits(self, stream_id: int, tokens: list[int], found: LogitRows) -> None:
        """One decode step per token, for exported prefill gives no logits: as slow as generating
        them.
        """
        n_vocab = self._vocabulary.n_tokens
        self.reset()
        try:
            for token in tokens:
                with self._lease.lock:
                    decoder = self._lease.get_for(stream_id)
                    if not decoder.decode(token):
                        raise EngineError("the engine was closed before its logits were known")
                    found.add(decoder.logits[None, :n_vocab])
        finally:
            with self._lease.lock:
                if (held := self._lease.held) is not None:
                    held.truncate(0)

    def _identify(self) -> dict[str, Any]:
        return {
            "model": self._identity.fingerprint,
            "engine": self.name,
            "build": self._identity.build,
            "n_ctx": self._n_ctx,
            "kv_type": self._identity.kv_type,
        }

    def describe(self) -> EngineInfo:
        decoder, identity = self._lease.get(), self._identity
        return EngineInfo(
            name=self.name,
            version=identity.version,
            build=identity.build,
            n_ctx=self._n_ctx,
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
