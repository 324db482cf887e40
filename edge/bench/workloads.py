"""The tests of a bench: exact token counts over one fixed pseudo-random prompt.

All prompts are prefixes of the same token sequence, so that depth 512 is a part of depth 2048 and
an engine that reuses its KV cache fills the depth once.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from boardfit.edge.errors import UsageError
from boardfit.edge.types import Engine

Kind = Literal["prefill", "decode", "end-to-end", "load", "sustained"]

SEED = 20260101
_SYLLABLES = ("ka", "lo", "mi", "ren", "sta", "tor", "vel", "an", "es", "un", "pre", "ost", "ing")

STANDARD_PREFILL = (128, 512, 2048)
STANDARD_DEPTHS = (0, 512, 2048)
QUICK_PREFILL = (128, 512)
QUICK_DEPTHS = (0, 256)


@dataclass(frozen=True)
class Test:
    """One line of the result table. `n_prompt` tokens are processed (and timed in prefill and
    end-to-end tests), `n_depth` tokens are in the context before decode starts, `n_gen` tokens are
    generated. `page_cache` is set for loads only.
    """

    kind: Kind
    n_prompt: int
    n_depth: int
    n_gen: int
    page_cache: Literal["cold", "warm"] | None = None

    @property
    def label(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.n_prompt}"
        if self.kind == "decode":
            return f"decode {self.n_gen} at depth {self.n_depth}"
        if self.kind == "load":
            return f"load {self.page_cache}"
        if self.kind == "sustained":
            return f"sustained decode, {self.n_gen} at a time"
        return f"end-to-end {self.n_prompt}+{self.n_gen}"


def make_tests(n_ctx: int, *, quick: bool = False, n_gen: int | None = None) -> list[Test]:
    """The tests that a context of `n_ctx` tokens has room for. Raises UsageError when none has."""
    n_gen = n_gen or (32 if quick else 128)
    lengths = QUICK_PREFILL if quick else STANDARD_PREFILL
    depths = QUICK_DEPTHS if quick else STANDARD_DEPTHS
    prefill = [n for n in lengths if n + 1 <= n_ctx]
    # The deepest test is "full": the context's end, where the board's memory matters most.
    full = n_ctx - n_gen - 1
    known = [d for d in depths if d + n_gen + 1 <= n_ctx]
    if not quick and known and full > 1.25 * known[-1]:
        known.append(full)
    tests = [Test("prefill", n, 0, 0) for n in prefill]
    tests += [Test("decode", 0, depth, n_gen) for depth in known]
    if 64 + n_gen < n_ctx:
        tests.append(Test("end-to-end", 64, 0, n_gen))
    if not tests:
        raise UsageError(
            f"a context of {n_ctx} tokens is too short for any test", next_step="--ctx 512"
        )
    return tests


def fixed_text(n_words: int) -> str:
    """The same pseudo-random words on every machine."""
    words = random.Random(SEED)
    return " ".join(
        "".join(words.choice(_SYLLABLES) for _ in range(words.randint(1, 3)))
        for _ in range(n_words)
    )


def fixed_tokens(engine: Engine, n_tokens: int) -> list[int]:
    """Exactly `n_tokens` ids of the fixed text, in this model's vocabulary."""
    tokens: list[int] = []
    n_words = max(64, n_tokens)
    while len(tokens) < n_tokens:
        tokens = engine.tokenize(fixed_text(n_words))
        n_words *= 2
    return tokens[:n_tokens]


def prompt_hash(tokens: Sequence[int]) -> str:
    """Sha256 over the ids as text, so that two results can be seen to have had the same prompt."""
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()
