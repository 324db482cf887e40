"""Which type each tensor of a model gets under a recipe: upstream's rules, tensor by tensor.

Source of every rule here and in the TOML files: `src/llama-quant.cpp` of llama.cpp, functions
`tensor_allows_quantization`, `llama_tensor_get_type_impl` and `tensor_type_fallback`, and the order
of tensors (`weight_name_comparer`) in `src/llama-model-loader.h`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from boardfit.converters.formats.gguf.recipe import AS_IS, GgufRecipe, GgufRule
from boardfit.converters.spec import ModelSpec, TargetTensor
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.files.ggml_types import GGML_TYPES, row_bytes

_TABLE = load_toml("boardfit.converters.formats.gguf", "assign.toml")
_TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class TypedTensor:
    """A tensor, the ggml type it is stored in, and its bytes without padding."""

    tensor: TargetTensor
    type: str
    nbytes: int


@dataclass(frozen=True)
class ModelFacts:
    """The numbers that rules ask for, from the metadata as upstream's loader reads them."""

    arch: str
    n_layer: int
    n_expert: int
    gqa: int
    is_70b: bool

    @classmethod
    def of(cls, spec: ModelSpec) -> ModelFacts:
        values = {kv.key: kv.value for kv in spec.metadata}

        def first(key: str, default: int) -> int:
            value = values.get(f"{spec.arch}.{key}", default)
            return int(value if isinstance(value, (int, float)) else value[0])

        n_layer = first("block_count", spec.shape.n_layer)
        n_head = first("attention.head_count", 0)
        n_head_kv = first("attention.head_count_kv", n_head)
        gqa = n_head // n_head_kv if n_head_kv else 0
        is_70b = _TABLE["layers_of_70b"].get(spec.arch) == n_layer
        return cls(
            arch=spec.arch,
            n_layer=n_layer,
            n_expert=first("expert_count", 0),
            gqa=gqa,
            is_70b=is_70b and (spec.arch != "llama" or n_head != n_head_kv),
        )


def assign_types(
    spec: ModelSpec, recipe: GgufRecipe, *, has_imatrix: bool = False
) -> tuple[TypedTensor, ...]:
    """Type and bytes of every tensor, in the order they lie in the file, which is upstream's.

    Raises UnsupportedModelError for tensors that upstream refuses too (an expert's FFN matrix
    outside a block).
    """
    if recipe.id == AS_IS:
        return tuple(_typed(t, t.source_type) for t in file_order(spec, recipe))
    if not recipe.is_quantized:
        return tuple(_typed(t, _float_type(spec, recipe, t)) for t in file_order(spec, recipe))
    chooser = _Chooser(spec, recipe, has_imatrix)
    return tuple(_typed(t, chooser.choose(t)) for t in file_order(spec, recipe))


def as_converter(spec: ModelSpec, recipe: GgufRecipe) -> bool:
    """Whether upstream would make this file with its converter alone, without `llama-quantize`."""
    return not recipe.is_quantized and spec.source.kind != "gguf"


def file_order(spec: ModelSpec, recipe: GgufRecipe) -> Sequence[TargetTensor]:
    """The model's tensors in the order in which this recipe's file holds them."""
    if as_converter(spec, recipe):
        return spec.tensors
    return sorted(spec.tensors, key=_sort_key)


def _sort_key(tensor: TargetTensor) -> tuple[int, bytes]:
    match = _BLOCK.match(tensor.name)
    return (int(match[1]) if match else -1, tensor.name.encode())


def allows_quantization(tensor: TargetTensor, arch: str) -> bool:
    """Whether `llama-quantize` would change this tensor's type at all."""
    name = tensor.name
    # ggml counts dimensions without trailing ones, so a matrix of one row is a vector
    if tensor.n_rows == 1 or not name.endswith("weight") or name in _TABLE["never_quantized_names"]:
        return False
    parts = _TABLE["never_quantized"] + _TABLE["never_quantized_in"].get(arch, [])
    return not any(part in name for part in parts)


def layers_hold(layers: str, i_layer: int, n_layer: int) -> bool:
    """Whether a rule for `layers` holds for layer `i_layer` of `n_layer`.

    `more-bits` is upstream's `use_more_bits`: the first and last eighth and every third between.
    """
    eighth = n_layer // 8
    if layers == "all":
        return True
    if layers == "more-bits":
        return i_layer < eighth or i_layer >= 7 * n_layer // 8 or (i_layer - eighth) % 3 == 2
    if layers == "first-eighth":
        return i_layer < eighth
    if layers == "first-sixteenth":
        return i_layer < n_layer // 16
    return i_layer < int(layers.removeprefix("first-"))


