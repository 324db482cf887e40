"""The user's time limits: seconds for the whole answer, seconds to its first token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from boardfit.edge.errors import UsageError
from boardfit.edge.units import parse_seconds

OnMiss = Literal["refuse", "best"]


@dataclass(frozen=True)
class Budget:
    """Seconds from the request to the last token (`within_s`) and to the first (`first_within_s`);
    None: no limit. `on_miss`: what to do when no version of the question fits. `n_min` tokens are
    an answer worth giving. `tell`: the model is asked in words for a short answer.

    Raises UsageError for a time that is not finite and positive.
    """

    within_s: float | None = None
    first_within_s: float | None = None
    on_miss: OnMiss = "refuse"
    n_min: int = 8
    tell: bool = True

    def __post_init__(self) -> None:
        for name in ("within_s", "first_within_s"):
            seconds = getattr(self, name)
            if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
                raise UsageError(
                    f"{name} must be a time of more than zero seconds, got {seconds}",
                    next_step="for example --within 2s",
                )
        if self.on_miss not in ("refuse", "best"):
            raise UsageError(f"on_miss must be refuse or best, got {self.on_miss!r}")
        if self.n_min < 1:
            raise UsageError(f"n_min must be 1 or more tokens, got {self.n_min}")

    @classmethod
    def parse(
        cls,
        within: str | None,
        first_within: str | None = None,
        *,
        on_miss: OnMiss = "refuse",
        n_min: int = 8,
        tell: bool = True,
    ) -> Budget | None:
        """From texts such as `2s`, `500ms`, `1.5`; None without any. Raises UsageError that
        names the option.
        """
        seconds: list[float | None] = []
        for option, text in (("--within", within), ("--first-within", first_within)):
            try:
                seconds.append(None if text is None else parse_seconds(text))
            except ValueError as error:
                raise UsageError(f"{option}: {error}") from None
        if seconds == [None, None]:
            return None
        return cls(seconds[0], seconds[1], on_miss, n_min, tell)

    @property
    def limit_s(self) -> float:
        """Seconds for the answer; for its first token, if only that is limited; else infinite."""
        if self.within_s is not None:
            return self.within_s
        return float("inf") if self.first_within_s is None else self.first_within_s
