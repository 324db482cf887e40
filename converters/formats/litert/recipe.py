"""LiteRT recipes: named data in `recipes/*.toml`; also read by the worker.

name = "int4, blocks of 32"
flavours = ["litertlm"]        # litertlm, tflite
linear = "int4-b32"            # matrices of the layers; weight types are in types.py
embedding = "int8"
head = "int8"                  # the output matrix; one copy serves both where tied and equal
scales = "mse"                 # minmax, mse
gptq = true                    # round by calibration text
[[rules]]                      # exceptions, the first that holds decides
tensors = "ffn_down"
layers = "first-1"             # all, first-N, last-N
type = "int8"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from boardfit.converters.formats.recipes import RecipeFolder


@dataclass(frozen=True)
class WeightType:
    """How the values of a matrix are stored: as integers with one scale per row (`block_size` 0),
    per block of a row (bfloat16), or for the whole matrix, which is what tflite-runtime 2.14 can
    look embeddings up in.
    """

    name: str
    bits: int
    block_size: int = 0
    per_tensor: bool = False

    @property
    def q_min(self) -> int:
        """All 16 values of 4 bits: XNNPACK's kernels take -8, and without it the sample model
        diverges by 0.130 instead of 0.105 (litert_int4_b32_best). 8 bits are symmetric.
        """
        return -8 if self.bits == 4 else -127

    @property
    def q_max(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def data_bytes(self, n_elements: int) -> int:
        return (n_elements * self.bits + 7) // 8

    def total_bytes(self, rows: int, n_per_row: int) -> int:
        """Bytes in the file: values and scales. A row's scale is a float with an int64 zero point
        beside it; a block's is 2 bytes.
        """
        data = self.data_bytes(rows * n_per_row)
        if self.bits == 32:
            return data
        if self.block_size:
            return data + 2 * rows * (n_per_row // self.block_size)
        return data + 12 * (1 if self.per_tensor else rows)


WEIGHT_TYPES = {
    t.name: t
    for t in (
        WeightType("int8", 8),
        WeightType("int8-t", 8, per_tensor=True),
        WeightType("int4", 4),
        WeightType("int4-b32", 4, 32),
        WeightType("int4-b64", 4, 64),
        WeightType("int4-b128", 4, 128),
        WeightType("f32", 32),
    )
}


# Names of matrices in checkpoints → the group that rules speak of (ggml's names for them).
GROUPS = {
    "attn_q": r"q_proj", "attn_k": r"k_proj", "attn_v": r"v_proj", "attn_qkv": r"qkv_proj",
    "attn_output": r"(self_attn|attn)\.(o_proj|out_proj)", "ffn_gate": r"gate_proj|w1",
    "ffn_up": r"up_proj|w3", "ffn_gate_up": r"gate_up_proj", "ffn_down": r"down_proj|w2",
    "shortconv_in": r"conv\.in_proj", "shortconv_out": r"conv\.out_proj",
}  # fmt: skip
_GROUP_PATTERNS = {
    group: re.compile(rf"(^|\.)({pattern})\.weight$") for group, pattern in GROUPS.items()
}
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
LAYERS = re.compile(r"all|(first|last)-([1-9]\d*)")


@dataclass(frozen=True)
class LitertRule:
    """Matrices of one group get `type` instead of the recipe's, in the layers named."""

    tensors: str
    type: str
    layers: str = "all"

    def applies_to(self, source: str, n_layers: int) -> bool:
        if find_group(source) != self.tensors:
            return False
        if self.layers == "all":
            return True
        layer, match = find_layer(source), LAYERS.fullmatch(self.layers)
        if layer is None or match is None:
            return False
        return layer < int(match[2]) if match[1] == "first" else layer >= n_layers - int(match[2])


@dataclass(frozen=True)
class LitertRecipe:
    """One named way to store a model for LiteRT.

    tflite-runtime 2.14 computes `int4` and `int8-t` matrices, and `int8-t` embeddings (tried). With
    int8 per row, a FULLY_CONNECTED or an EMBEDDING_LOOKUP runs and silently gives zeros. Blocks and
    int4 lookups are refused at load.
    """

    id: str
    name: str
    flavours: tuple[str, ...]
    linear: str
    embedding: str
    head: str
    scales: str = "mse"
    gptq: bool = False
    rules: tuple[LitertRule, ...] = field(default=())

    def choose_type(
        self, source: str, role: str, *, tied: bool, n_layers: int, n_per_row: int
    ) -> str:
        """The weight type of one matrix. `role` is `embedding` or `linear`; `tied` means that the
        embedding is the output matrix too. Blocks that do not divide a row give way to smaller
        ones, then to one scale per row.
        """
        if role == "embedding":
            wanted = self.embedding
        elif tied or source.endswith("lm_head.weight"):
            wanted = self.head
        else:
            held = (r.type for r in self.rules if r.applies_to(source, n_layers))
            wanted = next(held, self.linear)
        return fitting(wanted, n_per_row)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LitertRecipe:
        rules = tuple(LitertRule(**rule) for rule in data.get("rules", ()))
        return cls(**{**data, "flavours": tuple(data["flavours"]), "rules": rules})


def fitting(wanted: str, n_per_row: int) -> str:
    """`wanted`, or the nearest type whose blocks divide rows of `n_per_row` values."""
    kind = WEIGHT_TYPES[wanted]
    if kind.bits == 4 and n_per_row % 2:
        return "int8"
    if not kind.block_size or n_per_row % kind.block_size == 0:
        return wanted
    for block in (64, 32):
        if block < kind.block_size and n_per_row % block == 0:
            return f"int4-b{block}"
    return "int8"


def find_group(source: str) -> str | None:
    """`model.layers.3.mlp.down_proj.weight` → `ffn_down`; None for what rules do not name."""
    for group, pattern in _GROUP_PATTERNS.items():
        if pattern.search(source):
            return group
    return None


def find_layer(source: str) -> int | None:
    match = _LAYER.search(source)
    return int(match[1]) if match else None


def _parse(data: dict[str, Any], recipe_id: str) -> LitertRecipe:
    return LitertRecipe.from_dict({**data, "id": recipe_id})


RECIPES = RecipeFolder(__file__, "LiteRT recipe", _parse, lambda recipe: recipe.id)
load_recipe, list_recipes = RECIPES.load, RECIPES.list


def recipes_for(flavour: str) -> tuple[str, ...]:
    return tuple(r.id for r in list_recipes() if flavour in r.flavours)
