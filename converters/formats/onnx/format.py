"""ONNX as a format: a folder for onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from boardfit.converters.formats.base import Conversion
from boardfit.converters.formats.converted import ConvertedFormat, Made, Role
from boardfit.converters.formats.onnx.convert import accuracy_level, convert_onnx
from boardfit.converters.formats.onnx.recipe import list_recipes, load_recipe
from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.cost.engine_classes import EngineClass
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.types import Plan
from boardfit.edge.units import MIB


class OnnxFormat(ConvertedFormat):
    """A graph with its weights, its configuration and the checkpoint's tokenizer."""

    name = "ONNX"
    # Source: one shape (Qwen2-0.5B), one machine (x86-64, AVX-512 VNNI, 2 threads), tokens/s
    # against llama.cpp Q4_0 of the same run: prefill 105 / 275, decode 38 / 58.6. There is no
    # published row.
    engine_class = EngineClass(
        "onnxruntime-genai", 0.6, kernel_scale=0.4, isa_limit=frozenset(
            {"neon", "fp16", "dotprod", "i8mm", "avx2", "avx512", "avx512_vnni"}
        ),
    )  # fmt: skip
    engine_bytes = 100 * MIB

    def list_recipes(self) -> tuple[str, ...]:
        return tuple(recipe.id for recipe in list_recipes())

    def describe_recipe(self, recipe_id: str) -> str:
        return load_recipe(recipe_id).about

    def weigh_matrix(
        self, tensor: TargetTensor, recipe_id: str, role: Role, n_layers: int
    ) -> Iterable[tuple[int, int]]:
        """One copy, which serves embedding and head where they are tied."""
        recipe = load_recipe(recipe_id)
        outer = {"head": recipe.head, "tied": recipe.head, "embedding": recipe.embedding}
        scheme = (outer.get(role) or recipe.find_scheme(tensor.origin)).fitting(tensor.n_per_row)
        return [(scheme.bits, int(tensor.n_elements * scheme.bpw / 8))]

    def count_logit_rows(self, step: int) -> int:
        """The graph computes logits for every token of a step."""
        return step

    def name_artifact(self, plan: Plan, device: DeviceProfile) -> str:
        """The CPU decides how the graph computes: see `accuracy_level`."""
        return f"{super().name_artifact(plan, device)}-a{accuracy_level(device.isa or None)}"

    def make(self, job: Conversion, checkpoint: Path) -> Made:
        return convert_onnx(
            checkpoint, job.folder, load_recipe(job.plan.recipe), n_ctx=job.plan.n_ctx,
            isa=job.device.isa or None, threads=job.threads, say=job.stage, progress=job.progress,
        )  # fmt: skip
