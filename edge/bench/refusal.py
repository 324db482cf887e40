"""Measure how long a refused request would really have taken."""

from __future__ import annotations

import copy
import dataclasses
import time

from boardfit.edge.chat.session import Session
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.types import GenerationConfig


def needed_s(session: Session, text: str, budget: Budget, config: GenerationConfig) -> float:
    """Seconds that the shortest version of `text` takes to the fewest tokens that are an answer, or
    to its first one if only that is limited; by the smaller model where there is one. The history
    and what is known of times stay as they were; the KV cache holds the request then.
    """
    asked = session.small or session  # the one that refused last
    assert asked.deadline is not None
    timing, messages = asked.deadline.timing, list(asked.messages)
    times = timing.times
    asked.system, asked.messages = session.system, list(session.messages)
    # A copy learns from it: the requests that follow find what they would have found.
    timing.times = copy.deepcopy(times)
    n_tokens = 1 if budget.within_s is None else budget.n_min
    try:
        began_s = time.monotonic()
        # A first token within a millisecond cannot be had: the shortest version is taken.
        least = Budget(first_within_s=1e-3, on_miss="best", tell=False)
        limited = dataclasses.replace(config, max_tokens=n_tokens, ignore_eos=True)
        for _ in asked.ask(text, limited, budget=least):
            pass
        return time.monotonic() - began_s
    finally:
        timing.times, asked.messages = times, messages
