"""Child process of `truth`: open a model, fill its context, sample as in a chat.

Imports what `edge run` imports, so that the memory of the process is that of a real run. Each stage
is a line on stdout; the next one begins after a line on stdin.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
from typing import Any

import click  # noqa: F401
import jinja2  # noqa: F401

import boardfit.edge.chat.command
import boardfit.edge.chat.run_command
import boardfit.edge.chat.session
import boardfit.edge.cli
import boardfit.edge.template.render  # noqa: F401
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.lease import give_back_memory
from boardfit.edge.types import GenerationConfig

_N_LEFT = 8  # cells that stay free for the answer


def main(path: str, n_vocab: int, n_computed: int | None, settings: dict[str, Any]) -> None:
    tell("imported")
    engine: Any = open_engine("llama_cpp", path, EngineSettings(**settings))
    tell("open")
    draw = random.Random(0)
    n_fill = engine.n_ctx - _N_LEFT
    if n_computed is not None:
        engine.feed([draw.randrange(n_vocab - 1) for _ in range(2)])
        restore_longer(engine, path, n_fill - n_computed)
        tell("restored")
        n_fill = n_computed
    engine.feed([draw.randrange(n_vocab - 1) for _ in range(n_fill)])
    tell("full")
    config = GenerationConfig(max_tokens=4, temperature=0.8, seed=1, ignore_eos=True)
    prompt = [*engine._lease.get().cached, 1]
    for _ in engine.stream(prompt, config):
        pass
    tell(f"answered {len(engine._lease.get().cached)}")


def restore_longer(engine: Any, path: str, n_there: int) -> None:
    """Save the sequence in the library's own file, which the parent makes longer; load that."""
    lib, held, file = engine._lib, engine._lease.get(), os.fsencode(path + ".state")
    handle, seq, n = held.context.handle, held.seq, len(held.cached)
    tokens = (lib.llama_token * n)(*held.cached)
    assert lib.llama_state_seq_save_file(handle, file, seq, tokens, n)
    tell("saved")
    count = ctypes.c_size_t(0)
    tokens = (lib.llama_token * n_there)()
    held.truncate(0)
    assert lib.llama_state_seq_load_file(handle, file, seq, tokens, n_there, ctypes.byref(count))
    assert count.value == n_there
    held.cached = list(tokens)
    give_back_memory()


def tell(stage: str) -> None:
    print("stage:", stage, flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody listens")


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
