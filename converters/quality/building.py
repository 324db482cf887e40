"""Quality cards within a build: one per artifact and KV cache type, however many boards.

For an embedding model: cosines of its vectors with those of the F32 GGUF of the same tensors,
through the same engine. That measures what quantizing loses, and not what a converter might have
got wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boardfit.converters.formats.gguf.recipe import AS_IS
from boardfit.converters.quality import card
from boardfit.converters.quality.reference import (
    WINDOW,
    QualityReference,
    describe_source,
    full_model,
    read_references,
)
from boardfit.converters.quality.texts import QualityText, is_sample, texts_for
from boardfit.converters.spec import ModelSpec
from boardfit.edge.engines import EngineSettings, is_installed
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.terminal.progress import Progress, Reporter
from boardfit.edge.types import Plan

#: Texts that are compared, at most.
MOST_TEXTS = 64
# What a text is cut to: some sentences. They are halved until they fit the model's context.
_MOST_CHARACTERS, _FEWEST_CHARACTERS = 400, 20
Key = tuple[str, str, str]
_EXACT_KV = "f16"


@dataclass(frozen=True)
class QualityOptions:
    """`accept` keeps an artifact too far from its source; `text` replaces the named text."""

    enabled: bool = True
    accept: bool = False
    text: Path | None = None


def measure_cards(
    spec: ModelSpec,
    plans: Sequence[Plan],
    models: Mapping[tuple[str, str], Path],
    options: QualityOptions,
    work: Path,
    *,
    threads: int | None,
    reporter: Reporter,
) -> dict[tuple[str, str, str], card.Card]:
    """Cards by (engine, recipe, KV type), which is all of a plan that figures depend on; `models`
    are the artifacts by (engine, recipe).

    Raises IntegrityError for an artifact further from its source than its recipe allows.
    """
    wanted = {(plan.engine, plan.recipe, plan.kv_type): plan for plan in plans}
    why = None if options.enabled else "left out with --no-quality"
    if all((recipe, kv_type) == (AS_IS, _EXACT_KV) for _, recipe, kv_type in wanted):
        why = why or "nothing was converted"  # no need to read the source through the engine
    if why is None and spec.is_embedder:
        return measure_vectors(
            spec, wanted, models, options.text, work, threads=threads, reporter=reporter
        )
    references: Sequence[QualityReference] = ()
    if why is None:
        n_ctx = min(WINDOW, spec.shape.n_ctx_train, *(plan.n_ctx for plan in plans))
        try:
            texts = texts_for(spec, options.text)
            references = read_references(
                spec, texts, n_ctx, work, threads=threads, reporter=reporter
            )
        except DoesNotFitError as error:
            why = f"the source model is too large for the host: {error}"
    cards = {}
    for (engine, recipe, kv_type), plan in wanted.items():
        key = (engine, recipe, kv_type)
        if recipe == AS_IS and kv_type == _EXACT_KV:
            cards[key] = card.make_empty_card(
                "the file as it stands: nothing was converted or lost"
            )
            continue
        if why is not None or not is_installed(engine):
            cards[key] = card.make_empty_card(
                why or f"the engine {engine} is not installed on the host"
            )
            continue
        reporter.stage(f"measuring the quality of {recipe}")
        cards[key] = card.measure_card(
            models[engine, recipe],
            engine,
            # As planned for the board, but for what the host has: threads, and memory to repack in.
            EngineSettings.from_plan(plan).replace(n_threads=threads, repack=False),
            recipe,
            references,
            is_sample=is_sample(spec),
            progress=reporter.progress,
        )
        card.check_bounds(cards[key], recipe, accept=options.accept)
    return cards


def measure_vectors(
    spec: ModelSpec,
    wanted: Mapping[Key, Plan],
    models: Mapping[tuple[str, str], Path],
    own: Path | None,
    work: Path,
    *,
    threads: int | None,
    reporter: Reporter,
) -> dict[Key, card.Card]:
    """Cards by (engine, recipe, KV type); `models` are the artifacts by (engine, recipe)."""
    if not is_installed("llama_cpp"):
        return dict.fromkeys(wanted, card.make_empty_card("llama.cpp is not installed on the host"))
    (text,) = texts_for(spec, own)
    parts = list(cut(text))
    n_ctx = min(512, spec.shape.n_ctx_train, *(plan.n_ctx for plan in wanted.values()))
    try:
        with full_model(spec, work, threads, reporter) as path:
            reporter.stage("reading the quality text with the source model")
            plain = EngineSettings(n_ctx=n_ctx, kv_type="f32", n_threads=threads, repack=False)
            expected, about = embed_all(path, plain, parts, reporter.progress)
        cards: dict[Key, card.Card] = {}
        for (engine, recipe, kv_type), plan in wanted.items():
            reporter.stage(f"measuring the quality of {recipe}")
            settings = EngineSettings.from_plan(plan).replace(
                n_threads=threads, repack=False, n_ctx=n_ctx, n_ubatch=n_ctx
            )
            got, described = embed_all(models[engine, recipe], settings, parts, reporter.progress)
            cards[engine, recipe, kv_type] = {
                "reference": describe_source(
                    spec, about["quant"], f"{about['name']} {about['version']}"
                ),
                "engine": {key: described[key] for key in ("name", "version")}
                | {"kv_type": kv_type},
                "texts": [{"name": text.name, "sha256": text.sha256, **compare(expected, got)}],
            }
        return cards
    except DoesNotFitError as error:
        return dict.fromkeys(wanted, card.make_empty_card(f"too large for the host: {error}"))


def embed_all(
    path: Path, settings: EngineSettings, texts: Sequence[str], progress: Progress
) -> tuple[np.ndarray, dict[str, Any]]:
    """The vectors of all texts, a row each, and what made them."""
    from boardfit.edge.engines.llama.embedding import LlamaEmbedder

    rows = []
    with closing(LlamaEmbedder.open(built_file(path), settings)) as embedder:
        for i, text in enumerate(texts):
            while len(embedder.tokenize(text)) > embedder.n_ctx:
                text = text[: len(text) // 2]
            rows.append(embedder.embed(text)[0])
            progress(i + 1, len(texts))
        return np.array(rows), embedder.to_record()


def compare(expected: np.ndarray, got: np.ndarray) -> dict[str, Any]:
    """Cosines of the vectors, and how often the nearest other text stays the nearest."""
    cosines = (expected * got).sum(axis=1)
    figures: dict[str, Any] = {
        "n_texts": len(cosines),
        "cosine_mean": card.round_figure(float(cosines.mean())),
        "cosine_min": card.round_figure(float(cosines.min())),
    }
    if len(cosines) > 1:
        same = nearest(expected) == nearest(got)
        figures["nearest_agree"] = card.round_figure(float(same.mean()))
    return figures


def nearest(vectors: np.ndarray) -> np.ndarray:
    """For each vector the index of the nearest other one."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return np.asarray(likeness.argmax(axis=1))


def cut(text: QualityText) -> Iterator[str]:
    """Paragraphs of a text, or their beginnings, spread over all of it."""
    whole = [part.strip() for part in text.content.split("\n\n")]
    parts = [p[:_MOST_CHARACTERS] for p in whole if len(p) >= _FEWEST_CHARACTERS]
    parts = parts or [text.content.strip()[:_MOST_CHARACTERS]]
    step = max(1, -(-len(parts) // MOST_TEXTS))
    yield from parts[::step]
