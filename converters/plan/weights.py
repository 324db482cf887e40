"""Compute a model's size in each recipe before the conversion; planning needs it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from boardfit.converters.formats.base import stored_tensor
from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.recipe import GgufRecipe
from boardfit.converters.formats.gguf.size import artifact_bytes
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.memory import pad
from boardfit.device_profiles.cost.model import StoredWeights
from boardfit.edge.errors import UsageError
from boardfit.edge.files.ggml_types import row_bytes

# What every tensor's data is padded to unless `general.alignment` overrides it (docs/gguf.md).
_DEFAULT_ALIGNMENT = 32

#: Stands for a recipe where a GGUF file is run as it stands.
AS_IS = "as-is"

# Perplexity added to Llama-3-8B's by each recipe, lower is better: the order in which quality is
# preferred. Source: the table in tools/quantize/quantize.cpp of llama.cpp. It has no figure for the
# two IQ4 recipes; theirs are placed by the pull requests that brought them (#5590, #5747), which
# put them beside Q4_K_S at slightly fewer bits.
PERPLEXITY_ADDED: dict[str, float] = {
    "f16": 0.0,
    "bf16": 0.0,
    "q8_0": 0.0026,
    "q6_k": 0.0217,
    "q5_k_m": 0.0569,
    "q4_k_m": 0.1754,
    "q4_k_s": 0.2689,
    "iq4_nl": 0.27,
    "iq4_xs": 0.28,
    "q4_1": 0.4511,
    "q4_0": 0.4685,
    "q3_k_m": 0.6569,
}


@dataclass(frozen=True, eq=False)
class RecipeWeights(StoredWeights):
    """One recipe's exact file size and its tensors, types assigned."""

    recipe: GgufRecipe

    @property
    def perplexity_added(self) -> float:
        """Expected loss of quality; an unmeasured recipe ranks behind all others."""
        return PERPLEXITY_ADDED.get(self.recipe.id, float("inf"))

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.artifact_bytes / sum(tensor.n_elements for tensor in self.tensors)


class WeighingScale:
    """Weighs one model in several recipes. Header and tensor table are equally long in all of them,
    so that they are laid out once. Exact but for the few metadata lines that name an importance
    matrix, which is not there yet when a build is planned.
    """

    def __init__(self, spec: ModelSpec, *, has_imatrix: bool = False) -> None:
        self._spec = spec
        self._has_imatrix = has_imatrix
        self._alignment = int(spec.get("general.alignment", _DEFAULT_ALIGNMENT))
        self._header_bytes: int | None = None
        self._weighed: dict[str, RecipeWeights] = {}

    def weigh(self, recipe: GgufRecipe) -> RecipeWeights:
        """Exact bytes. Raises UnsupportedModelError for tensors that no recipe can hold."""
        if recipe.id not in self._weighed:
            self._weighed[recipe.id] = self._weigh(recipe)
        return self._weighed[recipe.id]

    def _weigh(self, recipe: GgufRecipe) -> RecipeWeights:
        typed = assign_types(self._spec, recipe, has_imatrix=self._has_imatrix)
        data = sum(pad(entry.nbytes, self._alignment) for entry in typed)
        if self._header_bytes is None:
            plain = assign_types(self._spec, recipe) if self._has_imatrix else typed
            plain_data = sum(pad(entry.nbytes, self._alignment) for entry in plain)
            self._header_bytes = artifact_bytes(self._spec, recipe) - plain_data
        tensors = tuple(stored_tensor(entry.tensor, entry.type, entry.nbytes) for entry in typed)
        return RecipeWeights(self._header_bytes + data, tensors, recipe)


def weigh_as_is(spec: ModelSpec) -> RecipeWeights:
    """A GGUF file as it stands, nothing converted: sizes and types from its header.

    Raises UsageError for another kind of source.
    """
    if spec.source.kind != "gguf":
        raise UsageError("only a .gguf file can be run as it is", next_step="leave out --as-is")
    stored = []
    types = Counter[str]()
    for tensor in spec.tensors:
        n_bytes = tensor.n_rows * row_bytes(tensor.source_type, tensor.n_per_row)
        types[tensor.source_type] += n_bytes
        stored.append(stored_tensor(tensor, tensor.source_type, n_bytes))
    main = types.most_common(1)[0][0]
    recipe = GgufRecipe(
        AS_IS, f"as it is, mostly {main}", -1, main, "the file as it stands", output=main
    )
    return RecipeWeights(sum(spec.source.files.values()), tuple(stored), recipe)
