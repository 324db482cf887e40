"""Find the prompt prefix that all conversations with one system prompt share, and whether storing
its state pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boardfit.edge.engines.prefix_cache import common
from boardfit.edge.types import Message

#: Fewer tokens, or fewer seconds to compute them, are not worth a file.
MIN_TOKENS = 32
MIN_COMPUTE_S = 0.02
# First characters that tokenizers merge with what stands before them, or do not.
_PROBES = ("a", "The", "\n")


def system_prefix(
    render: Callable[[list[Message]], Sequence[int]], system: str | None
) -> list[int]:
    """Return the tokens that begin every conversation with `system`, regardless of the question:
    the longest prefix that a few different questions share. Raises what `render` raises.
    """
    shared: Sequence[int] | None = None
    before = [Message("system", system)] if system else []
    for text in _PROBES:
        tokens = render([*before, Message("user", text)])
        shared = tokens if shared is None else shared[: common(shared, tokens)]
    return list(shared or ())


def is_worth_storing(n_tokens: int, compute_s: float, restore_s: float) -> bool:
    """Whether a state of `n_tokens` that took `compute_s` should be kept, if it is restored in
    `restore_s`: it should win clearly, for storage may be slower than it was when last measured.
    """
    return n_tokens >= MIN_TOKENS and compute_s >= max(MIN_COMPUTE_S, 1.5 * restore_s)
