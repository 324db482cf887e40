"""A directory of safetensors shards as one `Checkpoint`: checked first, then mapped, never copied.

Which files count and in which order tensors come is upstream's rule (conversion/base.py,
`index_tensors`): the shards that `model.safetensors.index.json` names, else `model*.safetensors`,
sorted by file name, and by tensor name within a file.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boardfit.converters.documents import has_file, read_json_object
from boardfit.converters.families.base import SourceTensor
from boardfit.converters.source.fingerprint import Digest, map_file, update_with_file
from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.safetensors import SafetensorsHeader, read_header
from boardfit.edge.units import printable

INDEX = "model.safetensors.index.json"
ADAPTER = "this is an adapter (LoRA), not a model"
ADAPTER_ADVICE = (
    "merge it into its base model first: peft's merge_and_unload(), then save_pretrained()"
)
_DTYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsCheckpoint:
    """The parsed `config.json` and the tensors of one directory. See `Checkpoint`."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Reads and checks every shard's header; maps nothing yet.

        Raises InputError for missing, truncated or contradicting files, UnsafeInputError for an
        index that points outside the directory, UnsupportedModelError for quantized weights.
        """
        self.directory = directory
        self.config = config
        refuse_quantized(config)
        self.shards = find_shards(directory)
        self.headers: dict[str, SafetensorsHeader] = {
            shard: read_header(directory / shard, below=directory) for shard in self.shards
        }
        self._where = self._locate()
        self._maps: dict[str, mmap.mmap] = {}

    def names(self) -> Iterable[str]:
        """All tensor names, shard by shard."""
        return self._where.keys()

    def tensor(self, name: str) -> SourceTensor:
        """One tensor as a zero-copy, read-only view of its mapped shard.

        Raises InputError that names the tensor when it is absent, empty or of a type that is not
        BF16, F16 or F32.
        """
        shard = self._where.get(name)
        if shard is None:
            raise InputError(f"tensor {printable(name)} is missing from {self.directory}")
        header = self.headers[shard]
        entry = header.tensors[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise InputError(
                f"tensor {printable(name)} in {shard} is {entry.dtype}; expected BF16, F16 or F32",
                next_step="use the model's unquantized checkpoint, or come in through a GGUF",
            )
        count = math.prod(entry.shape)
        if not entry.shape or not count:
            raise InputError(
                f"tensor {printable(name)} in {shard} has shape {list(entry.shape)}; "
                "expected at least one value and one dimension"
            )
        data = np.frombuffer(
            self._map(shard), dtype=dtype, count=count, offset=header.data_offset + entry.start
        )
        return SourceTensor(name, entry.dtype, entry.shape, data.reshape(entry.shape))

    def files(self) -> dict[str, int]:
        """Sizes in bytes of the shards."""
        return {shard: header.file_size for shard, header in self.headers.items()}

    def update_fingerprint(self, digest: Digest) -> None:
        """Feed names, sizes, headers and samples of the data of all shards."""
        for shard, header in self.headers.items():
            update_with_file(digest, shard, self._map(shard), header.data_offset)

    def _locate(self) -> dict[str, str]:
        """Tensor name → shard, in upstream's order, checked against the index if there is one."""
        where: dict[str, str] = {}
        for shard in self.shards:
            for name in sorted(self.headers[shard].tensors):
                if name in where:
                    raise InputError(
                        f"tensor {printable(name)} is in both {where[name]} and {shard}",
                        next_step="remove shards that belong to another download",
                    )
                where[name] = shard
        if not where:
            raise InputError(f"{self.directory}: the checkpoint has no tensors")
        if has_file(self.directory / INDEX):
            _check_index(read_weight_map(self.directory), where)
        return where

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            self._maps[shard] = map_file(
                self.directory / shard, self.headers[shard].file_size, below=self.directory
            )
        return self._maps[shard]


