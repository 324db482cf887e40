"""What formats share that a converter makes in an environment of its own: limits, memory, journal.

Memory, as the engines themselves reckon (edge/engines/litert.py, onnx_check.py): the file as it is
mapped, its matrices once more in the layout of the CPU's kernels, a KV cache in float32, the
activations of one prefill step, interpreter and libraries.
"""

import json
import shutil
import time
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boardfit.converters.formats.base import (
    Conversion,
    Format,
    FormatArtifact,
    FormatWeights,
    find_kept,
    keep,
    stored_tensor,
)
from boardfit.converters.spec import ModelSpec, TargetTensor
from boardfit.device_profiles.cost.engine_classes import EngineClass
from boardfit.device_profiles.cost.memory import kv_bytes, margin_bytes
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import sha256_file
from boardfit.edge.errors import EngineError, UnsupportedModelError
from boardfit.edge.types import Plan
from boardfit.edge.units import did_you_mean, printable

KV_TYPE = "f32"
#: Lengths of prompt that get a graph of their own; the engine cuts a prompt into such steps.
PREFILL_LENGTHS = (16, 128, 512)
# The graph itself, per layer and signature, and tokenizer entries: measured on small models.
_GRAPH_BYTES_PER_LAYER, _BYTES_PER_TOKEN = 24 * 1024, 24
#: What a matrix is for; a tied one is embedding and head.
Role = Literal["embedding", "head", "tied", "layer"]
# What the speed model knows of a weight is its kind: bits, not the layout.
_STANDS_FOR = {4: "Q4_0", 8: "Q8_0", 32: "F32"}


#: Families that the converters make models of which were compared with transformers, by
#: `model_type` in `config.json`. docs/formats.md has what each one needed, and every gap.
FAMILIES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma3_text": "Gemma 3",
    "phi3": "Phi-3",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "lfm2": "LFM2",
}


@dataclass(frozen=True)
class Made:
    """What a converter wrote: roles of files by name, weights by kind of storage, bits a weight."""

    files: dict[str, str]
    types: dict[str, int]
    bpw: float


