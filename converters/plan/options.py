"""The options that a user may fix in a plan, and the free choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from boardfit.converters.plan.reach import Need, context_of
from boardfit.device_profiles.cost.memory import KV_BLOCK
from boardfit.edge.errors import UsageError
from boardfit.edge.units import did_you_mean

Prefer = Literal["balanced", "quality", "speed", "memory"]
PREFERENCES: tuple[Prefer, ...] = ("balanced", "quality", "speed", "memory")


@dataclass(frozen=True)
class PlanOptions:
    """What the user has fixed; None leaves the choice to the plan.

    `has_imatrix` is whether the build will weigh activations, which changes some recipes' types.
    `min_tps` and `max_ttft_s` are promises that every user must get: tokens per second while
    answering, and seconds from a question of `n_prompt` tokens to the first token. With `n_users`
    above one, each has a context of `n_ctx` of its own, and they are served in turns. `needs` are a
    workload's requests and their time (`workload_needs`); they say how long the context has to be.
    """

    recipe: str | None = None
    n_ctx: int | None = None
    kv_type: str | None = None
    n_threads: int | None = None
    n_ubatch: int | None = None
    prefer: Prefer = "balanced"
    has_imatrix: bool = False
    min_tps: float | None = None
    max_ttft_s: float | None = None
    n_prompt: int = 256
    n_users: int = 1
    needs: tuple[Need, ...] = ()

    def __post_init__(self) -> None:
        if self.prefer not in PREFERENCES:
            raise UsageError(
                f"unknown preference {self.prefer!r}; known: {', '.join(PREFERENCES)}."
                f"{did_you_mean(self.prefer, PREFERENCES)}"
            )
        if self.kv_type is not None and self.kv_type not in KV_BLOCK:
            raise UsageError(
                f"unknown KV cache type {self.kv_type!r}; known: {', '.join(KV_BLOCK)}."
                f"{did_you_mean(self.kv_type, KV_BLOCK)}"
            )
        for name, low in (
            ("n_ctx", 64),
            ("n_threads", 1),
            ("n_ubatch", 1),
            ("n_prompt", 1),
            ("n_users", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} must be {low} or more, got {value}")
        for name in ("min_tps", "max_ttft_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be more than zero, got {value}")
        if self.needs:
            wanted = context_of(self.needs)
            if self.n_ctx is None:
                object.__setattr__(self, "n_ctx", wanted)
            elif self.n_ctx < wanted:
                longest = max(self.needs, key=lambda need: need.n_ctx)
                raise UsageError(
                    f"a context of {self.n_ctx} does not hold the requests of {longest.task}, which"
                    f" take up to {wanted} tokens",
                    next_step=f"--ctx {wanted}, or leave --ctx out",
                )

    @property
    def has_deadline(self) -> bool:
        """Whether a speed is demanded, so that a plan must keep it."""
        return self.min_tps is not None or self.max_ttft_s is not None or bool(self.needs)
