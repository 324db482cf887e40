"""Settings for opening any engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import psutil

from boardfit.edge.errors import UsageError
from boardfit.edge.template.thinking import switch_names
from boardfit.edge.types import Plan, Thinking
from boardfit.edge.units import did_you_mean

FlashAttention = Literal["auto", "on", "off", "quicker"]

#: Default context: long enough for a chat, small enough for a board.
DEFAULT_N_CTX = 4096

#: Most tokens guessed ahead: logits of each take memory, and long guesses are rarely right.
MOST_DRAFT = 32

#: Each shelf has a row of logits, and recurrent layers a state.
MOST_SHELVES = 16

#: Answers computed at once: each has a row of logits, and all share the context's cells.
MOST_SLOTS = 16

#: Of a chat with a recurrent model: behind its system prompt, its last question, that answer.
CHAT_MARKS = 3

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def usable_cpus() -> int:
    """CPUs that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Physical cores that this process may use, at least 1: decode is bound by memory."""
    return min(psutil.cpu_count(logical=False) or usable_cpus(), usable_cpus())


@dataclass(frozen=True)
class EngineSettings:
    """Settings of one open engine. None means: the engine's or the model's own default.

    `n_ctx`            tokens of context; None: the trained length, at most `DEFAULT_N_CTX`
    `n_threads`        threads for decode; `n_threads_batch` for prefill (None: the same)
    `n_batch`          most tokens handed over at once in prefill; `n_ubatch` computed at once
    `kv_type`          type of the KV cache, one of `KV_TYPES`
    `use_mmap`         map the weights instead of reading them into anonymous memory
    `repack`           let the engine keep 4-bit weights in its CPU's fastest layout (more memory)
    `flash_attn`       fused attention, which quantized KV types need: `on`, `off`, `auto` (the
                       library decides) or `quicker` (what is known to be quicker here)
    `swa_full`         keep the whole context for sliding-window layers too: more memory, but any
                       prefix can be reused
    `prefill_chunk`    fixed tokens per prefill step; None adapts it, so that a stop is honoured
                       in time, at the price of results that may differ in the last bits
    `adapt_threads`    compute with fewer threads while other processes hold the cores
    `n_draft`          tokens that may be guessed from the prompt and checked in one step; 0: none
    `n_shelves`        beginnings of earlier prompts kept beside the running one, within the same
                       cells; fewer where memory is short
    `n_marks`          shelves for a model whose recurrent states cannot be cut back, so that one
                       conversation's turns can reuse what they share
    `n_slots`          answers computed at once, within the same cells; one where an engine or a
                       memory cannot, fewer where memory is short
    `thinking`         whether a model that can think before its answer does: on, off, or auto (as
                       its chat template has it); `template_variables` go into that template
    `need_bytes`       memory that was predicted (Plan.peak_bytes); None: estimated from the header
    `check_memory`     refuse before loading when the memory free now is less than that
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_batch: int = 512
    n_ubatch: int = 512
    kv_type: str = "f16"
    use_mmap: bool = True
    repack: bool = True
    flash_attn: FlashAttention = "auto"
    swa_full: bool = False
    prefill_chunk: int | None = None
    adapt_threads: bool = True
    n_draft: int = 0
    n_shelves: int = 0
    n_marks: int = 0
    n_slots: int = 1
    thinking: Thinking = "auto"
    template_variables: Mapping[str, Any] = field(default_factory=dict, hash=False)
    need_bytes: int | None = None
    check_memory: bool = True

    def __post_init__(self) -> None:
        threads = ("n_threads", "n_threads_batch")
        for name in ("n_ctx", *threads, "n_batch", "n_ubatch", "prefill_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, got {value}")
        if not 0 <= self.n_draft <= MOST_DRAFT:
            raise UsageError(f"n_draft must be 0 to {MOST_DRAFT}, got {self.n_draft}")
        for name in ("n_shelves", "n_marks"):
            if not 0 <= (value := getattr(self, name)) <= MOST_SHELVES:
                raise UsageError(f"{name} must be 0 to {MOST_SHELVES}, got {value}")
        if not 1 <= self.n_slots <= MOST_SLOTS:
            raise UsageError(f"n_slots must be 1 to {MOST_SLOTS}, got {self.n_slots}")
        for name, kind in (("thinking", Thinking), ("flash_attn", FlashAttention)):
            if (value := getattr(self, name)) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UsageError(f"{name} must be one of {known}; got {value!r}")
        if self.kv_type not in KV_TYPES:
            raise UsageError(
                f"unknown KV cache type {self.kv_type!r}; known: {', '.join(KV_TYPES)}."
                f"{did_you_mean(self.kv_type, KV_TYPES)}"
            )

    @classmethod
    def from_plan(cls, plan: Plan) -> EngineSettings:
        """The settings that a plan decided on."""
        same = ("n_ctx", "n_batch", "n_ubatch", "kv_type", "use_mmap", "repack", "thinking")
        return cls(
            **{name: getattr(plan, name) for name in (*same, "template_variables")},
            # A bundle tried elsewhere than planned for: threads without a core only wait.
            n_threads=min(plan.n_threads, usable_cpus()),
            need_bytes=plan.peak_bytes,
        )

    @classmethod
    def to_use(cls, plan: Plan) -> EngineSettings:
        """As `from_plan`, and attention as it is quicker here."""
        return cls.from_plan(plan).replace(flash_attn="quicker")

    def replace(self, **changes: Any) -> EngineSettings:
        """A copy with some fields changed; changes that are None are left out. A changed context
        makes the prediction of memory void.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        if given.keys() & {"thinking", "template_variables"}:
            # Beside those of the plan, but for its own switch of what is switched here.
            dropped = switch_names() if "thinking" in given else frozenset[str]()
            kept = {k: v for k, v in self.template_variables.items() if k not in dropped}
            given["template_variables"] = {**kept, **given.get("template_variables", {})}
        if given.keys() & {"n_ctx", "kv_type", "n_ubatch"} and "need_bytes" not in given:
            given["need_bytes"] = None
        return dataclasses.replace(self, **given)
