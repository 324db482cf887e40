"""What a format is: a folder with a class that follows `Format`, and a row in formats.toml. Nothing
outside the folder asks which format it deals with.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from boardfit.converters.spec import ModelSpec, TargetTensor
from boardfit.device_profiles.cost.memory import StoredTensor
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.bundle.bundle import sha256_file
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import UsageError
from boardfit.edge.types import Plan
from boardfit.edge.units import did_you_mean


@dataclass(frozen=True)
class FormatRow:
    """One row of the table.

    `implementation` is the class of the format as `module:Class`, made with this row. `file` is the
    model file's name in a bundle, `recipe` what a plan takes by default, `profile_engines` the
    names under which board profiles list the engine. `is_streamed` formats are quantized by our own
    pass: it writes several recipes in one reading, and the planner compares all of them.
    """

    id: str
    implementation: str
    engine: str
    file: str
    recipe: str
    profile_engines: tuple[str, ...]
    about: str
    is_streamed: bool = False

    def load(self) -> Format:
        """Import the format's class and make it."""
        module, _, name = self.implementation.partition(":")
        found: Format = getattr(importlib.import_module(module), name)(self)
        return found


@dataclass(frozen=True)
class FormatWeights:
    """Predicted file size, and the tensors as the cost model takes them."""

    artifact_bytes: int
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True)
class FormatArtifact:
    """What was made in `folder`. `files` maps names to bundle roles, `hashes` to sha256 sums;
    `types` counts weights (of a GGUF tensors) by kind of storage; `nbytes` is of all files; `bpw`
    is bits per weight, scales included; `n_resumed` tensors were there from an interrupted run.
    """

    folder: Path
    recipe: str
    files: Mapping[str, str]
    hashes: Mapping[str, str]
    nbytes: int
    types: Mapping[str, int]
    bpw: float
    seconds: float
    n_resumed: int = 0

    @property
    def path(self) -> Path:
        """The model file: what the engine is given."""
        return self.folder / next(name for name, role in self.files.items() if role == "model")

    @property
    def sha256(self) -> str:
        return self.hashes[self.path.name]


def keep(artifact: FormatArtifact, record: Path, identity: str) -> FormatArtifact:
    """Note in `record` that an artifact is whole, so that the same build need not make it again."""
    stored = {**asdict(artifact), "folder": artifact.folder.name}
    write_atomic(record, json.dumps({"identity": identity, "artifact": stored}).encode())
    return artifact


def find_kept(record: Path, folder: Path, identity: str) -> FormatArtifact | None:
    """The artifact in `folder` that an earlier run with this `identity` noted, verified by hash."""
    try:
        stored = json.loads(record.read_bytes())
        artifact = FormatArtifact(**{**stored["artifact"], "folder": folder})
        whole = all(sha256_file(folder / n) == digest for n, digest in artifact.hashes.items())
        return artifact if stored["identity"] == identity and whole else None
    except Exception:  # a damaged file is made again
        return None


@dataclass(frozen=True)
class Conversion:
    """One artifact to make in the new folder `folder`. `stage` and `progress` report steps."""

    spec: ModelSpec
    plan: Plan
    device: DeviceProfile
    folder: Path
    threads: int | None
    stage: Callable[[str], None]
    progress: Callable[[int, int], None]


class Format(ABC):
    """One format. `row` is its row in the table."""

    def __init__(self, row: FormatRow) -> None:
        self.row = row

    @abstractmethod
    def list_recipes(self) -> tuple[str, ...]:
        """Ids of the recipes that make this format, most bits first."""

    @abstractmethod
    def describe_recipe(self, recipe_id: str) -> str:
        """What a recipe does, in a few words. Raises UsageError for an unknown one."""

    def name_artifact(self, plan: Plan, device: DeviceProfile) -> str:
        """What the bytes depend on beside the source: plans of one key share an artifact."""
        return f"{self.row.id}-{plan.recipe}"


def stored_tensor(tensor: TargetTensor, ggml_type: str, n_bytes: int) -> StoredTensor:
    """The tensor as the cost model takes it, stored in `n_bytes`."""
    rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    return StoredTensor(
        name=tensor.name,
        ggml_type=ggml_type,
        n_per_row=tensor.n_per_row,
        n_rows=rows,
        n_matrices=tensor.n_rows // max(rows, 1),
        n_bytes=n_bytes,
    )


GGUF, AUTO = "gguf", "auto"

FORMATS: dict[str, FormatRow] = {
    name: FormatRow(name, **{**row, "profile_engines": tuple(row["profile_engines"])})
    for name, row in load_toml("boardfit.converters.formats", "formats.toml").items()
}


def format_of_engine(engine: str) -> FormatRow:
    return next(row for row in FORMATS.values() if row.engine == engine)


def parse_formats(text: str) -> tuple[str, ...]:
    """`gguf,onnx` → ids, without doubles. `auto` stands alone.

    Raises UsageError, with the nearest known id, for an unknown one.
    """
    wanted = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    known = (*FORMATS, AUTO)
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"unknown format {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}"
            )
    if not wanted or (AUTO in wanted and len(wanted) > 1):
        raise UsageError(f"--format {text!r}: name formats, or auto alone")
    return wanted
