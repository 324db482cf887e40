"""Checkpoint → a folder for onnxruntime-genai: `model.onnx`, data, `genai_config.json`, tokenizer.
The graph is upstream's (its model builder, in its own environment), the quantization ours: the
builder rounds to the extremes of each block.
"""

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from boardfit.converters.documents import copy_document, has_file
from boardfit.converters.formats.base import Conversion
from boardfit.converters.formats.converted import ConvertedFormat, Made, Role
from boardfit.converters.formats.onnx.recipe import (
    FLOAT_ACTIVATIONS,
    INT8_ACTIVATIONS,
    OnnxRecipe,
    list_recipes,
    load_recipe,
)
from boardfit.converters.formats.tools.checkpoint import link_checkpoint
from boardfit.converters.formats.tools.environments import check_disk, check_memory, tool_python
from boardfit.converters.formats.tools.worker import run_worker
from boardfit.converters.source.checkpoint import choose_shards
from boardfit.converters.spec import TargetTensor
from boardfit.converters.tokenizers.files import TokenizerFiles, read_json
from boardfit.converters.tokenizers.special import end_of_turn_ids
from boardfit.device_profiles.cost.engine_classes import EngineClass
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.rooted import work_beside
from boardfit.edge.engines.fit import available_bytes
from boardfit.edge.errors import IntegrityError, UnsupportedModelError
from boardfit.edge.files.onnx import read_onnx
from boardfit.edge.terminal.progress import Progress, Say
from boardfit.edge.types import Plan
from boardfit.edge.units import MIB

MODEL_FILE = "model.onnx"
CONFIG_FILE = "genai_config.json"
# Taken from the checkpoint byte for byte: a tokenizer that transformers has loaded and saved again
# is not always the same tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                    "generation_config.json")  # fmt: skip

#: torch, transformers, the builder: measured at 292 MB before the first weight.
_BASE_BYTES = 320 * MIB


