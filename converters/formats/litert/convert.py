"""A checkpoint → `.litertlm` for LiteRT-LM, or a plain `.tflite` that tflite-runtime 2.14 runs too.

The graph comes from litert-torch, in an environment of its own; the constants are ours: one matrix
at a time is read from the mapped checkpoint, quantized and written where the graph expects it. That
keeps memory near that of an empty graph, and lets the recipe choose scales by error rather than by
the largest magnitude.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.converters.documents import has_file, read_json_object
from boardfit.converters.formats.litert.families import check_family
from boardfit.converters.formats.litert.memory import check_memory, conversion_bytes
from boardfit.converters.formats.litert.recipe import LitertRecipe, recipes_for
from boardfit.converters.formats.litert.types import WEIGHT_TYPES, Flavour
from boardfit.converters.formats.tools.checkpoint import link_checkpoint
from boardfit.converters.formats.tools.environments import run_worker, tool_python
from boardfit.converters.sample.examples import read_conversations
from boardfit.converters.spec import ModelSpec
from boardfit.edge.bundle.bundle import sha256_file
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.engines.litert.tflite_check import RECIPE_MARK
from boardfit.edge.errors import DoesNotFitError, InputError, UsageError
from boardfit.edge.terminal.progress import Progress, Say
from boardfit.edge.units import format_bytes

#: Suffix of the file by flavour.
SUFFIXES = {"litertlm": ".litertlm", "tflite": ".tflite"}

_WORKER = "boardfit.converters.formats.litert.worker.convert"
N_CALIBRATION_TEXTS, CALIBRATION_TOKENS = 32, 256


@dataclass(frozen=True)
class LitertArtifact:
    """A written file. `types` counts parameters by weight type; `bpw` is bits per weight of the
    quantized matrices, scales included. Peaks are the worker's, None where the system has none.
    """

    path: Path
    recipe: str
    flavour: Flavour
    nbytes: int
    sha256: str
    types: Mapping[str, int]
    bpw: float
    seconds: float
    peak_rss_bytes: int | None = None
    peak_anon_bytes: int | None = None


def convert_litert(
    spec: ModelSpec,
    checkpoint_dir: Path,
    recipe: LitertRecipe,
    output: Path,
    *,
    prefill_lengths: Sequence[int],
    cache_length: int,
    flavour: Flavour = "litertlm",
    threads: int | None = None,
    calibration: str | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    memory_bytes: int | None = None,
) -> LitertArtifact:
    """Write `output`, which is whole or absent. `prefill_lengths` are the lengths of prompts that
    get a graph of their own, `cache_length` the tokens that the KV cache holds. `calibration` is a
    text for recipes that round by one; the built-in one serves without. `memory_bytes` is what the
    conversion may take, by default what is free.

    Raises UnsupportedModelError for a family that LiteRT cannot be made of, UsageError for lengths
    or a flavour that do not go together, DoesNotFitError before anything is done when memory or
    disk falls short, and what the worker raises.
    """
    started = time.monotonic()
    check_family(spec.family)
    check_request(spec, recipe, prefill_lengths, cache_length, flavour)
    n_signatures = len(prefill_lengths) + 1
    predicted = conversion_bytes(
        spec.shape,
        n_signatures=n_signatures,
        gptq=recipe.gptq,
        n_calibration=N_CALIBRATION_TEXTS * CALIBRATION_TOKENS,
    )
    available = memory_bytes if memory_bytes is not None else _free_memory()
    check_memory(predicted, available, {"gptq": recipe.gptq, "n_signatures": n_signatures})
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
                "flavour": flavour,
                "prefill_lengths": sorted(set(prefill_lengths)),
                "cache_length": cache_length,
                "threads": threads,
                "recipe": recipe.to_dict(),
                "description": RECIPE_MARK + recipe.id,
                "calibration": _calibration(calibration) if recipe.gptq else None,
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
        sha256 = sha256_file(partial)
        os.replace(partial, output)
    fsync_directory(output.parent)
    return LitertArtifact(
        path=output,
        recipe=recipe.id,
        flavour=flavour,
        nbytes=output.stat().st_size,
        sha256=sha256,
        types=answer["types"],
        bpw=answer["bpw"],
        seconds=time.monotonic() - started,
        peak_rss_bytes=answer["peak_rss_bytes"],
        peak_anon_bytes=answer["peak_anon_bytes"],
    )


def check_request(
    spec: ModelSpec,
    recipe: LitertRecipe,
    prefill_lengths: Sequence[int],
    cache_length: int,
    flavour: str,
) -> None:
    """Raises UsageError for what cannot work, before anything is started."""
    if flavour not in recipe.flavours:
        raise UsageError(
            f"recipe {recipe.id} makes {', '.join(recipe.flavours)}, not {flavour}",
            next_step=f"recipes for {flavour}: " + ", ".join(recipes_for(flavour)),
        )
    if not prefill_lengths or min(prefill_lengths) < 1:
        raise UsageError(f"prefill lengths are {list(prefill_lengths)}; at least one is needed")
    if max(prefill_lengths) > cache_length:
        raise UsageError(
            f"a prefill of {max(prefill_lengths)} tokens does not go into a cache of "
            f"{cache_length}",
            next_step="shorten the prefill, or lengthen the context",
        )
    if cache_length > spec.shape.n_ctx_train:
        raise UsageError(
            f"a cache of {cache_length} tokens is more than the {spec.shape.n_ctx_train} that the "
            "model was trained for",
            next_step=f"--ctx {spec.shape.n_ctx_train}",
        )


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
    for name in ("generation_config.json", "config.json"):
        path = None if spec.tokenizer_dir is None else spec.tokenizer_dir / name
        if path is None or not has_file(path):
            continue
        named = read_json_object(path).get("eos_token_id")
        found |= set(named) if isinstance(named, list) else {named}
    n_vocab = spec.shape.n_vocab
    return sorted(t for t in found if type(t) is int and 0 <= t < n_vocab)


def _token(spec: ModelSpec, role: str) -> int | None:
    value: Any = spec.get(f"tokenizer.ggml.{role}_token_id")
    return None if value is None else int(value)


def _calibration(text: str | None) -> dict[str, Any]:
    """What the worker renders and tokenizes: a text, or conversations."""
    if text is not None:
        if len(text) < 1000:
            raise InputError(
                f"the calibration text has {len(text)} characters; at least 1,000 are needed"
            )
        return {"text": text, "conversations": []}
    talks = [[turn.to_dict() for turn in talk] for talk in read_conversations("calibration")]
    return {"text": "", "conversations": talks}


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _check_disk(spec: ModelSpec, recipe: LitertRecipe, output: Path) -> None:
    bits = max(WEIGHT_TYPES[t].bits for t in (recipe.linear, recipe.head, recipe.embedding))
    needed = spec.shape.n_params * (bits + 1) // 8 * 2  # the graph, and again in the container
    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.absolute().parent}")
    free = shutil.disk_usage(output.absolute().parent).free
    if free < needed:
        raise DoesNotFitError(
            f"the conversion needs about {format_bytes(needed)} of disk; {output.parent} has "
            f"{format_bytes(free)}",
            shortfall_bytes=needed - free,
            next_step="make room, or choose another output folder",
        )