def find_shards(directory: Path) -> list[str]:
    """File names of the shards, sorted. Raises InputError that names what is there instead."""
    if has_file(directory / INDEX):
        shards = sorted(set(read_weight_map(directory).values()))
    else:
        shards = sorted(p.name for p in directory.glob("model*.safetensors"))
        shards = _complete_numbering(shards)
    for shard in shards:
        if not has_file(directory / shard):
            raise InputError(
                f"{directory}: shard {printable(shard)} is missing ({len(shards)} are needed)",
                next_step="download it, or the whole checkpoint again",
            )
    if not shards:
        _refuse_without_weights(directory)
    return shards


def read_weight_map(directory: Path) -> dict[str, str]:
    """`weight_map` of the index: tensor name → file name within the directory.

    Raises UnsafeInputError for a file name that leads elsewhere.
    """
    path = directory / INDEX
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map is missing or empty")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise InputError(f"{path}: {printable(name)} is not mapped to a file name")
        if re.search(r"[/\\:\x00]", file) or not file.endswith(".safetensors"):
            raise UnsafeInputError(
                f"{path}: {printable(name)} is mapped to {printable(file)!r}; expected the name of "
                "a .safetensors file in the same directory"
            )
    return weight_map


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedModelError for checkpoints whose weights are already quantized."""
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UnsupportedModelError(
            f"the checkpoint is already quantized (quantization_config: "
            f"{printable(str(method or 'method not named'), 40)}); quantizing it again would lose "
            "quality twice",
            next_step="use the model's unquantized checkpoint (BF16, F16 or F32)",
        )


def _check_index(weight_map: Mapping[str, str], where: Mapping[str, str]) -> None:
    for name, shard in weight_map.items():
        if where.get(name) != shard:
            raise InputError(
                f"{INDEX} states that tensor {printable(name)} is in {printable(shard)}, "
                + (f"it is in {where[name]}" if name in where else "which does not hold it"),
                next_step="download the checkpoint again; files of two versions are mixed",
            )
    extra = next((name for name in where if name not in weight_map), None)
    if extra is not None:
        raise InputError(
            f"tensor {printable(extra)} in {where[extra]} is not in {INDEX}",
            next_step="download the checkpoint again; files of two versions are mixed",
        )


def _complete_numbering(shards: list[str]) -> list[str]:
    """All shards that the numbers in the names imply, so that an absent one is noticed without an
    index too.
    """
    complete = set(shards)
    for shard in shards:
        match = _NUMBERED.fullmatch(shard)
        if match and int(match[2]) <= int(match[3]):
            stem, total = match[1], match[3]
            complete |= {f"{stem}-{i:05d}-of-{total}.safetensors" for i in range(1, int(total) + 1)}
    return sorted(complete)


def _refuse_without_weights(directory: Path) -> None:
    names = sorted(p.name for p in directory.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if "adapter_config.json" in names:
        raise UnsupportedModelError(f"{directory}: {ADAPTER}", next_step=ADAPTER_ADVICE)
    if pickles:
        raise UnsafeInputError(
            f"{directory}: the weights are Python pickles ({pickles[0]}), which can run code when "
            "they are opened; boardfit never opens them",
            next_step=pickle_advice(str(directory)),
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    hint = f"; it has {', '.join(others[:3])}" if others else ""
    raise InputError(
        f"{directory}: no model.safetensors and no {INDEX}{hint}",
        next_step="give a Hugging Face model directory, or a .gguf file",
    )


def pickle_advice(source: str, target: str | None = None) -> str:
    """The command that makes safetensors of a pickled checkpoint, for those who trust it."""
    return (
        "if you trust their author, convert with torch and transformers: python -c "
        '"import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        "M.from_pretrained(sys.argv[1], torch_dtype='auto').save_pretrained(sys.argv[2]); "
        'T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" '
        f"{source} {target or source.rstrip('/') + '-safetensors'}"
    )
