"""Measure how long a refused request would really have taken."""

from __future__ import annotations

import copy
import dataclasses
import time

from boardfit.edge.chat.timed_session import TimedSession
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.types import GenerationConfig


def needed_s(session: TimedSession, text: str, budget: Budget, config: GenerationConfig) -> float:
    """Seconds that the shortest version of `text` takes to the fewest tokens that are an answer, or
    to its first one if only that is limited; by the smaller model where there is one. The history
    and what is known of times stay as they were; the KV cache holds the request then.
    """
    asked = session.last_resort
    times, messages = asked.times, list(asked.messages)
    asked.system, asked.messages = session.system, list(session.messages)
    # A copy learns from it: the requests that follow find what they would have found.
    asked.times = copy.deepcopy(times)
    n_tokens = 1 if budget.within_s is None else budget.n_min
    try:
        began_s = time.monotonic()
        # A first token within a millisecond cannot be had: the shortest version is taken.
        least = Budget(first_within_s=1e-3, on_miss="best", tell=False)
        limited = dataclasses.replace(config, max_tokens=n_tokens, ignore_eos=True)
        for _ in asked.ask_within(text, least, limited):
            pass
        return time.monotonic() - began_s
    finally:
        asked.times, asked.messages = times, messages
