"""The checkpoint's tensors by the names that transformers gives them, mapped, never unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from boardfit.edge.errors import InputError

INDEX = "model.safetensors.index.json"
# Multimodal checkpoints keep the language model under a prefix; others lack the outer one.
_PREFIXES = (("", ""), ("model.", "model.language_model."), ("model.", "language_model.model."),
             ("model.", ""), ("lm_head", "language_model.lm_head"))  # fmt: skip


class CheckpointWeights:
    """Reads single tensors of a directory of safetensors shards."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, Any] = {}
        index = directory / INDEX
        if index.is_file():
            self._where: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
        else:
            self._where = {
                name: shard.name
                for shard in sorted(directory.glob("model*.safetensors"))
                for name in self._open(shard.name).keys()  # noqa: SIM118 not a dict
            }
        if not self._where:
            raise InputError(f"{directory}: the checkpoint has no tensors")

    def names(self) -> list[str]:
        return list(self._where)

    def find_name(self, parameter: str) -> str:
        """The checkpoint's name of a model parameter. Raises InputError when it has none."""
        for prefix, replacement in _PREFIXES:
            if parameter.startswith(prefix):
                name = replacement + parameter[len(prefix) :]
                if name in self._where:
                    return name
        raise InputError(f"tensor {parameter} is missing from {self._directory}")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open(self._where[name]).get_slice(name).get_shape())

    def check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        got = self.shape(name)
        if got != expected:
            raise InputError(
                f"tensor {name} has shape {list(got)}; the configuration asks for {list(expected)}"
            )

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor in its stored type."""
        return self._open(self._where[name]).get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a matrix as float32, [stop - start, n_per_row]."""
        piece = self._open(self._where[name]).get_slice(name)[start:stop]
        return piece.to(torch.float32)

    def close(self) -> None:
        """Give back the mapped pages."""
        self._files.clear()

    def _open(self, shard: str) -> Any:
        if shard not in self._files:
            self._files[shard] = safe_open(self._directory / shard, framework="pt", device="cpu")
        return self._files[shard]
