"""LoRA and DoRA adapters of PEFT, Unsloth and MLX, merged into their base while it streams.

A weight's rows become `W + scaling · left[rows] @ right`, and with DoRA each row gets the length
that the adapter learned (peft: tuners/lora/layer.py and dora.py; mlx-lm: tuner/lora.py and
dora.py). Tensors that an adapter holds whole (`modules_to_save`, biases) take the base's place.
"""

import json
import math
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boardfit.converters.documents import has_file, read_bytes, read_json_object
from boardfit.converters.families.layout import SourceTensor, matrix, to_f32
from boardfit.converters.families.lazy import as_floats, lazy_tensor
from boardfit.converters.source import checkpoint
from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.fields import is_finite, shown
from boardfit.edge.files.safetensors import read_header
from boardfit.edge.units import printable

_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapters.safetensors")
_PART = re.compile(
    r"(?P<module>.+)\.(?P<role>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector|lora_a|lora_b|m)(?:\.(?!weight$|bias$)[\w-]+)?(?P<leaf>\.bias|\.weight)?"
)
_LEFT, _RIGHT, _MAGNITUDE, _BIAS = "left", "right", "magnitude", "bias"
_ROLES = {
    "lora_A": _RIGHT, "lora_B": _LEFT, "lora_embedding_A": _RIGHT, "lora_embedding_B": _LEFT,
    "lora_a": _RIGHT, "lora_b": _LEFT, "lora_magnitude_vector": _MAGNITUDE, "m": _MAGNITUDE,
}  # fmt: skip
# Ways to begin a training that change the base itself, which is not in the adapter.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNREAD = ("layer_replication", "trainable_token_indices", "use_qalora", "use_bdlora",
           "alora_invocation_tokens", "target_parameters")  # fmt: skip
# Endings of names under which the same model is published quantized or converted.
_VARIANTS = re.compile(
    r"(-unsloth)?-bnb-[48]bit$|-[2348]bits?$|-mlx.*$|-(bf16|fp16|fp8|hf|awq|int[48])$|-gptq.*$"
)
_WITH_PEFT = "merge it with peft: merge_and_unload(), then save_pretrained()"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