class ConvertedFormat(Format):
    """A format that is made from a checkpoint by a converter.

    `name` is the format's for people. `engine_class` estimates the speed. `engine_bytes` is
    interpreter, library and its arena with nothing loaded, as the engines measure it.
    """

    name: str
    engine_class: EngineClass
    engine_bytes: int

    def check_family(self, family: str) -> None:
        """Raise UnsupportedModelError, which offers GGUF, for a family without a converter."""
        if family not in FAMILIES:
            raise UnsupportedModelError(
                f"{self.name} cannot be made of {printable(family)!r} models."
                f"{did_you_mean(family, FAMILIES)} It can of: {', '.join(FAMILIES.values())}",
                next_step="build a GGUF: --format gguf",
            )

    def check_board(self, profile: DeviceProfile) -> None:
        """Raise EngineError for a board that the engine cannot run on, even if its profile fits."""

    @abstractmethod
    def weigh_matrix(
        self, tensor: TargetTensor, recipe_id: str, role: Role, n_layers: int
    ) -> Iterable[tuple[int, int]]:
        """Bits per value and bytes of every copy that the recipe stores of a matrix."""

    @abstractmethod
    def make(self, job: Conversion, checkpoint: Path) -> Made:
        """Convert the directory `checkpoint` into `job.folder`, which does not exist yet."""

    def count_logit_rows(self, step: int) -> int:
        """Rows of logits that a prefill step of `step` tokens keeps: the engine's two buffers."""
        return 2

    def check_supported(self, spec: ModelSpec, profile: DeviceProfile) -> None:
        """Raise for a model that the format cannot hold (UnsupportedModelError, which offers GGUF),
        or a board that its engine is known not to run on (EngineError).
        """
        if spec.tokenizer_dir is None:
            raise UnsupportedModelError(
                f"{self.row.id} is made from a checkpoint; {printable(spec.name)} is a GGUF file",
                next_step="give the Hugging Face directory, or use --format gguf",
            )
        if made := spec.source.adapter or spec.source.quantized:
            raise UnsupportedModelError(
                f"{self.row.id} is made by a tool that reads the checkpoint's own files, which are "
                f"not yet what is built: {printable(made, 200)}",
                next_step="use --format gguf",
            )
        if spec.is_embedder:
            raise UnsupportedModelError(
                f"{printable(spec.name)} is an embedding model, which {self.row.id} does not hold",
                next_step="use --format gguf",
            )
        self.check_family(spec.family)
        for name in self.row.profile_engines:
            support = profile.engine_support(name)
            if support is not None and not support.runs:
                raise EngineError(
                    f"{name} does not run on {profile.name}: {support.note} [{support.source}]",
                    next_step="use --format gguf",
                )
        self.check_board(profile)

    def weigh(self, spec: ModelSpec, recipe_id: str) -> FormatWeights:
        """Sizes before the conversion, within a per cent or two: graph and tokenizer are estimated,
        weights are exact. Raises UsageError for an unknown recipe.
        """
        n_layers = spec.shape.n_layer
        is_tied = all(tensor.name != "output.weight" for tensor in spec.tensors)
        stored = tuple(
            stored_tensor(tensor, _STANDS_FOR[bits], n_bytes)
            for tensor in spec.tensors
            for bits, n_bytes in (
                [(32, 4 * tensor.n_elements)]
                if tensor.n_rows == 1
                else self.weigh_matrix(tensor, recipe_id, _find_role(tensor, is_tied), n_layers)
            )
        )
        extra = _GRAPH_BYTES_PER_LAYER * n_layers + _BYTES_PER_TOKEN * spec.shape.n_vocab
        return FormatWeights(sum(t.n_bytes for t in stored) + extra, stored)

    def predict_memory(self, spec: ModelSpec, weights: FormatWeights, n_ctx: int) -> dict[str, int]:
        """Bytes by kind, as in `Plan.memory`."""
        shape, tensors = spec.shape, weights.tensors
        step = max(prefill_lengths(n_ctx))
        n_ff = max((t.n_rows for t in tensors if ".ffn_up." in t.name), default=shape.n_embd)
        memory = {
            "weights_mapped": weights.artifact_bytes,
            "weights_repacked": sum(t.n_bytes for t in tensors),
            "kv_cache": kv_bytes(shape, n_ctx, KV_TYPE),
            # Gate, up and their product, the residual stream, queries to values: float32, one step.
            "compute_buffers": 4 * step * (3 * n_ff + 6 * shape.n_embd) + 4 * step * n_ctx,
            "output_buffer": 4 * shape.n_vocab * self.count_logit_rows(step),
            "engine_and_interpreter": self.engine_bytes,
        }
        return {**memory, "margin": margin_bytes(sum(memory.values()))}

    def name_artifact(self, plan: Plan, device: DeviceProfile) -> str:
        return f"{super().name_artifact(plan, device)}-{plan.n_ctx}"

    def convert(self, job: Conversion) -> FormatArtifact:
        """Make the artifact. One that an interrupted build of the same inputs finished is kept.

        Raises what the converter raises: UnsupportedModelError, DoesNotFitError,
        EngineMissingError.
        """
        folder, plan = job.folder, job.plan
        record = folder.with_name(folder.name + ".json")
        identity = json.dumps(
            [job.spec.source.fingerprint, plan.recipe, plan.n_ctx, sorted(job.device.isa)],
            sort_keys=True,
        )
        if (kept := find_kept(record, folder, identity)) is not None:
            return kept
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        assert job.spec.tokenizer_dir is not None  # `check_supported` saw to it
        made = self.make(job, job.spec.tokenizer_dir)
        artifact = FormatArtifact(
            folder=folder,
            recipe=plan.recipe,
            files=made.files,
            hashes={name: sha256_file(folder / name) for name in made.files},
            nbytes=sum((folder / name).stat().st_size for name in made.files),
            types=made.types,
            bpw=made.bpw,
            seconds=time.monotonic() - started,
        )
        return keep(artifact, record, identity)


def prefill_lengths(n_ctx: int) -> list[int]:
    """Lengths of prefill steps that go into a context of `n_ctx` tokens."""
    return [n for n in PREFILL_LENGTHS if n < n_ctx] or [n_ctx]


def _find_role(tensor: TargetTensor, is_tied: bool) -> Role:
    if tensor.name == "token_embd.weight":
        return "tied" if is_tied else "embedding"
    return "head" if tensor.name == "output.weight" else "layer"
