"""The part of an engine that a store needs, without a model: its state is a block of bytes made of
its tokens, in real state files.

    python -m tests.edge.states.block_engine FOLDER SEED   one of two processes that share a folder
"""

from __future__ import annotations

import mmap
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boardfit.edge.engines.kv_state import count_to_save, mapped_state, write_state
from boardfit.edge.engines.prefix_cache import common
from boardfit.edge.errors import EngineError
from boardfit.edge.states.store import StateStore

N_CTX = 4096
STATE_BYTES_PER_TOKEN = 64


def state_of(tokens: Sequence[int]) -> bytes:
    return b"".join(token.to_bytes(STATE_BYTES_PER_TOKEN, "little") for token in tokens)


class BlockEngine:
    """`cached` are the tokens it holds. `cuts`: it can be cut back, like attention and unlike a
    recurrent state.
    """

    def __init__(self, *, build: str = "1", cuts: bool = True) -> None:
        self.cached: list[int] = []
        self.build = build
        self.cuts = cuts

    def save_prefix(
        self, path: Path, n_tokens: int | None = None, *, max_bytes: int | None = None
    ) -> int:
        keep = count_to_save(n_tokens, len(self.cached))
        state = state_of(self.cached[:keep])

        def fill(target: mmap.mmap) -> int:
            return target.write(state)

        tokens = self.cached[:keep]
        write_state(path, self._identity(), tokens, len(state), fill, max_bytes=max_bytes)
        return keep

    def restore_prefix(self, path: Path) -> int:
        with mapped_state(path, self._identity(), N_CTX) as (tokens, state):
            if bytes(state) != state_of(tokens):
                raise EngineError("a wrong state got through")
            self.cached = tokens
        return len(tokens)

    def reusable(self, tokens: Sequence[int]) -> int:
        n = common(self.cached, tokens[:-1])
        return n if self.cuts or n == len(self.cached) else 0

    def _identity(self) -> dict[str, Any]:
        return {"model": "block", "build": self.build}


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    chance, engine = random.Random(seed), BlockEngine()
    store = StateStore(folder, "block", {}, limit_bytes=100_000)
    problems: list[str] = []
    for _ in range(60):
        tokens = [chance.randrange(8), *range(chance.randrange(20, 300))]
        engine.cached = []
        if chance.random() < 0.2:
            store.refresh()
        restored = store.restore(engine, [*tokens, 0])  # type: ignore[arg-type]
        problems += restored.problems
        assert engine.cached == list(restored.state)
        engine.cached = tokens
        store.save(engine, tokens)  # type: ignore[arg-type]
    assert not problems, problems


if __name__ == "__main__":
    main()
