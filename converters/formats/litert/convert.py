"""A checkpoint → `.litertlm` for LiteRT-LM, or a plain `.tflite` that tflite-runtime 2.14 runs too.

The graph comes from litert-torch, in an environment of its own; the constants are ours, one matrix
at a time. That keeps memory near that of an empty graph, and chooses scales by error.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from boardfit.converters.documents import copy_document, has_file, read_json_object
from boardfit.converters.formats.base import Conversion
from boardfit.converters.formats.converted import ConvertedFormat, Made, Role, prefill_lengths
from boardfit.converters.formats.litert.recipe import (
    WEIGHT_TYPES,
    LitertRecipe,
    load_recipe,
    recipes_for,
)
from boardfit.converters.formats.tools.checkpoint import link_checkpoint
from boardfit.converters.formats.tools.environments import check_disk, check_memory, tool_python
from boardfit.converters.formats.tools.worker import run_worker
from boardfit.converters.sample.examples import read_conversations
from boardfit.converters.spec import ModelSpec, TargetTensor
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.special import end_of_turn_ids
from boardfit.device_profiles.cost.engine_classes import LITERT_LM
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.shape import ModelShape
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.engines.fit import available_bytes
from boardfit.edge.engines.litert.tflite_check import RECIPE_MARK
from boardfit.edge.errors import EngineError, IntegrityError, UsageError
from boardfit.edge.terminal.progress import Progress, Say
from boardfit.edge.units import MIB

_WORKER = "boardfit.converters.formats.litert.worker.convert"
N_CALIBRATION_TEXTS, CALIBRATION_TOKENS = 32, 256
_BASE = 480 * MIB
_PER_LAYER_AND_SIGNATURE = 6 * MIB
_CHUNKS = 128 * MIB  # rows of one matrix in float32, and what choosing their scales takes
_F32 = 4


def convert_litert(
    spec: ModelSpec,
    checkpoint_dir: Path,
    recipe: LitertRecipe,
    output: Path,
    *,
    prefill_lengths: Sequence[int],
    cache_length: int,
    threads: int | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    memory_bytes: int | None = None,
) -> Made:
    """Write `output`, a `.litertlm` or `.tflite` file, which is whole or absent. `prefill_lengths`
    are the lengths of prompts that get a graph of their own, `cache_length` the tokens that the KV
    cache holds. `memory_bytes` is what the conversion may take, by default what is free.

    Raises DoesNotFitError before anything is done when memory or disk falls short, and what the
    worker raises.
    """
    n_signatures = len(prefill_lengths) + 1
    predicted = conversion_bytes(
        spec.shape,
        n_signatures=n_signatures,
        gptq=recipe.gptq,
        n_calibration=N_CALIBRATION_TEXTS * CALIBRATION_TOKENS,
    )
    steps = ["a recipe without calibration (litert_int4_b32)"] if recipe.gptq else []
    steps += ["fewer prefill lengths"] if n_signatures > 2 else []
    steps.append("a GGUF (--format gguf), which converts in 0.3 GiB")
    free = memory_bytes if memory_bytes is not None else available_bytes()
    check_memory(
        "converting to LiteRT",
        predicted,
        free,
        next_step="close other programs, or choose " + ", or ".join(steps),
    )
    _check_disk(spec, recipe, output)
    threads = threads or os.cpu_count() or 1
    python = tool_python("litert", say=say)
    output = output.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        partial = Path(folder) / output.name
        answer = run_worker(
            python,
            _WORKER,
            {
                "checkpoint": str(link_checkpoint(checkpoint_dir, Path(folder) / "checkpoint")),
                "output": str(partial),
                "work": folder,
                "flavour": output.suffix.removeprefix("."),
                "prefill_lengths": sorted(set(prefill_lengths)),
                "cache_length": cache_length,
                "threads": threads,
                "recipe": recipe.to_dict(),
                "description": RECIPE_MARK + recipe.id,
                "calibration": _conversations() if recipe.gptq else None,
                "calibration_shape": [N_CALIBRATION_TEXTS, CALIBRATION_TOKENS],
                "start_token": start_token(spec),
                "stop_tokens": stop_tokens(spec),
                "chat_template": spec.chat_template,
                "identity": f"{spec.source.fingerprint} {recipe.to_dict()} {cache_length}",
            },
            progress=progress,
            say=say,
            memory_limit=memory_bytes,
            threads=threads,
        )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, output)
    fsync_directory(output.parent)
    return Made({output.name: "model"}, answer["types"], answer["bpw"])


def start_token(spec: ModelSpec) -> int | None:
    """The token that texts begin with, None where the tokenizer puts none there."""
    if not spec.get("tokenizer.ggml.add_bos_token", False):
        return None
    return _token(spec, "bos")


def stop_tokens(spec: ModelSpec) -> list[int]:
    """Every token that ends an answer, in ascending order: those with a role in the vocabulary, and
    all that the checkpoint's own configuration names.
    """
    found = {_token(spec, role) for role in ("eos", "eot", "eom")} - {None}
    if spec.tokenizer_dir is not None:
        config = read_json_object(spec.tokenizer_dir / "config.json")
        found |= set(end_of_turn_ids(TokenizerFiles(spec.tokenizer_dir, config)))
    return sorted(t for t in found if t is not None and t < spec.shape.n_vocab)


def _token(spec: ModelSpec, role: str) -> int | None:
    value: Any = spec.get(f"tokenizer.ggml.{role}_token_id")
    return None if value is None else int(value)


def _conversations() -> list[list[dict[str, Any]]]:
    """What the worker renders and tokenizes, to round by."""
    return [[turn.to_dict() for turn in talk] for talk in read_conversations("calibration")]


def _check_disk(spec: ModelSpec, recipe: LitertRecipe, output: Path) -> None:
    bits = max(WEIGHT_TYPES[t].bits for t in (recipe.linear, recipe.head, recipe.embedding))
    needed = spec.shape.n_params * (bits + 1) // 8 * 2  # the graph, and again in the container
    folder = output.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    step = "make room, or choose another output folder"
    check_disk("the conversion", needed, folder, next_step=step)


def conversion_bytes(
    shape: ModelShape, *, n_signatures: int, gptq: bool, n_calibration: int = 0
) -> int:
    """Predicted peak of private memory in bytes. `n_signatures` are the prefills and decode;
    `n_calibration` is the number of calibration tokens.

    Measured law (`scripts/bench_litert_convert`, litert-torch 0.9.4, torch 2.13, x86-64): importing
    torch and the converter, then what tracing and lowering keep for every layer of every signature,
    and at the end one matrix at a time. Weights are mapped and do not count. Rounding by
    calibration text holds one layer in float32, the sums of its inputs and copies of the largest
    matrix.
    """
    n_ff = max(shape.n_ff, shape.n_embd)
    traced = _BASE + _PER_LAYER_AND_SIGNATURE * shape.n_layer * n_signatures
    largest_row_block = shape.n_vocab * shape.n_embd  # packed to one byte a value
    streamed = traced + _CHUNKS + 2 * largest_row_block
    if not gptq:
        return streamed
    in_layers = shape.n_params - shape.n_vocab * shape.n_embd
    layer = max(1, in_layers // max(1, shape.n_layer)) * _F32
    sums = n_ff * n_ff * _F32 * 5  # H, its sorted copy, two factors, one being made
    copies = n_ff * shape.n_embd * _F32 * 5
    activations = n_calibration * (6 * n_ff + 8 * shape.n_embd) * _F32
    rounded = shape.n_params * 5 // 8
    return max(streamed, traced + layer + sums + copies + activations) + rounded


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
    engine_class = LITERT_LM
    engine_bytes = 60 * MIB

    def list_recipes(self) -> tuple[str, ...]:
        return recipes_for(self.row.id)

    def describe_recipe(self, recipe_id: str) -> str:
        return self._load_recipe(recipe_id).name

    def _load_recipe(self, recipe_id: str) -> LitertRecipe:
        """Raises UsageError for a recipe that is unknown, or makes the other kind of file."""
        recipe = load_recipe(recipe_id)
        if self.row.id not in recipe.flavours:
            raise UsageError(
                f"recipe {recipe.id} makes {', '.join(recipe.flavours)}, not {self.row.id}",
                next_step=f"recipes for {self.row.id}: {', '.join(self.list_recipes())}",
            )
        return recipe

    def weigh_matrix(
        self, tensor: TargetTensor, recipe_id: str, role: Role, n_layers: int
    ) -> Iterable[tuple[int, int]]:
        """A tied matrix has one copy where embedding and head are stored alike, else two."""
        uses = {"embedding": ["embedding"], "tied": ["embedding", "linear"]}.get(role, ["linear"])
        choose = self._load_recipe(recipe_id).choose_type
        options = {"n_layers": n_layers, "n_per_row": tensor.n_per_row}
        names = {choose(tensor.origin, use, tied=role == "tied", **options) for use in uses}
        types = [WEIGHT_TYPES[name] for name in names]
        return [(t.bits, t.total_bytes(tensor.n_rows, tensor.n_per_row)) for t in types]

    def make(self, job: Conversion, checkpoint: Path) -> Made:
        job.folder.mkdir(parents=True)
        return convert_litert(
            job.spec, checkpoint, self._load_recipe(job.plan.recipe), job.folder / self.row.file,
            prefill_lengths=prefill_lengths(job.plan.n_ctx), cache_length=job.plan.n_ctx,
            threads=job.threads, say=job.stage, progress=job.progress,
        )  # fmt: skip


class LitertLmFormat(LitertFormat):
    """A container with graph, weights and tokenizer for LiteRT-LM."""

    def check_board(self, profile: DeviceProfile) -> None:
        if "neon" in profile.isa and "lse" not in profile.isa:
            raise EngineError(
                "LiteRT-LM's library needs LSE atomics (Armv8.1), which "
                f"{profile.name} does not have",
                next_step="use --format tflite or --format gguf",
            )


class TfliteFormat(LitertFormat):
    """A plain graph, with the checkpoint's tokenizer beside it."""

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
