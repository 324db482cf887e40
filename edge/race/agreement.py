"""Check that the entrants choose the same tokens. A race with a broken copy of a model has no
meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boardfit.edge.errors import IntegrityError
from boardfit.edge.race.entrants import Entrant
from boardfit.edge.race.turns import ask

#: Tokens of each greedy answer that the others are held against.
N_GEN = 48
#: Two 4-bit copies of one model choose the same token nine times out of ten or more; models too
#: small or too little trained to be sure of anything less often. Below, one of them is broken.
LEAST = 0.6


@dataclass(frozen=True)
class EntrantAgreement:
    """Share of positions, on the first bundle's greedy answers, where a bundle would have chosen
    the same token.
    """

    entrant: Entrant
    share: float
    n_tokens: int


def compare_answers(entrants: Sequence[Entrant], n_ctx: int) -> list[EntrantAgreement]:
    """One row per bundle, the first with itself left out."""
    by_bundle: dict[str, Entrant] = {}
    for entrant in entrants:
        by_bundle.setdefault(entrant.bundle.id, entrant)
    first, *others = by_bundle.values()
    if not others:
        return []
    (reply,) = ask(first, n_ctx, {"task": "answer", "n_gen": N_GEN})
    rows = []
    for entrant in others:
        job = {"task": "follow", "prompts": reply["prompts"], "answers": reply["answers"]}
        (heard,) = ask(entrant, n_ctx, job)
        pairs = [
            (a, b)
            for mine, theirs in zip(reply["answers"], heard["predicted"], strict=True)
            for a, b in zip(mine, theirs, strict=True)
        ]
        rows.append(
            EntrantAgreement(entrant, sum(a == b for a, b in pairs) / len(pairs), len(pairs))
        )
    return rows


def check_agreement(first: Entrant, rows: Sequence[EntrantAgreement]) -> None:
    """Raise IntegrityError for a bundle that answers otherwise than the first."""
    for row in rows:
        if row.share < LEAST:
            raise IntegrityError(
                f"{row.entrant.engine} {row.entrant.recipe} and {first.engine} {first.recipe} "
                f"choose the same token at {row.share:.0%} of {row.n_tokens} positions; at least "
                f"{LEAST:.0%} is expected of two copies of one model",
                next_step="look at both quality cards (edge bundle show), or race them all the "
                "same with --any-answers",
            )
