"""A transformers model of the true architecture whose big matrices take no memory.

Exporting a graph needs shapes, not weights. Every matrix of a Linear or Embedding layer becomes one
number, seen as a matrix through zero strides; the number is the matrix's tag. Tags survive the
lowering to TFLite, where `assemble.py` finds them and puts quantized constants in their place.
Small parameters (norms, biases, short convolutions) are loaded for real, in float32.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from boardfit.edge.errors import InputError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
# Multimodal checkpoints keep the language model under a prefix; others lack the outer one.
_PREFIXES = (("", ""), ("model.", "model.language_model."), ("model.", "language_model.model."),
             ("model.", ""), ("lm_head", "language_model.lm_head"))  # fmt: skip


class CheckpointWeights:
    """Reads single tensors of a directory of safetensors shards by the names that transformers
    gives them, mapped, never unpickled.
    """

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

    def read(self, name: str) -> torch.Tensor:
        return self._open(self._where[name]).get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a matrix as float32, [stop - start, n_per_row]."""
        piece = self._open(self._where[name]).get_slice(name)[start:stop]
        return piece.to(torch.float32)

    def close(self) -> None:
        self._files.clear()

    def _open(self, shard: str) -> Any:
        if shard not in self._files:
            self._files[shard] = safe_open(self._directory / shard, framework="pt", device="cpu")
        return self._files[shard]


# Exact in float32 and larger than any constant that a graph computes with.
FIRST_TAG = 1 << 20


@dataclass
class Skeleton:
    """`tags` maps each tag to the checkpoint's name of the matrix."""

    model: Any
    config: Any
    tags: dict[int, str]


def build_skeleton(directory: Path, config: Any, weights: CheckpointWeights) -> Skeleton:
    """The model of `config` in evaluation mode. Shapes are those that the model's family, which has
    read the checkpoint before, holds against the configuration.
    """
    with _parameters_without_memory(), _no_initialization():
        model = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32)
    model.eval()
    model.tie_weights()
    tags: dict[int, str] = {}
    tagged: dict[int, torch.nn.Parameter] = {}
    for module_name, module in model.named_modules():
        matrix = isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is None:
                continue
            full = f"{module_name}.{name}" if module_name else name
            if id(parameter) in tagged:  # tied to one that came before
                setattr(module, name, tagged[id(parameter)])
                continue
            if matrix and name == "weight":
                source = weights.find_name(full)
                tag = FIRST_TAG + len(tags)
                tags[tag] = source
                value = torch.tensor(float(tag)).expand(parameter.shape)
            else:
                value = weights.read(weights.find_name(full)).to(torch.float32)
            new = torch.nn.Parameter(value, requires_grad=False)
            tagged[id(parameter)] = new
            # Keeps the old one alive, so that its id is not given to another.
            new.replaces = parameter
            setattr(module, name, new)
    if any(p.is_meta for p in model.parameters()):
        raise UnsupportedModelError(f"{config.model_type}: a parameter was not filled in")
    return Skeleton(model, config, tags)


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters go to the meta device as they are registered; buffers stay real."""
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def _no_initialization() -> Iterator[None]:
    init = transformers.PreTrainedModel.init_weights
    transformers.PreTrainedModel.init_weights = lambda self: None
    try:
        yield
    finally:
        transformers.PreTrainedModel.init_weights = init
