"""Compute the host's answer and the distance of its second choices. The board is compared with it
token by token, not text by text.

Kernels of different cores round differently, so a near tie may fall either way, and the texts part
from there. Therefore the board is shown the host's own tokens and asked for the next one each time
("teacher forcing"), and a token that the host thought almost as good counts as the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.engines import open_engine
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.types import GenerationConfig, LogitsEngine, Message

#: Logits apart: closer than this, two tokens count as equally good (e^0.5 = 1.6 times as likely).
NEAR_TIE = 0.5


@dataclass(frozen=True)
class HostReference:
    """The host's greedy answer, to compare with. It has the token ids of the prompt and of the
    answer. `logits` [n_answer, n_vocab] are the host's before each answer token, None if the engine
    does not give them.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    has_template: bool
    logits: Any | None


@dataclass(frozen=True)
class TokenAgreement:
    """Of `n` tokens, `equal` are the host's own, `near` within NEAR_TIE of it, the rest are not."""

    n: int
    equal: int
    near: int

    @property
    def share(self) -> float:
        return (self.equal + self.near) / self.n if self.n else 0.0


def host_reference(bundle: Bundle, text: str, n_tokens: int, n_threads: int) -> HostReference:
    """Answer `text` on this machine. Raises EngineMissingError without the bundle's engine."""
    settings = dataclasses.replace(EngineSettings.from_plan(bundle.plan), n_threads=n_threads)
    engine = open_engine(bundle.plan.engine, bundle.model, settings)
    try:
        prompt = (
            engine.render([Message("user", text)]) if engine.has_template else engine.prompt(text)
        )
        config = GenerationConfig(max_tokens=n_tokens, ignore_eos=True)
        events = list(engine.stream(prompt, config))
        answer = tuple(event.token_id for event in events if event.token_id is not None)
        logits = None
        if isinstance(engine, LogitsEngine):
            logits = engine.logits([*prompt, *answer])[len(prompt) - 1 : -1]
        shown = "".join(event.text for event in events)
        return HostReference(tuple(prompt), answer, shown, engine.has_template, logits)
    finally:
        engine.close()


def compare(reference: HostReference, chosen: Sequence[int]) -> TokenAgreement:
    """How far the board's choices are the host's; tokens that it never reached are not."""
    equal = near = 0
    for i, (expected, got) in enumerate(zip(reference.answer, chosen, strict=False)):
        if got == expected:
            equal += 1
        elif reference.logits is not None:
            row = reference.logits[i]
            near += bool(0 <= got < len(row) and row[expected] - row[got] <= NEAR_TIE)
    return TokenAgreement(len(reference.answer), equal, near)
