"""How likely the tokens of an answer, or of a prompt, are to the model.

Distributions are computed after the answer, by reading prompt and answer once more. They are those
of a quality card. So a perplexity over HTTP is the card's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.edge.chat.session import Session
from boardfit.edge.errors import InputError
from boardfit.edge.serve.ask import Ask
from boardfit.edge.serve.refused import RequestRefused, unsupported
from boardfit.edge.types import Engine, LogitsEngine, Message, TokenEvent


@dataclass(frozen=True)
class Likely:
    """A token's bytes and the natural logarithm of its probability, None for a text's first."""

    piece: bytes
    logprob: float | None

    @property
    def text(self) -> str:
        """The token's text, or its bytes in OpenAI's form where they are no whole characters."""
        try:
            return self.piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.piece)


@dataclass(frozen=True)
class Score(Likely):
    """A token of a text, and the likeliest ones in its place, likeliest first."""

    top: tuple[Likely, ...] = ()


class TokenSession(Session):
    """A session over a prompt that a client has cut into tokens."""

    tokens: Sequence[int] = ()

    def render(self, messages: list[Message]) -> list[int]:
        return list(self.tokens)


def check_scoring(engine: Engine, ask: Ask) -> None:
    """Raise RequestRefused where probabilities or a prompt's tokens cannot be had."""
    if ask.logprobs is not None and not isinstance(engine, LogitsEngine):
        raise unsupported("logprobs", f"{engine.describe().name} gives no probabilities")
    if ask.prompt_ids:
        try:
            engine.detokenize(ask.prompt_ids)
        except InputError as error:
            raise RequestRefused(400, f"prompt: {error}", param="prompt") from None


def score_answer(
    engine: Engine,
    ask: Ask,
    prompt: Sequence[int],
    events: Sequence[TokenEvent],
    must_stop: Callable[[], bool],
) -> tuple[Score, ...]:
    """Scores of an answer's tokens, those of thoughts left out, after the prompt's if it is echoed.

    A plain text's end token has one too: lm-eval takes the last score for that of what was
    generated, even where that is nothing but the end.

    Raises RequestRefused where `must_stop` ends it.
    """
    assert isinstance(engine, LogitsEngine) and ask.logprobs is not None
    answered = [event for event in events if event.token_id is not None]
    tokens = [*prompt, *(event.token_id for event in answered if event.token_id is not None)]
    hidden = {len(prompt) + i for i, event in enumerate(answered) if event.thought}
    start = 0 if ask.echo else len(prompt)
    last = events[-1]
    has_end = not ask.messages and last.finish_reason == "stop" and last.token_id is None
    found = score_tokens(engine, tokens, start, ask.logprobs, must_stop, has_end=has_end)
    return tuple(each for i, each in enumerate(found, start) if i not in hidden)


def score_tokens(
    engine: LogitsEngine,
    tokens: Sequence[int],
    start: int,
    n_top: int,
    must_stop: Callable[[], bool],
    *,
    has_end: bool = False,
) -> list[Score]:
    """Scores of `tokens` from place `start` on, with the `n_top` likeliest in each place.

    `has_end`: the likeliest special token behind them has a score too.
    """
    found = [Score(engine.piece(tokens[0]), None)] if start == 0 else []
    ids = tokens if has_end else tokens[:-1]

    def visit(first: int, rows: Any) -> None:
        if must_stop():
            raise RequestRefused(503, "the request was ended")
        for place in range(max(first + 1, start), first + len(rows) + 1):
            token = tokens[place] if place < len(tokens) else None
            found.append(_score(engine, rows[place - first - 1], token, n_top))

    if len(ids) >= max(start, 1):
        engine.logits(ids, visit=visit)
    return found


def _score(engine: LogitsEngine, row: Any, token: int | None, n_top: int) -> Score:
    """The score of a token; of the likeliest special one, if it is None."""
    import numpy as np

    values = row.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    n_top = min(n_top, len(values))
    top: list[int] = np.argpartition(values, -n_top)[-n_top:].tolist() if n_top else []
    likeliest = sorted(top, key=lambda each: (-values[each], each))
    if token is None:
        order = np.argsort(-values, kind="stable").tolist()
        token = next((each for each in order if not engine.piece(each)), order[0])
    return Score(
        engine.piece(token),
        float(values[token]),
        tuple(Likely(engine.piece(each), float(values[each])) for each in likeliest),
    )
