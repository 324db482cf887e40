"""The quality card of one artifact, as `manifest["quality"]` keeps it.

    {"reference": {"kind": "source checkpoint", "type": "F32", "engine": "llama_cpp 0.3.36", …},
     "engine": {"name": "llama_cpp", "version": "0.3.36", "kv_type": "f16"},
     "texts": [{"name": …, "sha256": …, "window": 512, "n_tokens": 4096, "n_scored": 2040,
                "kld_mean": …, "kld_mean_stderr": …, "kld_p99": …, "top1_agree": …, "ppl": …, …}],
     "task": {"name": …, "n_asked": 240, "exact": 0.95},          the sample model only
     "kld_mean_bound": 0.4, "within_bounds": true}

or `{"not_measured": "why"}`. Figures have four significant digits: what is beyond depends on the
host's kernels, and the same inputs should give the same bundle.
"""

import functools
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from boardfit.converters.quality.divergence import Divergence, Estimate, Tally
from boardfit.converters.quality.reference import QualityReference
from boardfit.converters.sample.examples import MAX_NEW_TOKENS, read_conversations
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.errors import DoesNotFitError, EngineError, IntegrityError
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import Engine, GenerationConfig, LogitsEngine, Message

_DIGITS = 4
TASK = "boardfit-sample-dev"

Card = dict[str, Any]


def make_empty_card(why: str) -> Card:
    """The card of an artifact without a quality measurement, and the reason."""
    return {"not_measured": why}


def measure_card(
    model: Path,
    engine_name: str,
    settings: EngineSettings,
    recipe_id: str,
    references: Sequence[QualityReference],
    *,
    is_sample: bool = False,
    progress: Progress | None = None,
) -> Card:
    """Open `model` in the engine that will run it and compare it with its source on every text. A
    model too large for this host's memory gets a card that states it. Raises EngineError for an
    engine that cannot give distributions.
    """
    window = max(reference.window for reference in references)
    settings = replace(settings, need_bytes=None, n_ctx=max(window, 512 if is_sample else window))
    try:
        engine = open_engine(engine_name, built_file(model), settings)
    except DoesNotFitError as error:
        return make_empty_card(f"too large for the host: {error}")
    with closing(engine):
        if not isinstance(engine, LogitsEngine):
            raise EngineError(f"the engine {engine_name} gives no distributions to compare")
        texts: list[dict[str, Any]] = []
        total = sum(len(reference.tokens) for reference in references)

        def report(part: int, whole: int) -> None:
            if progress is not None:
                progress(sum(text["n_tokens"] for text in texts) + part, total)

        for reference in references:
            texts.append(measure_text(engine, reference, report))
        info = engine.describe()
        card: Card = {
            "reference": references[0].about,
            "engine": {"name": info.name, "version": info.version, "kv_type": info.kv_type},
            "texts": texts,
        }
        if is_sample:
            card["task"] = measure_task(engine)
    bound = find_bound(recipe_id)
    if bound is not None:
        card["kld_mean_bound"] = bound
        card["within_bounds"] = texts[0]["kld_mean"] <= bound
    return card


def measure_text(
    engine: LogitsEngine, reference: QualityReference, progress: Progress
) -> dict[str, Any]:
    """One text's row of the card; `progress` counts tokens."""
    tally, total = Tally(reference.n_vocab), len(reference.tokens)
    done = 0
    for tokens, positions, log_probs in reference.parts():
        logits = engine.logits(tokens)
        tally.add(log_probs, logits[list(positions)], [tokens[i + 1] for i in positions])
        done += len(tokens)
        progress(done, total)
    return as_row(reference, tally.result())


def as_row(reference: QualityReference, found: Divergence) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": reference.text.name,
        "sha256": reference.text.sha256,
        "window": reference.window,
        "n_tokens": len(reference.tokens),
        "n_scored": found.n_scored,
    }
    for name, value in vars(found).items():
        if isinstance(value, Estimate):
            row[name], row[f"{name}_stderr"] = round_figure(value.value), round_figure(value.stderr)
        elif name != "n_scored":
            row[name] = round_figure(value)
    return row


def round_figure(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def measure_task(engine: Engine) -> dict[str, Any]:
    """Count the exact answers of the sample model to a fixed part of its dev requests."""
    asked = read_conversations("task")
    n_exact = sum(answer(engine, talk[:-1]).strip() == talk[-1].content for talk in asked)
    return {"name": TASK, "n_asked": len(asked), "exact": round_figure(n_exact / len(asked))}


def answer(engine: Engine, messages: Sequence[Message]) -> str:
    """Give one greedy answer to chat messages. The KV cache of the common prefix is reused."""
    config = GenerationConfig(max_tokens=MAX_NEW_TOKENS)
    return "".join(event.text for event in engine.stream(engine.render(messages), config))


@functools.cache
def _all_bounds() -> Mapping[str, Mapping[str, float]]:
    return load_toml("boardfit.converters.quality", "bounds.toml")


def find_bound(recipe_id: str) -> float | None:
    """A recipe's most mean divergence in nats per token on the named text, if it has a bound."""
    return _all_bounds().get(recipe_id, {}).get("kld_mean")


def check_bounds(card: Mapping[str, Any], recipe_id: str, *, accept: bool = False) -> None:
    """Raise IntegrityError with the figures when an artifact is further from its source than its
    recipe allows, unless the user accepted it. A card without figures passes.
    """
    if card.get("within_bounds") is not False or accept:
        return
    text = card["texts"][0]
    raise IntegrityError(
        f"{recipe_id} is too far from its source: mean divergence {text['kld_mean']:.3g} nats per "
        f"token on {text['name']}, at most {card['kld_mean_bound']:g} is expected; the same top "
        f"token at {text['top1_agree']:.1%}, perplexity {text['ppl']:.4g} against the source's "
        f"{text['ppl_reference']:.4g}",
        next_step="check the source, choose a recipe with more bits (--recipe), or take it as it "
        "is with --accept-quality",
    )
