"""Shorten a text that exceeds the context to its most relevant sentences.

The deadline controller leaves sentences out for time; here they are left out for room, by the same
selection (`boardfit.edge.deadline.shorten`), before anything is asked.
"""

from __future__ import annotations

from collections.abc import Callable

# Selection counts sentences one by one; together they may take a few tokens more.
_TRIES = 6


def fit_message(
    message: str, n_prompt: Callable[[str], int], count: Callable[[str], int], room: int
) -> tuple[str, str | None]:
    """`message`, shortened until its whole prompt takes at most `room` tokens, and a note that says
    so; unchanged, without a note, where it fits or nothing in it can go. `n_prompt` counts a prompt
    with the message in it, `count` a plain text.
    """
    total = n_prompt(message)
    if total <= room:
        return message, None
    from boardfit.edge.deadline.shorten import select, split

    pieces = split(message)
    sizes = [count(piece.text) for piece in pieces]
    budget = sum(sizes) - (total - room)
    for _ in range(_TRIES):
        short = select(pieces, sizes, budget)
        if short is None:
            return message, None
        taken = n_prompt(short)
        if taken <= room:
            note = (
                f"the text is longer than the context: {count(short)} of {sum(sizes)} tokens kept, "
                "the most relevant sentences"
            )
            return short, note
        budget -= taken - room + 4
    return message, None
