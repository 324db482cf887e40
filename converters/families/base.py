"""What a model family is: a name map, permutations, metadata and quirks, keyed by `model_type`.

A family file subclasses `Family`, registers the `model_type` values it handles in
`boardfit.converters.families.registry` (data: model_type → module and class), and overrides as
little as it can. It never reads tensor data itself. It names which rows of which source tensors
make up a target tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from boardfit.converters.spec import KeyValue, TargetTensor
from boardfit.device_profiles.shape import ModelShape


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in a checkpoint.

    It has its dtype as a ggml type name (`BF16`, `F16`, `F32`), its row-major shape, and a
    zero-copy view over the mapped file (`BF16` as uint16). Where the checkpoint stores MXFP4,
    `mxfp4` has the same rows as blocks of ggml's type of that name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray
    mxfp4: np.ndarray | None = None


class Checkpoint(Protocol):
    """A checkpoint as families see it: the parsed `config.json` and tensors by name."""

    config: Mapping[str, Any]

    def names(self) -> Iterable[str]:
        """All tensor names, in file order."""

    def tensor(self, name: str) -> SourceTensor:
        """One tensor. Raises InputError that names it and its shard when it is absent."""


class Family(Protocol):
    """How one architecture becomes GGUF. `arch` is the GGUF architecture name.

    `keep_mtp` asks for the head that guesses several tokens ahead, for families that can keep it.
    """

    arch: str
    can_keep_mtp: bool
    keep_mtp: bool

    def shape(self, checkpoint: Checkpoint) -> ModelShape:
        """The model's shape. Raises InputError when config and tensors disagree."""

    def metadata(self, checkpoint: Checkpoint) -> list[KeyValue]:
        """`<arch>.*` entries in upstream's order; `general.*` and `tokenizer.*` are added around
        them by `boardfit.converters.source.hf`.
        """

    def tensors(self, checkpoint: Checkpoint) -> list[TargetTensor]:
        """All target tensors, in upstream converter's order. Raises InputError for source tensors
        that are missing, unknown or of the wrong shape.
        """

    def notes(self, checkpoint: Checkpoint) -> list[str]:
        """Sentences for the user about how the artifact differs from the checkpoint."""

    def rename(self, name: str) -> str | None:
        """A source tensor's name without what is around a language model; None drops it."""
