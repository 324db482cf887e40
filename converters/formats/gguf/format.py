"""GGUF as a format. `edge build` writes its recipes together (`write_many`), one of them here."""

from __future__ import annotations

import time

from boardfit.converters.formats.base import (
    Conversion,
    FormatArtifact,
    FormatRow,
    FormatWeights,
    stored_tensor,
)
from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.recipe import list_recipes, load_recipe
from boardfit.converters.formats.gguf.size import artifact_bytes
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.types import Plan


class GgufFormat:
    """A `boardfit.converters.formats.base.Format`: exact sizes, every model, every board."""

    def __init__(self, row: FormatRow) -> None:
        self.row = row

    def list_recipes(self) -> tuple[str, ...]:
        """All recipes, most bits first."""
        return tuple(recipe.id for recipe in list_recipes())

    def describe_recipe(self, recipe_id: str) -> str:
        """What a recipe does, in a few words."""
        return load_recipe(recipe_id).about

    def check_supported(self, spec: ModelSpec, profile: DeviceProfile) -> None:
        """Every model that was opened has a GGUF, and every board runs llama.cpp."""

    def weigh(self, spec: ModelSpec, recipe_id: str) -> FormatWeights:
        """Exact bytes of the file and of every tensor."""
        recipe = load_recipe(recipe_id)
        typed = assign_types(spec, recipe)
        stored = tuple(stored_tensor(entry.tensor, entry.type, entry.nbytes) for entry in typed)
        return FormatWeights(artifact_bytes(spec, recipe), stored)

    def name_artifact(self, plan: Plan, device: DeviceProfile) -> str:
        """The recipe alone: context and board change no byte."""
        return f"{self.row.id}-{plan.recipe}"

    def convert(self, job: Conversion) -> FormatArtifact:
        """Quantize into one file. A kill leaves a journal that the next call continues from."""
        from boardfit.converters.formats.gguf.write import write_gguf  # brings the quantizers

        started = time.monotonic()
        job.folder.mkdir(parents=True, exist_ok=True)
        made = write_gguf(
            job.spec, load_recipe(job.plan.recipe), job.folder / self.row.file,
            threads=job.threads, progress=job.progress, overwrite=True,
        )  # fmt: skip
        return FormatArtifact(
            folder=job.folder,
            recipe=made.recipe,
            files={self.row.file: "model"},
            hashes={self.row.file: made.sha256},
            nbytes=made.nbytes,
            types=made.types,
            bpw=made.bpw,
            seconds=time.monotonic() - started,
        )
