"""A directory of safetensors shards as one `Checkpoint`: checked first, then mapped, never copied.

Which files count and in which order tensors come is upstream's rule (conversion/base.py,
`index_tensors`): the shards that `model.safetensors.index.json` names, else `model*.safetensors`,
sorted by file name, and by tensor name within a file.
"""

import math
import mmap
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from boardfit.converters.documents import has_file, read_json_object
from boardfit.converters.families.layout import OTHER_MODALITY, SourceTensor
from boardfit.converters.source.quantized import find_quantized, stated_method
from boardfit.converters.source.wrappers import plain_names, refuse_adapter_tensors
from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.kind import open_regular
from boardfit.edge.files.safetensors import SafetensorsHeader, SafetensorsTensor, read_header
from boardfit.edge.units import printable

INDEX = "model.safetensors.index.json"
_MIXED = "download the checkpoint again; files of two versions are mixed"
ADAPTER = "this is an adapter (LoRA), not a model"
DTYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
# What quantized weights are stored in besides.
_STORED = {
    **DTYPES, "U8": np.uint8, "I8": np.int8, "I32": np.int32, "U32": np.uint32, "I64": np.int64,
    "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
}  # fmt: skip
# Spread over the data: fine-tunes of one model have equal names, sizes and headers.
_SAMPLES, _SAMPLE_BYTES = 32, 4096
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# A trainer's own state lies beside the weights, and is none.
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")
ADAPTER_FILES = (
    "adapter_config.json", "adapter_model.safetensors", "adapters.safetensors", "adapter_model.bin",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterRequest:
    """An adapter's folder, and what to multiply its strength by."""

    directory: Path
    scale: float = 1.0


class Digest(Protocol):
    """A hash object of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


def update_with_file(digest: Digest, name: str, mapped: mmap.mmap, data_offset: int) -> None:
    """Feed the file's name, size, header and 32 samples of 4 KiB, evenly spread over its data."""
    digest.update(f"{name}\0{len(mapped)}\0".encode())
    digest.update(mapped[:data_offset])
    last = max(data_offset, len(mapped) - _SAMPLE_BYTES)
    for i in range(_SAMPLES):
        start = data_offset + (last - data_offset) * i // (_SAMPLES - 1)
        digest.update(mapped[start : start + _SAMPLE_BYTES])


def map_file(path: Path, expected_size: int, *, below: Path | None = None) -> mmap.mmap:
    """A read-only map of a whole file. Raises InputError where it cannot be, or has changed."""
    file, _ = open_regular(path, below=below)
    try:
        with file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be mapped: {error}") from None
    if len(mapped) != expected_size:
        raise InputError(f"{path}: changed while it was being read")
    return mapped


class SafetensorsCheckpoint:
    """The parsed `config.json` and the tensors of one directory. See `Checkpoint`."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Reads and checks every shard's header; maps nothing yet. Raises InputError for missing,
        truncated or contradicting files, UnsafeInputError for an index that points outside the
        directory, UnsupportedModelError for weights that are quantized in a way that is not known.
        """
        self.directory = directory
        self.config = config
        self.shards, chosen = choose_shards(directory)
        self.headers: dict[str, SafetensorsHeader] = {
            shard: read_header(directory / shard, below=directory) for shard in self.shards
        }
        self._where = self._locate()
        refuse_adapter_tensors(self._where)
        plain, renamed = plain_names(self._where)
        self._stored = {plain[name]: name for name in self._where}
        self._maps: dict[str, mmap.mmap] = {}
        self._quantized = find_quantized(
            config,
            {name: self._entry(stored) for name, stored in self._stored.items()},
            lambda name: self._read(name, _STORED),
            {k: v for header in self.headers.values() for k, v in header.metadata.items()},
        )
        # What the weights were quantized to; None where they are floats.
        self.quantized = self._quantized.describe()
        noted = _quantization_note(config, self.quantized)
        self.notes = tuple(n for n in (chosen, renamed, noted) if n)

    def names(self) -> Iterable[str]:
        """All tensor names, shard by shard, without what a wrapper or quantizer put into them."""
        return self._quantized.names(self._stored)

    def plain_names(self) -> Mapping[str, str]:
        """The name that `names` gives, by the one in the files."""
        return {stored: name for name, stored in self._stored.items()}

    def tensor(self, name: str) -> SourceTensor:
        """One tensor, by the name that `names` gives it, as a zero-copy, read-only view of its
        mapped shard. A quantized weight is float32, and its rows are computed when they are read.

        Raises InputError that names the tensor when it is absent, empty or of a type that is not
        BF16, F16 or F32.
        """
        weight = self._quantized.weights.get(name)
        return self._read(name, DTYPES) if weight is None else weight.tensor()

    def _entry(self, stored: str) -> SafetensorsTensor:
        return self.headers[self._where[stored]].tensors[stored]

    def _read(self, name: str, dtypes: Mapping[str, Any]) -> SourceTensor:
        name = self._stored.get(name, name)
        shard = self._where.get(name)
        if shard is None:
            raise InputError(f"tensor {printable(name)} is missing from {self.directory}")
        return view_tensor(self._map(shard), self.headers[shard], name, shard, dtypes)

    def n_bytes(self, name: str) -> int:
        """Bytes of a tensor by the name that `names` gives it; as float32 if it is quantized."""
        if name not in self._stored:
            return 4 * math.prod(self.tensor(name).shape)
        entry = self._entry(self._stored[name])
        return entry.end - entry.start

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
            named = read_weight_map(self.directory).items()
            if used := {name: shard for name, shard in named if shard in self.headers}:
                _check_index(used, where)
        return where

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            self._maps[shard] = map_file(
                self.directory / shard, self.headers[shard].file_size, below=self.directory
            )
        return self._maps[shard]


def view_tensor(
    mapped: mmap.mmap, header: SafetensorsHeader, name: str, shard: str, dtypes: Mapping[str, Any]
) -> SourceTensor:
    """A zero-copy view of one tensor of a mapped file. Raises InputError as `tensor` does."""
    entry = header.tensors[name]
    dtype = dtypes.get(entry.dtype)
    if dtype is None:
        raise InputError(
            f"tensor {printable(name)} in {shard} is {entry.dtype}; expected BF16, F16 or F32",
            next_step="use the model's unquantized checkpoint, or come in through a GGUF",
        )
    count = math.prod(entry.shape)
    # The scale of a whole tensor has no dimension.
    if not count or not (entry.shape or dtypes is _STORED):
        raise InputError(
            f"tensor {printable(name)} in {shard} has shape {list(entry.shape)}; "
            "expected at least one value and one dimension"
        )
    data = np.frombuffer(mapped, dtype=dtype, count=count, offset=header.data_offset + entry.start)
    return SourceTensor(name, entry.dtype, entry.shape, data.reshape(entry.shape))


def choose_shards(directory: Path) -> tuple[list[str], str | None]:
    """File names of the shards, sorted, and a note where files that the index names are absent. An
    index is stale if one other set is complete. Else files may be absent that hold nothing of the
    language model. Raises InputError that names what is there instead.
    """
    present = {p.name for p in directory.glob("model*.safetensors") if has_file(p)}
    if not has_file(directory / INDEX):
        shards = _complete_numbering(sorted(present))
        _require_all(directory, shards)
        if not shards:
            refuse_without_weights(directory)
        return shards, None
    weight_map = read_weight_map(directory)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not has_file(directory / shard)]
    if missing:
        others = _other_sets(present, shards)
        if len(others) == 1:
            return others[0], (
                f"{INDEX} is not used: {len(missing)} of the {len(shards)} files that it names are "
                f"not here; the weights are read from {others[0][0]}"
                + (f" and {len(others[0]) - 1} more" if others[0][1:] else "")
            )
        absent = [name for name, shard in weight_map.items() if shard in missing]
        if len(missing) < len(shards) and all(OTHER_MODALITY.match(name) for name in absent):
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            return [shard for shard in shards if shard not in missing], (
                f"{printable(missing[0])}{more} is not here; its {len(absent)} tensors belong to "
                "a vision or audio tower, which a text artifact leaves out"
            )
    _require_all(directory, shards)
    return shards, None