class Adapter:
    """One adapter's folder, its header checked and its settings read."""

    def __init__(self, request: checkpoint.AdapterRequest) -> None:
        """Raises InputError and its kinds for a folder that holds no adapter that can be merged."""
        self.directory, self._user_scale = request.directory, request.scale
        if not is_finite(request.scale):
            raise InputError(f"--lora-scale is {request.scale}; expected a finite number")
        if not has_file(self.directory / _CONFIG):
            raise InputError(
                f"{self.directory}: no {_CONFIG}, so this is no adapter",
                next_step="give the folder that the training wrote, with adapter_config.json",
            )
        self.config = read_json_object(self.directory / _CONFIG)
        self.is_mlx = "lora_parameters" in self.config or "fine_tune_type" in self.config
        self._kind = self.config.get("fine_tune_type" if self.is_mlx else "peft_type")
        self.file = self._find_file()
        self._header = read_header(self.directory / self.file, below=self.directory)
        self._map: mmap.mmap = checkpoint.map_file(
            self.directory / self.file, self._header.file_size, below=self.directory
        )
        self._check_settings()
        self.base = checkpoint.adapter_base(self.directory)
        # Tensors by their part in the change of a module; a bias is added to the module's.
        self.changes: dict[str, dict[str, str]] = {}
        self.replaced: dict[str, str] = {}
        for name in sorted(self._header.tensors):
            self._sort(name)
        if not self.changes and not self.replaced:
            raise InputError(f"{self.directory / self.file}: the adapter holds no tensors")

    @property
    def of_base(self) -> str:
        return f"; its base model is {self.base}" if self.base else ""

    def misfit(self, fault: str, next_step: str | None = None) -> InputError:
        line = f"edge build {self.base or 'BASE'} --lora {self.directory} …"
        own = f"build it onto its own base: {line}"
        return InputError(
            f"the adapter does not fit: {fault}{self.of_base}", next_step=next_step or own
        )

    def describe(self) -> str:
        """Kind, rank and size, without a path of this machine."""
        changes = self.changes.values()
        kind = "DoRA" if any(_MAGNITUDE in parts for parts in changes) else "LoRA"
        shapes = [self._shape(parts[_RIGHT]) for parts in changes if _RIGHT in parts]
        ranks = sorted({min(shape) for shape in shapes if len(shape) == 2})
        rank = f" of rank {'/'.join(map(str, ranks))}" if ranks else ""
        whole = f", {len(self.replaced)} tensors replaced" if self.replaced else ""
        scale = f", at {self._user_scale:g} of its strength" if self._user_scale != 1 else ""
        return (
            f"{kind}{rank} in {printable(self.directory.absolute().name, 60)}, "
            f"{len(self.changes)} weights changed{whole}{scale}" + self.of_base
        )

    def read(self, name: str) -> SourceTensor:
        return checkpoint.view_tensor(self._map, self._header, name, self.file, checkpoint.DTYPES)

    def floats(self, name: str) -> np.ndarray:
        source = self.read(name)
        return to_f32(source.data, source.dtype)

    def update_fingerprint(self, digest: checkpoint.Digest) -> None:
        """Feed settings, strength, header and samples of the data."""
        stated = json.dumps([self.config, self._user_scale], sort_keys=True)
        digest.update(f"lora\0{stated}\0".encode())
        checkpoint.update_with_file(digest, self.file, self._map, self._header.data_offset)

    def files(self) -> dict[str, int]:
        return {f"lora/{self.file}": self._header.file_size}

    def scaling(self, module: str, rank: int) -> float:
        """What the product of the two matrices is multiplied by."""
        if self.is_mlx:
            stated = self.config.get("lora_parameters")
            stated = stated if isinstance(stated, Mapping) else {}
            scale = self._number(stated, "scale", 1.0 if "alpha" in stated else None)
            factor = self._number(stated, "alpha", float(rank)) / rank
            return scale * factor * self._user_scale
        stated_rank = self._number(self.config, "r", float(rank), "rank_pattern", module)
        if stated_rank != rank:
            raise InputError(
                f"{_CONFIG}: r is {stated_rank:g} for {printable(module)}, but its tensors have "
                f"rank {rank}",
                next_step="use the adapter_config.json that belongs to these weights",
            )
        alpha = self._number(self.config, "lora_alpha", 8.0, "alpha_pattern", module)
        root = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return alpha / root * self._user_scale

    def _number(
        self,
        settings: Mapping[str, Any],
        key: str,
        default: float | None,
        pattern: str = "",
        module: str = "",
    ) -> float:
        """A positive number of the settings; a pattern's entry for the module goes first."""
        value = settings.get(key, default)
        entries = settings.get(pattern)
        for name, own in (entries if isinstance(entries, Mapping) else {}).items():
            name = name.removeprefix("^").removesuffix("$")
            if not re.fullmatch(r"[\w.]+", name):
                raise UnsupportedModelError(
                    f"{_CONFIG}: {pattern} has the pattern {shown(name)}; expected "
                    "names of modules",
                    next_step="write the modules' names out",
                )
            if module == name or module.endswith(f".{name}"):
                value = own
                break
        if not is_finite(value) or value <= 0:
            raise InputError(
                f"{_CONFIG}: {key} is {shown(value)}; expected a number above 0",
                next_step="use the adapter_config.json that belongs to these weights",
            )
        return float(value)

    def _find_file(self) -> str:
        if found := next((name for name in _FILES if has_file(self.directory / name)), None):
            return found
        if has_file(self.directory / "adapter_model.bin"):
            raise UnsafeInputError(
                f"{self.directory}: the adapter is a Python pickle (adapter_model.bin), which can "
                "run code when it is opened; boardfit never opens it",
                next_step="if you trust its author, save it again with peft: "
                "save_pretrained(DIR, safe_serialization=True)",
            )
        raise InputError(
            f"{self.directory}: the adapter's weights are missing; expected {' or '.join(_FILES)}",
            next_step="download or copy the folder again",
        )

    def _check_settings(self) -> None:
        """Refuse kinds of adapters whose product is not simply added to the base."""
        known = ("lora", "dora", "full") if self.is_mlx else ("LORA",)
        if self._kind not in (None, *known):
            raise UnsupportedModelError(
                f"{_CONFIG}: the adapter is of type {shown(self._kind)}; expected "
                f"{' or '.join(known)}",
                next_step="merge it with the tool that trained it, then build the merged folder",
            )
        start = str(self.config.get("init_lora_weights")).lower()
        faults = [f"init_lora_weights {start}"] if start.startswith(_CHANGE_THE_BASE) else []
        faults += [key for key in _UNREAD if self.config.get(key)]
        if faults:
            raise UnsupportedModelError(
                f"{_CONFIG}: {printable(faults[0], 60)} is not merged here; expected plain LoRA or "
                "DoRA",
                next_step=_WITH_PEFT,
            )

    def _sort(self, name: str) -> None:
        """Note what one tensor is for."""
        plain = name.removeprefix("base_model.model.")
        match = _PART.fullmatch(plain)
        if match is None:
            plain = re.sub(r"\.modules_to_save(\.(?!weight$|bias$)[\w-]+)?|\.base_layer", "", plain)
            if "lora_" in plain or "trainable_tokens" in plain:
                raise self._unknown(name)
            if ".original_module." not in plain:
                self.replaced[plain] = name
            return
        role = _ROLES[match["role"]]
        if match["leaf"] == ".bias":
            role = _BIAS
            if match["role"] != "lora_B":
                raise self._unknown(name)
        self.changes.setdefault(match["module"], {})[role] = name

    def _unknown(self, name: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.file}: tensor {printable(name)} is of a kind that is not merged here",
            next_step=_WITH_PEFT,
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._header.tensors[name].shape

    def factors(self, module: str, base: SourceTensor) -> tuple[np.ndarray, np.ndarray]:
        """Two matrices, as stored, whose product has the base's shape. Raises InputError where no
        order of the two fits.
        """
        parts = self.changes[module]
        if not {_LEFT, _RIGHT} <= parts.keys():
            raise InputError(
                f"{self.file}: {printable(module)} has {', '.join(map(printable, parts.values()))} "
                "only; expected both matrices of the product",
                next_step="download or copy the adapter again",
            )
        left, right = self.read(parts[_LEFT]).data, self.read(parts[_RIGHT]).data
        # PEFT stores [out, r] and [r, in], MLX [r, out] and [in, r]. Both turn an embedding round,
        # and PEFT what it calls `fan_in_fan_out`.
        if self.is_mlx:
            left, right = left.T, right.T
        if module.endswith("embed_tokens") or self.config.get("fan_in_fan_out"):
            left, right = right.T, left.T
        is_product = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
        if is_product and (left.shape[0], right.shape[1]) == base.shape:
            return left, right
        raise self.misfit(
            f"{printable(parts[_LEFT])} and {printable(parts[_RIGHT])} have shapes "
            f"{list(self._shape(parts[_LEFT]))} and {list(self._shape(parts[_RIGHT]))}, but "
            f"{printable(base.name)} has {list(base.shape)}"
        )

    def merge(self, module: str, base: SourceTensor) -> SourceTensor:
        """The base's weight with the change, computed as its rows are read."""
        (left, right), parts = self.factors(module, base), self.changes[module]
        types = {self.read(parts[key]).dtype for key in (_LEFT, _RIGHT)}
        dtype, rows_of_base = types.pop(), matrix(base)
        scaling = np.float32(self.scaling(module, left.shape[1]))
        part = parts.get(_MAGNITUDE)
        if part is None and (self.config.get("use_dora") or self._kind == "dora"):
            raise InputError(
                f"{self.file}: {printable(module)} has no magnitude, but {_CONFIG} states DoRA; "
                "expected one value per row",
                next_step="download or copy the adapter again",
            )
        magnitude = None if part is None else self.floats(part).reshape(-1)
        is_turned = self.config.get("fan_in_fan_out")
        if types or (magnitude is not None and (len(magnitude) != len(left) or is_turned)):
            raise UnsupportedModelError(
                f"{self.file}: {printable(module)} has matrices of two types, or a magnitude that "
                f"is not one per row of {printable(base.name)}",
                next_step=_WITH_PEFT,
            )

        def compute(rows: np.ndarray) -> Any:
            change = to_f32(left[rows], dtype) @ to_f32(right, dtype)
            merged = to_f32(rows_of_base[rows], base.dtype) + change * scaling
            if magnitude is None:
                return merged
            lengths = np.linalg.norm(merged, axis=1, keepdims=True)
            return merged * (magnitude[rows, None] / lengths)

        return lazy_tensor(base.name, base.shape, compute)

    def add_bias(self, module: str, base: SourceTensor) -> SourceTensor:
        """The base's bias with the change (`lora_bias`)."""
        parts = self.changes[module]
        rank = min(self._shape(parts[_RIGHT])) if _RIGHT in parts else 1
        added = self.floats(parts[_BIAS]) * np.float32(self.scaling(module, rank))
        values = to_f32(base.data, base.dtype) + added
        return SourceTensor(base.name, "F32", base.shape, values)


