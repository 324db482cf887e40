"""What an importance matrix holds: raw sums as collected, and weights as quantizers use them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import InputError

# The embedding is looked up, not multiplied: upstream ignores its entry in a file.
_LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class Sums:
    """Sums of the squared activations of one matrix: `values` float32 `[n_experts, n_per_row]`,
    `counts` the rows in each expert's sum (int64; one entry when dense).
    """

    values: np.ndarray
    counts: np.ndarray

    def compute_means(self) -> np.ndarray:
        """Mean squared activations, float32, flat. An expert that no token chose gets ones, as in
        `tools/quantize/quantize.cpp`.
        """
        counts = self.counts.astype(np.float32)[:, None]
        values = self.values.reshape(len(counts), -1)
        out = np.ones_like(values)
        np.divide(values, counts, out=out, where=counts > 0)
        return out.reshape(-1)


@dataclass(frozen=True)
class Imatrix:
    """Mean squared activations by tensor name, float32, experts one after the other, over
    `n_chunks` of text (0: not known) of the `datasets`.
    """

    entries: Mapping[str, np.ndarray]
    file: str
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0

    def weights_for(self, name: str, n_experts: int, n_per_row: int) -> np.ndarray | None:
        """Weights `[n_experts, n_per_row]` of one tensor, or None if there are none.

        Raises InputError when the imatrix is of another model.
        """
        values = self.entries.get(name)
        if values is None or (values.size != n_experts * n_per_row and name in _LOOKED_UP):
            return None
        if values.size != n_experts * n_per_row:
            raise InputError(
                f"imatrix {self.file}: {name} has {values.size} values, expected "
                f"{n_experts * n_per_row}: it was computed for another model",
                next_step="Compute one for this model: edge imatrix --help",
            )
        return values.reshape(n_experts, n_per_row)

    @cached_property
    def digest(self) -> str:
        """sha256 over names and values."""
        found = hashlib.sha256()
        for name in sorted(self.entries):
            found.update(name.encode() + b"\0" + self.entries[name].tobytes())
        return found.hexdigest()

    def metadata(self) -> tuple[KeyValue, ...]:
        """Metadata of a file quantized with it, as upstream's `quantize.cpp` writes it."""
        text, count = GGUFValueType.STRING, GGUFValueType.UINT32
        out = [KeyValue("quantize.imatrix.file", Path(self.file).name, text)]
        if self.datasets:
            out.append(KeyValue("quantize.imatrix.dataset", self.datasets[0], text))
        out.append(KeyValue("quantize.imatrix.entries_count", len(self.entries), count))
        if self.n_chunks > 0:
            out.append(KeyValue("quantize.imatrix.chunks_count", self.n_chunks, count))
        return tuple(out)