def _other_sets(present: set[str], named: list[str]) -> list[list[str]]:
    """Complete sets of files beside those that an index names: one file, or all of a numbering."""
    found = [["model.safetensors"]] if "model.safetensors" in present - set(named) else []
    totals = {(m[1], m[3]) for m in map(_NUMBERED.fullmatch, present - set(named)) if m}
    for stem, total in sorted(totals):
        wanted = _complete_numbering([f"{stem}-00001-of-{total}.safetensors"])
        if set(wanted) <= present and not set(wanted) & set(named):
            found.append(wanted)
    return found


def _require_all(directory: Path, shards: list[str]) -> None:
    for shard in shards:
        if not has_file(directory / shard):
            raise InputError(
                f"{directory}: shard {printable(shard)} is missing ({len(shards)} are needed)",
                next_step="download it, or the whole checkpoint again",
            )


def read_weight_map(directory: Path) -> dict[str, str]:
    """`weight_map` of the index: tensor name → file name within the directory. Raises
    UnsafeInputError for a file name that leads elsewhere.
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


def _quantization_note(config: Mapping[str, Any], quantized: str | None) -> str | None:
    if quantized:
        return (
            f"the checkpoint is quantized already: {quantized}; what the first rounding lost "
            "stays lost"
        )
    method = stated_method(config)
    return method and (
        f"quantization_config ({method}) in config.json is not used: the weights are not quantized"
    )


def _check_index(weight_map: Mapping[str, str], where: Mapping[str, str]) -> None:
    for name, shard in weight_map.items():
        if where.get(name) != shard:
            own = f"it is in {where[name]}" if name in where else "which does not hold it"
            stated = f"{INDEX} states that tensor {printable(name)} is in {printable(shard)}"
            raise InputError(f"{stated}, {own}", next_step=_MIXED)
    extra = next((name for name in where if name not in weight_map), None)
    if extra is not None:
        fault = f"tensor {printable(extra)} in {where[extra]} is not in {INDEX}"
        raise InputError(fault, next_step=_MIXED)


def _complete_numbering(shards: list[str]) -> list[str]:
    """All shards that the numbers in the names imply: an absent one is noticed."""
    complete = set(shards)
    for shard in shards:
        match = _NUMBERED.fullmatch(shard)
        if match and int(match[2]) <= int(match[3]):
            stem, total = match[1], match[3]
            complete |= {f"{stem}-{i:05d}-of-{total}.safetensors" for i in range(1, int(total) + 1)}
    return sorted(complete)


def refuse_without_weights(directory: Path) -> None:
    """Raises InputError that names what a folder without weights holds instead."""
    names = sorted(p.name for p in directory.iterdir())
    refuse_adapter(directory)
    pickles = [name for name in names if name.endswith(_PICKLES) and name not in _NOT_WEIGHTS]
    if pickles:
        raise UnsafeInputError(
            f"{directory}: the weights are Python pickles ({pickles[0]}), which can run code when "
            "they are opened; boardfit never opens them",
            next_step=pickle_advice(str(directory)),
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if not others:
        raise InputError(
            f"{directory}: the weights are missing (no model.safetensors); the download or the "
            "copy is incomplete",
            next_step=f"download them too: {download_line(directory)}",
        )
    alone = others[0] if len(others) == 1 and others[0].endswith(".safetensors") else None
    raise InputError(
        f"{directory}: no model.safetensors and no {INDEX}; it has {', '.join(others[:3])}",
        next_step=f"rename it, if it holds the model: mv {directory / alone} "
        f"{directory / 'model.safetensors'}"
        if alone
        else "give a Hugging Face model directory, or a .gguf file",
    )


def refuse_adapter(directory: Path) -> None:
    """Raises UnsupportedModelError, which names the base model, if a folder holds an adapter."""
    if not any(has_file(directory / name) for name in ADAPTER_FILES):
        return
    base = adapter_base(directory)
    raise UnsupportedModelError(
        f"{directory}: {ADAPTER}" + (f"; its base model is {base}" if base else ""),
        next_step=f"merge it into its base while building: edge build {base or 'BASE'} --lora "
        f"{directory} -d BOARD -o OUT",
    )


def adapter_base(directory: Path) -> str | None:
    """The base model that an adapter's own file names, where it names one."""
    try:
        config = read_json_object(directory / "adapter_config.json")
        base = config.get("base_model_name_or_path") or config.get("model")  # PEFT, MLX
    except (InputError, OSError):
        return None
    return printable(base, 80) if isinstance(base, str) and base else None


def adapter_notes(directory: Path) -> list[str]:
    """A note about an adapter's files beside the weights of a model."""
    found = [name for name in ADAPTER_FILES if has_file(directory / name)]
    if not found:
        return []
    return [
        f"the adapter beside the weights ({found[0]}) is not applied; if it is not merged into "
        "them, the artifact is the base model"
    ]


def download_line(directory: Path) -> str:
    """The command that fetches a model again, by its name where a hub's cache holds the folder."""
    parts = directory.absolute().parts
    cached = next((part for part in reversed(parts) if part.startswith("models--")), None)
    name = cached.removeprefix("models--").replace("--", "/") if cached else "OWNER/NAME"
    return f"hf download {printable(name, 120)}" + ("" if cached else f" --local-dir {directory}")


def pickle_advice(source: str, target: str | None = None) -> str:
    """The command that makes safetensors of a pickled checkpoint, for those who trust it."""
    return (
        "if you trust their author, convert with torch and transformers: python -c "
        '"import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        "M.from_pretrained(sys.argv[1], torch_dtype='auto').save_pretrained(sys.argv[2]); "
        'T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" '
        f"{source} {target or source.rstrip('/') + '-safetensors'}"
    )
