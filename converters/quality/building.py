"""Quality cards within a build: one per artifact and KV cache type, however many boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.formats.gguf.recipe import AS_IS
from boardfit.converters.quality.card import Card, check_bounds, make_empty_card, measure_card
from boardfit.converters.quality.reference import WINDOW, QualityReference, read_references
from boardfit.converters.quality.texts import is_sample, texts_for
from boardfit.converters.quality.vectors import measure_vectors
from boardfit.converters.spec import ModelSpec
from boardfit.edge.engines import EngineSettings, is_installed
from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.types import Plan

_EXACT_KV = "f16"

__all__ = ["QualityOptions", "measure_cards"]


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
) -> dict[tuple[str, str, str], Card]:
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
            cards[key] = make_empty_card("the file as it stands: nothing was converted or lost")
            continue
        if why is not None or not is_installed(engine):
            cards[key] = make_empty_card(why or f"the engine {engine} is not installed on the host")
            continue
        reporter.stage(f"measuring the quality of {recipe}")
        cards[key] = measure_card(
            models[engine, recipe],
            engine,
            # As planned for the board, but for what the host has: threads, and memory to repack in.
            EngineSettings.from_plan(plan).replace(n_threads=threads, repack=False),
            recipe,
            references,
            is_sample=is_sample(spec),
            progress=reporter.progress,
        )
        check_bounds(cards[key], recipe, accept=options.accept)
    return cards
