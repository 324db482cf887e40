"""Tokens in, tokens out, over a decoder: the prefill in steps, then a token at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from boardfit.edge.engines.abort import StopWatcher
from boardfit.edge.engines.claims import Claims
from boardfit.edge.engines.decoder import Decoder
from boardfit.edge.engines.generation import Generation, aborted, raise_stop_error
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.numpy_sampler import NumpyCloser, NumpySampler
from boardfit.edge.engines.text_stream import TextStream
from boardfit.edge.types import GenerationConfig, StreamStart, TokenEvent

#: What may run without looking up, so that a stop is honoured within 50 ms: a whole step, or a node
#: of one where steps can be cancelled.
_STEP_BUDGET_S = 0.040


class StepGeneration(Generation[Decoder]):
    """A decoder's. `stop_texts` end an answer beside the tokens that do."""

    def __init__(
        self,
        claims: Claims[Decoder],
        tokenizer: HfTokenizer,
        stop_texts: tuple[str, ...],
        n_ctx: int,
    ) -> None:
        super().__init__(claims, n_ctx)
        self._tokenizer, self._stop_texts = tokenizer, stop_texts
        self.closer = NumpyCloser(tokenizer)

    def stream(
        self,
        prompt: list[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        t_start_ns: int,
    ) -> Iterator[TokenEvent]:
        """Answer a checked prompt; the time to the first token counts from `t_start_ns`."""
        stream_id = self.begin()
        tokenizer, n_vocab, n_out = self._tokenizer, self._tokenizer.n_tokens, 0
        stops = config.stop if config.ignore_eos else (*config.stop, *self._stop_texts)
        text, sampler = TextStream(stops), NumpySampler(config, prompt)
        with StopWatcher(stop, self._claims.interrupt) as watcher:
            with self._claims.lock:
                n_reused = self._claims.get_for(stream_id).keep_prefix(prompt)
            if not self._prefill(stream_id, prompt, watcher):
                yield aborted(text)
                return
            t_ns = t_prefill_ns = time.monotonic_ns()
            self.last_start = StreamStart(len(prompt), n_reused, t_start_ns, t_prefill_ns)
            while True:
                with self._claims.lock:
                    decoder = self._claims.get_for(stream_id)
                    pressure = config.pressure() if config.pressure else 0.0
                    logits = decoder.logits[:n_vocab]
                    if pressure > 0 and self.closer.can_close:
                        token = self.closer.sample(logits, pressure)
                    else:
                        token = sampler.sample(logits)
                    n_cached = len(decoder.cached)
                t_before_ns, t_ns = t_ns, time.monotonic_ns()
                if not config.ignore_eos and tokenizer.is_eog(token):
                    yield TokenEvent(None, text.flush(), t_ns, "stop")
                    return
                n_out += 1
                shown = text.push(tokenizer.piece(token))
                finish = self._finish(text, n_out, n_cached, config)
                if finish is not None:
                    yield TokenEvent(token, shown + text.flush(), t_ns, finish)
                    return
                yield TokenEvent(token, shown, t_ns)
                if n_out > 1:
                    watcher.expect((t_ns - t_before_ns) / 1e9)
                if watcher.stopped() or not self._step(stream_id, token, watcher):
                    yield aborted(text)
                    return

    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        budget_s = _STEP_BUDGET_S if watcher.active else None
        while True:
            if watcher.stopped():
                return False
            with self._claims.lock:
                decoder = self._claims.get_for(stream_id)
                done = len(decoder.cached)
                if done == len(prompt) - 1:
                    break
                ok = decoder.prefill(prompt[done:-1], budget_s=budget_s)
            if not ok:
                raise_stop_error(watcher)
                return False
        # Its logits are wanted, and only decode gives them.
        return self._step(stream_id, prompt[-1], watcher)

    def _step(self, stream_id: int, token: int, watcher: StopWatcher) -> bool:
        """Evaluate one token. False if stopped meanwhile."""
        with self._claims.lock:
            ok = self._claims.get_for(stream_id).decode(token)
        if not ok:
            raise_stop_error(watcher)
        return ok