class _Chooser:
    """Walks over the tensors in file order, counting as upstream counts."""

    def __init__(self, spec: ModelSpec, recipe: GgufRecipe, has_imatrix: bool) -> None:
        self.recipe, self.has_imatrix = recipe, has_imatrix
        self.facts = ModelFacts.of(spec)
        self.is_tied = all(t.name != "output.weight" for t in spec.tensors)
        self.n_attn_v = sum(_group(t.name) == "attn_v" for t in spec.tensors)
        self.seen: Counter[str] = Counter()

    def choose(self, tensor: TargetTensor) -> str:
        if tensor.keep is not None:
            return tensor.keep
        if not allows_quantization(tensor, self.facts.arch):
            return tensor.source_type
        return _fallback(self._requested_type(tensor), tensor.n_per_row)

    def _requested_type(self, tensor: TargetTensor) -> str:
        name, recipe, facts = tensor.name, self.recipe, self.facts
        if any(part in name for part in _TABLE["at_least_q8_0_in"].get(facts.arch, ())):
            return "Q8_0"
        if name == "output.weight" or (self.is_tied and name in _TOKEN_EMBEDDINGS):
            divides = tensor.n_per_row % GGML_TYPES[recipe.type].block_size == 0
            assert recipe.output is not None  # checked when the recipe was read
            return recipe.output if divides and facts.arch != "falcon" else "Q8_0"
        if name in _TOKEN_EMBEDDINGS:
            return recipe.type
        group = _group(name)
        if group == "attn_k" and facts.n_expert == 8:
            return "Q8_0"
        i_layer, n_layer = self._layer(group, name)
        chosen = next(
            (
                rule.type
                for rule in recipe.rules
                if rule.tensors == group and self._holds(rule, i_layer, n_layer)
            ),
            recipe.type,
        )
        if group == "attn_v":
            if facts.n_expert == 8:  # few bytes, much quality
                return "Q8_0"
            if facts.is_70b and chosen in ("Q3_K", "Q4_K"):
                return "Q5_K"
        return chosen

    def _layer(self, group: str, name: str) -> tuple[int, int]:
        """Position of a tensor among its like: counted, but for experts read from the name."""
        index = self.seen[group]
        self.seen[group] += 1
        if group == "attn_v":
            return index, self.n_attn_v
        if group.startswith("ffn_") and self.facts.n_expert > 1:
            match = _BLOCK.match(name)
            if match is None or int(match[1]) >= self.facts.n_layer:
                raise UnsupportedModelError(
                    f"tensor {name!r} of a mixture of experts lies in none of the model's "
                    f"{self.facts.n_layer} blocks; llama-quantize refuses it too"
                )
            index = int(match[1])
        return index, self.facts.n_layer

    def _holds(self, rule: GgufRule, i_layer: int, n_layer: int) -> bool:
        facts = self.facts
        if rule.arch is not None:
            wanted = rule.arch.removeprefix("not ")
            if (facts.arch == wanted) is rule.arch.startswith("not "):
                return False
        return (
            facts.gqa >= rule.min_gqa
            and (rule.experts is None or facts.n_expert == rule.experts)
            and (rule.imatrix is None or self.has_imatrix is rule.imatrix)
            and layers_hold(rule.layers, i_layer, n_layer)
        )


def _group(name: str) -> str:
    if name == "output.weight" or name in _TOKEN_EMBEDDINGS:
        return ""
    return next((group for part, group in _TABLE["groups"] if part in name), "")


def _float_type(spec: ModelSpec, recipe: GgufRecipe, tensor: TargetTensor) -> str:
    """Upstream's converter stores all but its keep-list in the float type; `llama-quantize` leaves
    alone what it never quantizes.
    """
    if tensor.keep is not None:
        return tensor.keep
    if not as_converter(spec, recipe) and not allows_quantization(tensor, spec.arch):
        return tensor.source_type
    return recipe.type


def _fallback(wanted: str, n_per_row: int) -> str:
    if n_per_row % GGML_TYPES[wanted].block_size == 0:
        return wanted
    second = _TABLE["fallback"].get(wanted, wanted)
    return second if n_per_row % GGML_TYPES[second].block_size == 0 else "F16"


def _typed(tensor: TargetTensor, type_name: str) -> TypedTensor:
    return TypedTensor(tensor, type_name, tensor.n_rows * row_bytes(type_name, tensor.n_per_row))
