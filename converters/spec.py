"""`ModelSpec`: one model, wherever it came from, described and readable row by row.

A spec holds GGUF names and metadata, and tensors that are read lazily from the mapped source. What
the recipe decides (the quantized types, `general.file_type`) is not in it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from boardfit.device_profiles.shape import ModelShape
from boardfit.edge import __version__
from boardfit.edge.files.gguf.purpose import ENCODERS, POOLING

PACKAGES = ("llama-cpp-python", "gguf", "numpy", "tokenizers", "sentencepiece")
RowReader = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class KeyValue:
    """One GGUF metadata entry. `item_type` is set when `value_type` is ARRAY."""

    key: str
    value: Any
    value_type: GGUFValueType
    item_type: GGUFValueType | None = None


@dataclass(frozen=True)
class TargetTensor:
    """One tensor of the artifact-to-be. `shape` is row-major: its last entry is the row length
    (ggml's ne[0]). `source_type` is the ggml type of what `read` returns: `F32`, `F16`, `BF16` (as
    uint16), or of a GGUF source any type (rows as raw uint8 blocks). `read(start, stop)` returns
    those rows as a 2-D array, copying no more than it must; permutations, stacking of experts and
    small arithmetic (Gemma's norm + 1) are inside it. `keep` names a type that every recipe must
    leave this tensor in. `origin` names the source tensors, for messages.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    read: RowReader
    keep: str | None = None
    origin: str = ""

    @property
    def n_per_row(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def n_elements(self) -> int:
        return self.n_rows * self.n_per_row


@dataclass(frozen=True)
class SourceIdentity:
    """Where a model came from: for the manifest, the bundle's card and resuming. `files` are the
    source files' sizes in bytes. `fingerprint` is the sha256 over names, sizes, headers and
    samples. `quantized` states what the weights were stored as where they are no floats, and
    `adapter` which adapter is merged into them.
    """

    kind: str  # "hf-directory", "hub", "gguf"
    location: str
    files: Mapping[str, int]
    fingerprint: str
    license: str | None = None
    revision: str | None = None
    quantized: str | None = None
    adapter: str | None = None

    def provenance(self) -> dict[str, str]:
        """What stands between the source's floats and the model, where anything does."""
        found = {"quantized": self.quantized, "adapter": self.adapter}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class ModelSpec:
    """One model, ready to be planned for and converted. `metadata` is in writing order, without
    `general.file_type` and `general.quantization_version`, which the writer adds. `tokenizer_dir`
    has the source's own tokenizer files, which the written vocabulary is verified against.
    `converter` holds the versions of foreign tools that made the tensors, where a family of ours
    did not.
    """

    name: str
    family: str
    shape: ModelShape
    metadata: tuple[KeyValue, ...]
    tensors: tuple[TargetTensor, ...]
    source: SourceIdentity
    chat_template: str | None = None
    tokenizer_dir: Path | None = None
    notes: tuple[str, ...] = field(default=())
    converter: Mapping[str, str] = field(default_factory=dict)

    @property
    def arch(self) -> str:
        return self.shape.arch

    @property
    def is_embedder(self) -> bool:
        """Whether a text becomes one vector: the model generates no text."""
        return self.pooling != "none" or self.arch in ENCODERS

    @property
    def pooling(self) -> str:
        """How the vectors of a text's tokens become one, `none` for a model that generates."""
        kind = self.get(f"{self.arch}.pooling_type", 0)
        return POOLING[kind] if isinstance(kind, int) and 0 <= kind < len(POOLING) else "none"

    @property
    def reads_at_once(self) -> bool:
        """Whether a whole text has to go through the model in one step."""
        return self.is_embedder and (self.arch in ENCODERS or self.pooling != "last")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of one metadata key."""
        return next((kv.value for kv in self.metadata if kv.key == key), default)


def tool_versions() -> dict[str, str | None]:
    """boardfit's version and those of the packages that convert; None for one that is absent."""
    found: dict[str, str | None] = {"boardfit": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
