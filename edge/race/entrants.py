"""The entrants of a race: bundles of one model, each with several thread counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.engines import ENGINES, is_installed
from boardfit.edge.engines.settings import default_threads, usable_cpus
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.units import printable


@dataclass(frozen=True)
class Entrant:
    """One bundle with one number of threads."""

    bundle: Bundle
    n_threads: int

    @property
    def engine(self) -> str:
        return self.bundle.plan.engine

    @property
    def recipe(self) -> str:
        return self.bundle.plan.recipe

    @property
    def label(self) -> str:
        return f"{self.engine} {self.recipe}, {self.n_threads} thread" + (
            "s" if self.n_threads > 1 else ""
        )


def make_entrants(bundles: Sequence[Bundle], n_threads: Sequence[int] = ()) -> list[Entrant]:
    """Every bundle with every number of threads: those given, else one, half of the cores and all.
    Raises UsageError, or EngineMissingError for an engine that is not installed here.
    """
    if len({bundle.id for bundle in bundles}) < len(bundles):
        raise UsageError("a bundle is named twice")
    made_from = [(bundle, bundle.manifest["model"].get("source")) for bundle in bundles]
    # Bundles that do not name their source are each their own.
    sources = {
        str((source.get("fingerprint") if isinstance(source, dict) else None) or bundle.id)
        for bundle, source in made_from
    }
    if len(sources) > 1:
        names = ", ".join(sorted(printable(bundle.name, 40) for bundle in bundles))
        raise UsageError(
            f"these bundles were made from different models: {names}",
            next_step="race bundles of one source, or measure them apart with edge bench",
        )
    for bundle in bundles:
        engine = bundle.plan.engine
        if engine in ENGINES and not is_installed(engine):
            raise EngineMissingError(
                f"{bundle.path} runs on {engine}, which is not installed",
                next_step=ENGINES[engine].pip_line,
            )
    wanted = sorted(set(n_threads)) or thread_counts()
    for n in wanted:
        if n > usable_cpus():
            raise UsageError(f"{n} threads; this machine has {usable_cpus()} cores to use")
    return [Entrant(bundle, n) for bundle in bundles for n in wanted]


def thread_counts() -> list[int]:
    """One, half of the cores and all of them, without doubles."""
    n_cores = default_threads()
    return sorted({1, max(1, n_cores // 2), n_cores})
