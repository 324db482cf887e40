"""One door to the converters of formats other than GGUF, each in its own environment."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from boardfit.converters.documents import copy_document, has_file
from boardfit.converters.formats.table import Format
from boardfit.converters.plan.converted import prefill_lengths
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import sha256_file
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import IntegrityError
from boardfit.edge.progress import Progress, Say
from boardfit.edge.types import Plan

# What the engine `tflite` reads beside the model, with their roles in a bundle.
_BESIDE_TFLITE = {
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "generation_config.json": "tokenizer",
    "chat_template.jinja": "template",
}


@dataclass(frozen=True)
class FormatArtifact:
    """What was made in `folder`. `files` maps names to bundle roles, `hashes` to sha256 sums;
    `types` counts weights by kind of storage; `nbytes` is of all files.
    """

    folder: Path
    recipe: str
    files: Mapping[str, str]
    hashes: Mapping[str, str]
    nbytes: int
    types: Mapping[str, int]
    bpw: float
    seconds: float

    @property
    def path(self) -> Path:
        """The model file: what the engine is given."""
        return self.folder / next(name for name, role in self.files.items() if role == "model")

    @property
    def sha256(self) -> str:
        return self.hashes[self.path.name]


def convert(
    spec: ModelSpec,
    plan: Plan,
    target: Format,
    device: DeviceProfile,
    folder: Path,
    *,
    threads: int | None,
    stage: Say,
    progress: Progress,
) -> FormatArtifact:
    """Make the artifact of `plan` in the new folder `folder`; one that an interrupted build of
    the same inputs has finished is kept.

    Raises what the converters raise: UnsupportedModelError, DoesNotFitError, EngineMissingError.
    """
    record = folder.with_name(folder.name + ".json")
    identity = json.dumps(
        [spec.source.fingerprint, plan.recipe, plan.n_ctx, sorted(device.isa)], sort_keys=True
    )
    if (kept := _finished(folder, record, identity)) is not None:
        return kept
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    assert spec.tokenizer_dir is not None  # `check_supported` saw to it
    if target.id == "onnx":
        files, types, bpw = _onnx(spec, plan, device, folder, threads, stage, progress)
    else:
        files, types, bpw = _litert(spec, plan, target, folder, threads, stage, progress)
    artifact = FormatArtifact(
        folder=folder,
        recipe=plan.recipe,
        files=files,
        hashes={name: sha256_file(folder / name) for name in files},
        nbytes=sum((folder / name).stat().st_size for name in files),
        types=types,
        bpw=bpw,
        seconds=time.monotonic() - started,
    )
    stored = {**asdict(artifact), "folder": folder.name}
    write_atomic(record, json.dumps({"identity": identity, "artifact": stored}).encode())
    return artifact


def _finished(folder: Path, record: Path, identity: str) -> FormatArtifact | None:
    try:
        stored = json.loads(record.read_bytes())
        artifact = FormatArtifact(**{**stored["artifact"], "folder": folder})
        whole = all(sha256_file(folder / n) == digest for n, digest in artifact.hashes.items())
        return artifact if stored["identity"] == identity and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


Made = tuple[dict[str, str], dict[str, int], float]


def _onnx(
    spec: ModelSpec,
    plan: Plan,
    device: DeviceProfile,
    folder: Path,
    threads: int | None,
    stage: Say,
    progress: Progress,
) -> Made:
    from boardfit.converters.formats.onnx.convert import convert_onnx
    from boardfit.converters.formats.onnx.recipe import load_onnx_recipe

    assert spec.tokenizer_dir is not None
    made = convert_onnx(
        spec.tokenizer_dir, folder, load_onnx_recipe(plan.recipe), n_ctx=plan.n_ctx,
        isa=device.isa or None, threads=threads, say=stage, progress=progress,
    )  # fmt: skip
    return dict(made.files), dict(made.types), made.bpw


def _litert(
    spec: ModelSpec,
    plan: Plan,
    target: Format,
    folder: Path,
    threads: int | None,
    stage: Say,
    progress: Progress,
) -> Made:
    from boardfit.converters.formats.litert.convert import convert_litert
    from boardfit.converters.formats.litert.recipe import load_recipe

    assert spec.tokenizer_dir is not None
    folder.mkdir(parents=True)
    files = {target.file: "model"}
    made = convert_litert(
        spec, spec.tokenizer_dir, load_recipe(plan.recipe), folder / target.file,
        prefill_lengths=prefill_lengths(plan.n_ctx), cache_length=plan.n_ctx,
        flavour="tflite" if target.id == "tflite" else "litertlm",
        threads=threads, say=stage, progress=progress,
    )  # fmt: skip
    if target.id == "tflite":
        for name, role in _BESIDE_TFLITE.items():
            source = spec.tokenizer_dir / name
            if has_file(source):
                copy_document(source, folder / name)
                files[name] = role
        if "tokenizer.json" not in files:
            raise IntegrityError(
                f"{spec.tokenizer_dir}: a plain .tflite needs tokenizer.json beside it",
                next_step="use --format litertlm, which carries its tokenizer inside",
            )
    return files, dict(made.types), made.bpw