class MergedCheckpoint(checkpoint.SafetensorsCheckpoint):
    """A checkpoint with an adapter in it. `names` and `tensor` give what the merged model has."""

    def __init__(
        self, directory: Path, config: Mapping[str, Any], adapter: Adapter, known_as: Iterable[str]
    ) -> None:
        """Raises InputError where the adapter is for another base: by a tensor that does not fit,
        or by the name, where `known_as` has names of this one.
        """
        super().__init__(directory, config)
        self.adapter = adapter
        self._base_names = dict.fromkeys(super().names())
        plain = {_plain(name): name for name in self._base_names}
        self._embedding = next((n for n in self._base_names if n.endswith(_EMBEDDING)), None)
        changes = adapter.changes.items()
        self._modules = {
            self._find(f"{m}.weight", plain): m for m, parts in changes if parts.keys() - {_BIAS}
        }
        self._biases = {self._find(f"{m}.bias", plain): m for m, parts in changes if _BIAS in parts}
        self._replaced = {self._find(n, plain): stored for n, stored in adapter.replaced.items()}
        self._check_shapes()
        notes = [f"an adapter is merged: {adapter.describe()}"]
        notes += _check_base_name(adapter, [*known_as], directory)
        own, base = (f / "chat_template.jinja" for f in (adapter.directory, directory))
        if has_file(own) and not (has_file(base) and read_bytes(own) == read_bytes(base)):
            notes.append("the chat template in the adapter's folder is not used")
        if self.is_untied:
            notes.append(
                "the adapter changes embedding and head differently, so that they are stored apart"
            )
        self.notes = (*self.notes, *notes)

    @property
    def is_untied(self) -> bool:
        """Whether the base has one matrix for embedding and head, and the adapter makes it two."""
        changed = {*self._modules, *self._replaced}
        if _HEAD in self._base_names or self._embedding is None:
            return False
        if self.adapter.config.get("ensure_weight_tying") and _HEAD not in changed:
            return False
        return _HEAD in changed or self._embedding in changed

    def names(self) -> list[str]:
        return [*self._base_names, *([_HEAD] if self.is_untied else [])]

    def tensor(self, name: str) -> SourceTensor:
        if name in self._biases:
            return self.adapter.add_bias(self._biases[name], super().tensor(name))
        stored = self._replaced.get(name)
        base = self._base(name) if stored is None else self.adapter.read(stored)
        return self.adapter.merge(self._modules[name], base) if name in self._modules else base

    def files(self) -> dict[str, int]:
        return {**super().files(), **self.adapter.files()}

    def update_fingerprint(self, digest: checkpoint.Digest) -> None:
        super().update_fingerprint(digest)
        self.adapter.update_fingerprint(digest)

    def check_head(self, has_head: bool) -> None:
        """Raise UnsupportedModelError where the family has no place for a head of its own."""
        if not self.is_untied or has_head or self._embedding is None:
            return
        head, embedding = (
            matrix(as_floats(self.tensor(name))) for name in (_HEAD, self._embedding)
        )
        for start in range(0, len(head), 256):
            if not np.array_equal(head[start : start + 256], embedding[start : start + 256]):
                raise UnsupportedModelError(
                    "the adapter changes embedding and head differently, but this family has one "
                    f"matrix for both{self.adapter.of_base}",
                    next_step="train an adapter without embed_tokens and lm_head",
                )

    def _base(self, name: str) -> SourceTensor:
        is_tied_head = name == _HEAD and _HEAD not in self._base_names
        return super().tensor(self._embedding if is_tied_head and self._embedding else name)

    def _find(self, name: str, plain: Mapping[str, str]) -> str:
        """The base's name of a tensor. Raises InputError where the base has none."""
        if name in self._base_names:
            return name
        found = plain.get(_plain(name))
        if found is None and _plain(name) == _HEAD and self._embedding is not None:
            return _HEAD
        if found is None:
            raise self.adapter.misfit(f"the base has no tensor {printable(name)}")
        return found

    def _check_shapes(self) -> None:
        for name, module in self._modules.items():
            self.adapter.merge(module, self._base(name))
        biases = [(name, self.adapter.changes[m][_BIAS]) for name, m in self._biases.items()]
        for name, stored in [*self._replaced.items(), *biases]:
            got, base = self.adapter.read(stored), self._base(name)
            if got.shape != base.shape:
                raise self.adapter.misfit(
                    f"{printable(got.name)} has shape {list(got.shape)}, but {printable(name)} has "
                    f"{list(base.shape)}",
                    f"build it onto its own base; if the training added tokens, {_WITH_PEFT}",
                )


def _plain(name: str) -> str:
    """A tensor's name without what transformers' versions put in front of a language model."""
    name = name.replace("language_model.", "")
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name


def _check_base_name(adapter: Adapter, known_as: list[str], directory: Path) -> list[str]:
    """A note where the base's name cannot be compared with the one that the adapter states. Raises
    InputError where both are names on a hub and differ.
    """
    stated = adapter.base
    if stated is None or _same_model(stated, [*known_as, directory.absolute().name]):
        return []
    if known_as and HUB_NAME.fullmatch(stated):
        raise InputError(
            f"the adapter is for another base: {_CONFIG} names {stated}, the base is "
            f"{printable(known_as[0], 80)}",
            next_step=f"edge build {stated} --lora {adapter.directory} …; if it is the same model "
            f"under another name, change base_model_name_or_path in {_CONFIG}",
        )
    return [f"the adapter names {stated} as its base; its tensors fit this one"]


def _same_model(stated: str, names: Iterable[str]) -> bool:
    def reduced(name: str) -> str:
        return _VARIANTS.sub("", name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-"))

    return reduced(stated) in {reduced(name) for name in names}
