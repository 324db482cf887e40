"""A checkpoint as families see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


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
