"""Score the sample model after every recipe, through the engine that boards run.

    PYTHONPATH=scripts python -m lab.sample.score                  # every recipe and request
    PYTHONPATH=scripts python -m lab.sample.score q4_0 q4_k_m --limit 300 --dry-run

Writes the results into the model card (`lab.sample.results`) unless `--dry-run`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from boardfit.converters.formats.gguf.recipe import list_recipes, load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.quality.card import answer
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source.resolve import open_model
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.types import Message
from lab.sample import results
from lab.sample.task import Example, TaskScore, held_out, score


def to_messages(turns: list[dict[str, str]]) -> list[Message]:
    """Make an engine's messages of the generator's."""
    return [Message(turn["role"], turn["content"]) for turn in turns]  # type: ignore[arg-type]


def score_file(
    model: Path, examples: list[Example], threads: int | None = None
) -> tuple[TaskScore, str]:
    """Score one GGUF file. Returns the score and the engine's name and version."""
    engine = open_engine("llama_cpp", model, EngineSettings(n_ctx=1024, n_threads=threads))
    try:
        found = score(examples, lambda turns: answer(engine, to_messages(turns)))
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