def convert_onnx(
    checkpoint: Path,
    output: Path,
    recipe: OnnxRecipe,
    *,
    n_ctx: int,
    isa: Collection[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Made:
    """Convert the Hugging Face directory `checkpoint` into the new folder `output`, which appears
    whole or not at all.

    `n_ctx` is the context to build for, `isa` the features of the CPU it is
    for (`device_profiles`: `dotprod`, `i8mm`, `avx2` …; None: unknown).

    Raises UnsupportedModelError for a model the builder does not write, DoesNotFitError when
    memory or disk is short (before anything is made), InputError for a broken checkpoint,
    IntegrityError if the result is not what was asked for.
    """
    config = read_json(checkpoint / "config.json")
    check_heads(config)
    check_resources(checkpoint, output, recipe)
    python = tool_python("onnx", say=say)
    with (
        work_beside(output, "conversion") as work,
        tempfile.TemporaryDirectory(prefix="boardfit-onnx-") as scratch,
    ):
        made = work.path / "made"
        made.mkdir()
        source = link_checkpoint(checkpoint, Path(scratch) / "checkpoint")
        result = run_worker(
            python,
            "boardfit.converters.formats.onnx.worker.export",
            {
                "checkpoint": str(source),
                "output": str(made),
                "cache": str(Path(scratch) / "cache"),
                "recipe": recipe.to_dict() if recipe.is_quantized else None,
                "accuracy_level": accuracy_level(isa),
                "n_ctx": n_ctx,
            },
            progress=progress,
            say=say,
            threads=threads,
        )
        finish_folder(checkpoint, config, made, n_ctx)
        described = describe(made, recipe, result)
        work.publish("made")
    return described


def accuracy_level(isa: Collection[str] | None) -> int:
    """MatMulNBits' accuracy level for a CPU: int8 products where it multiplies int8 in hardware or
    is unknown, floats on an Arm core without dot products (Cortex-A53, A72), where ONNX Runtime has
    no int8 kernel.
    """
    if isa is None or {"dotprod", "i8mm", "avx2", "avx512f", "avx_vnni"} & set(isa):
        return INT8_ACTIVATIONS
    return FLOAT_ACTIVATIONS


def check_heads(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for attention that ONNX Runtime has no kernel for."""
    heads, hidden = config.get("num_attention_heads") or 1, config.get("hidden_size") or 0
    width = config.get("head_dim") or hidden // heads
    if width % 16:
        raise UnsupportedModelError(
            f"attention heads of {width} values: ONNX Runtime's attention takes multiples of 16",
            next_step="edge build MODEL --format gguf",
        )


# ---- before -------------------------------------------------------------------------------------


def conversion_bytes(checkpoint: Path, recipe: OnnxRecipe) -> int:
    """Peak memory of a conversion: the weights as transformers loads them, the result, the largest
    matrix twice in floats, and the libraries.
    """
    config = read_json(checkpoint / "config.json")
    weights = checkpoint_bytes(checkpoint)
    hidden = config.get("hidden_size") or 0
    largest = max(config.get("vocab_size") or 0, config.get("intermediate_size") or 0) * hidden
    return _BASE_BYTES + weights + output_bytes(checkpoint, recipe) + 2 * 4 * largest


def checkpoint_bytes(checkpoint: Path) -> int:
    return sum((checkpoint / shard).stat().st_size for shard in choose_shards(checkpoint)[0])


def output_bytes(checkpoint: Path, recipe: OnnxRecipe) -> int:
    """About what the artifact will have; the checkpoint is taken to hold 16 bits per weight."""
    bits = max(recipe.default.bpw, recipe.head.bpw)
    return int(checkpoint_bytes(checkpoint) / 2 * bits / 8)


def check_resources(checkpoint: Path, output: Path, recipe: OnnxRecipe) -> None:
    check_memory(
        "converting to ONNX",
        conversion_bytes(checkpoint, recipe),
        available_bytes(),
        next_step="close other programs, or build it as GGUF, which streams: --format gguf",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    needed = output_bytes(checkpoint, recipe) + 16 * MIB
    step = "make room, or choose another -o"
    check_disk("the artifact", needed, output.parent, next_step=step)


# ---- after --------------------------------------------------------------------------------------


def finish_folder(checkpoint: Path, config: Mapping[str, Any], folder: Path, n_ctx: int) -> None:
    """The source's own tokenizer files, and a configuration with the real context and all stops."""
    for name in _TOKENIZER_FILES:
        if has_file(checkpoint / name):
            copy_document(checkpoint / name, folder / name)
    document = json.loads((folder / CONFIG_FILE).read_bytes())
    model = document["model"]
    stops = end_of_turn_ids(TokenizerFiles(checkpoint, dict(config)))
    written = model.get("eos_token_id")
    for token in written if isinstance(written, list) else [written]:
        if isinstance(token, int) and token not in stops:
            stops.append(token)
    vocab = int(model["vocab_size"])
    if bad := [token for token in stops if token >= vocab]:
        raise IntegrityError(
            f"stop token {bad[0]} is past the vocabulary of {vocab}",
            next_step="correct eos_token_id in generation_config.json",
        )
    model["eos_token_id"] = stops
    model["context_length"] = n_ctx
    document["search"]["max_length"] = n_ctx
    write_atomic(folder / CONFIG_FILE, (json.dumps(document, indent=2) + "\n").encode())


def describe(folder: Path, recipe: OnnxRecipe, result: Mapping[str, Any]) -> Made:
    """Read back what was written. Raises what `read_onnx` raises, IntegrityError if nothing was
    quantized.
    """
    model = read_onnx(folder / MODEL_FILE)
    types = dict(result.get("counts") or {})
    if recipe.is_quantized and "com.microsoft.MatMulNBits" not in model.ops:
        raise IntegrityError(f"{MODEL_FILE}: no matrix was quantized")
    n_weights = sum(types.values())
    files = {path.name: _role(path.name) for path in sorted(folder.iterdir())}
    stored = sum(t.nbytes for t in model.tensors)
    return Made(files, types, 8 * stored / n_weights if n_weights else 32.0)


def _role(name: str) -> str:
    if name == MODEL_FILE:
        return "model"
    if name == "chat_template.jinja":
        return "template"
    return "part" if name in (CONFIG_FILE, f"{MODEL_FILE}.data") else "tokenizer"


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
