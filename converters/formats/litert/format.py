"""LiteRT as two formats: `.litertlm` for LiteRT-LM, and a plain `.tflite`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from boardfit.converters.documents import copy_document, has_file
from boardfit.converters.formats.base import Conversion
from boardfit.converters.formats.converted import ConvertedFormat, Made, Role, prefill_lengths
from boardfit.converters.formats.litert.recipe import load_recipe, recipes_for
from boardfit.converters.formats.litert.types import WEIGHT_TYPES, Flavour
from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.cost.engine_classes import LITERT_LM
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import EngineError, IntegrityError
from boardfit.edge.units import MIB

# What the engine `tflite` reads beside the model, with their roles in a bundle.
_BESIDE_TFLITE = {
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "generation_config.json": "tokenizer",
    "chat_template.jinja": "template",
}


class LitertFormat(ConvertedFormat):
    """What both flavours share."""

    name = "LiteRT"
    flavour: Flavour
    engine_class = LITERT_LM
    engine_bytes = 60 * MIB

    def list_recipes(self) -> tuple[str, ...]:
        return recipes_for(self.flavour)

    def describe_recipe(self, recipe_id: str) -> str:
        return load_recipe(recipe_id).name

    def weigh_matrix(
        self, tensor: TargetTensor, recipe_id: str, role: Role, n_layers: int
    ) -> Iterable[tuple[int, int]]:
        """A tied matrix has one copy where embedding and head are stored alike, else two."""
        uses = {"embedding": ["embedding"], "tied": ["embedding", "linear"]}.get(role, ["linear"])
        names = {
            load_recipe(recipe_id).choose_type(
                tensor.origin, use, tied=role == "tied", n_layers=n_layers,
                n_per_row=tensor.n_per_row,
            )
            for use in uses
        }  # fmt: skip
        types = [WEIGHT_TYPES[name] for name in names]
        return [(t.bits, t.total_bytes(tensor.n_rows, tensor.n_per_row)) for t in types]

    def make(self, job: Conversion, checkpoint: Path) -> Made:
        from boardfit.converters.formats.litert.convert import convert_litert

        job.folder.mkdir(parents=True)
        return convert_litert(
            job.spec, checkpoint, load_recipe(job.plan.recipe), job.folder / self.row.file,
            prefill_lengths=prefill_lengths(job.plan.n_ctx), cache_length=job.plan.n_ctx,
            flavour=self.flavour, threads=job.threads, say=job.stage, progress=job.progress,
        )  # fmt: skip


class LitertLmFormat(LitertFormat):
    """A container with graph, weights and tokenizer for LiteRT-LM."""

    flavour = "litertlm"

    def check_board(self, profile: DeviceProfile) -> None:
        """Raise EngineError for Arm cores without LSE atomics."""
        if "neon" in profile.isa and "lse" not in profile.isa:
            raise EngineError(
                "LiteRT-LM's library needs LSE atomics (Armv8.1), which "
                f"{profile.name} does not have",
                next_step="use --format tflite or --format gguf",
            )


class TfliteFormat(LitertFormat):
    """A plain graph, with the checkpoint's tokenizer beside it."""

    flavour = "tflite"

    def make(self, job: Conversion, checkpoint: Path) -> Made:
        made = super().make(job, checkpoint)
        for name, role in _BESIDE_TFLITE.items():
            if has_file(checkpoint / name):
                copy_document(checkpoint / name, job.folder / name)
                made.files[name] = role
        if "tokenizer.json" not in made.files:
            raise IntegrityError(
                f"{checkpoint}: a plain .tflite needs tokenizer.json beside it",
                next_step="use --format litertlm, which carries its tokenizer inside",
            )
        return made
