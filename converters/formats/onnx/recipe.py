"""How an ONNX artifact is stored: recipes as named data, `recipes/*.toml`.

bits, block      of most matrices; bits 32 leaves everything in floats
symmetric        zero in the middle, not stored; else a zero point per block
search           look for the scale with the least square error (`onnx_worker.rounding`)
[head]           the output matrix, and the embedding where the two are tied
[embedding]      the embedding where it is a matrix of its own
[[rules]]        match = "*/mlp/down_proj/MatMul": nodes that are stored otherwise
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from boardfit.converters.formats.recipes import RecipeFolder

BLOCKS = (16, 32, 64, 128, 256)
_LEAST_BLOCK = 32  # what is halved no further: smaller ones cost more than padding does
#: MatMulNBits computes with int8 activations (4) or floats (1): docs/ContribOperators.md.
INT8_ACTIVATIONS, FLOAT_ACTIVATIONS = 4, 1
HEAD = "/lm_head/MatMul"


@dataclass(frozen=True)
class OnnxScheme:
    """How one matrix is stored; `bits` 32 means floats."""

    bits: int
    block: int = 32
    symmetric: bool = True
    search: bool = False

    def fitting(self, n_columns: int) -> OnnxScheme:
        """This scheme for rows of `n_columns` weights: see `fitting_block`."""
        return dataclasses.replace(self, block=fitting_block(self.block, n_columns))

    @property
    def bpw(self) -> float:
        """Bits per weight, scales in half precision and zero points included."""
        if self.bits == 32:
            return 32.0
        return self.bits + (16 + (0 if self.symmetric else self.bits)) / self.block


@dataclass(frozen=True)
class OnnxRecipe:
    """One named way to store a model as ONNX. `rules` name nodes by pattern, the first match
    decides.
    """

    id: str
    about: str
    default: OnnxScheme
    head: OnnxScheme
    embedding: OnnxScheme
    rules: tuple[tuple[str, OnnxScheme], ...] = ()

    @property
    def is_quantized(self) -> bool:
        return self.default.bits < 32

    def find_scheme(self, origin: str) -> OnnxScheme:
        """Find how a layer's matrix of that name in the checkpoint is stored.

        The rules use the graph's names, where `model.layers.3.self_attn.q_proj.weight` is
        `/model/layers.3/attn/q_proj/MatMul` (onnxruntime-genai's builder).
        """
        part = origin.removesuffix(".weight").replace(".", "/").replace("self_attn", "attn")
        return self.scheme_of_node("/" + part.replace("layers/", "layers.") + "/MatMul")

    def scheme_of_node(self, node: str) -> OnnxScheme:
        """The scheme of the graph's MatMul `node` (`/model/layers.3/mlp/down_proj/MatMul`)."""
        if node == HEAD:
            return self.head
        matching = (scheme for match, scheme in self.rules if fnmatchcase(node, match))
        return next(matching, self.default)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, as JSON can carry it to the worker."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OnnxRecipe:
        schemes = {key: OnnxScheme(**data[key]) for key in ("default", "head", "embedding")}
        rules = tuple((match, OnnxScheme(**scheme)) for match, scheme in data["rules"])
        return cls(data["id"], data["about"], **schemes, rules=rules)


def fitting_block(block: int, n_columns: int) -> int:
    """`block`, or the largest one below it, down to 32, that divides a row; `block` where none
    does. A last block that is not full is padding, and keeps ONNX Runtime on Arm from its faster
    kernels (`UseKleidiAI` in mlas/lib/qnbitgemm_kernel_neon.cpp).
    """
    fits = (b for b in reversed(BLOCKS) if _LEAST_BLOCK <= b <= block and n_columns % b == 0)
    return next(fits, block)


def make_recipe(data: Mapping[str, Any], recipe_id: str) -> OnnxRecipe:
    """A recipe from the content of its file: what a section leaves out is as in the one above."""
    names = [field.name for field in dataclasses.fields(OnnxScheme)]
    default = OnnxScheme(**{name: data[name] for name in names if name in data})
    head = dataclasses.replace(default, **data.get("head", {}))
    embedding = dataclasses.replace(head, **data.get("embedding", {}))
    rules = tuple(
        (rule["match"], dataclasses.replace(default, **{k: rule[k] for k in rule if k != "match"}))
        for rule in data.get("rules", ())
    )
    return OnnxRecipe(data["id"], data["about"], default, head, embedding, rules)


def _most_bits_first(recipe: OnnxRecipe) -> tuple[float, float]:
    return -recipe.default.bpw, -recipe.head.bpw


RECIPES = RecipeFolder(__file__, "ONNX recipe", make_recipe, _most_bits_first, prefix="onnx_")
load_recipe, list_recipes = RECIPES.load, RECIPES.list
