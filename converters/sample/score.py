"""Score the sample model after every recipe, through the engine that boards run.

    python -m boardfit.converters.sample.score                  # all recipes, all held-out requests
    python -m boardfit.converters.sample.score q4_0 q4_k_m --limit 300 --dry-run

Writes the results into the model card (`boardfit.converters.sample.results`) unless `--dry-run`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from boardfit.converters.formats.gguf.recipe import list_recipes, load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.sample import MODEL_DIR, results
from boardfit.converters.sample.task import MAX_NEW_TOKENS, Example, TaskScore, held_out, score
from boardfit.converters.source.resolve import open_model
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.types import Engine, GenerationConfig, Message


def answer(engine: Engine, messages: list[dict[str, str]]) -> str:
    """One greedy answer to chat messages; the KV cache of the common prefix is reused."""
    tokens = engine.render([Message(m["role"], m["content"]) for m in messages])  # type: ignore[arg-type]
    config = GenerationConfig(max_tokens=MAX_NEW_TOKENS)
    return "".join(event.text for event in engine.stream(tokens, config))


def score_file(
    model: Path, examples: list[Example], threads: int | None = None
) -> tuple[TaskScore, str]:
    """Score one GGUF file. Returns the score and the engine's name and version."""
    engine = open_engine("llama_cpp", model, EngineSettings(n_ctx=1024, n_threads=threads))
    try:
        found = score(examples, lambda messages: answer(engine, messages))
        info = engine.describe()
    finally:
        engine.close()
    return found, f"{info.name} {info.version}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", help="default: all")
    parser.add_argument(
        "--limit", type=int, help="use at most this many held-out requests of each kind"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dry-run", action="store_true", help="leave the model card unchanged")
    options = parser.parse_args()
    spec = open_model(MODEL_DIR)
    examples = held_out(options.limit)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes or [recipe.id for recipe in list_recipes()]:
            start = time.monotonic()
            artifact = write_gguf(spec, load_recipe(recipe), Path(folder) / f"{recipe}.gguf")
            found, engine = score_file(artifact.path, examples, options.threads)
            shares = "  ".join(f"{kind} {found.accuracy(kind):.1%}" for kind in found.n_asked)  # type: ignore[arg-type]
            print(
                f"{recipe:8} {artifact.nbytes:>9} bytes  {shares}  {time.monotonic() - start:.0f} s"
            )
            sys.stdout.flush()
            if not options.dry_run:
                results.update(recipe, found, artifact.nbytes, engine)


if __name__ == "__main__":
    main()
