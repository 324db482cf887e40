"""Compute a model's size in each recipe before the conversion; planning needs it."""

from collections import Counter
from dataclasses import dataclass

from boardfit.converters.formats.base import stored_tensor
from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.header import artifact_bytes
from boardfit.converters.formats.gguf.recipe import AS_IS, FLOAT_TYPES, GgufRecipe, make_as_is
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.memory import pad
from boardfit.device_profiles.cost.model import StoredWeights
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import UsageError
from boardfit.edge.files.ggml_types import row_bytes

# What every tensor's data is padded to unless `general.alignment` overrides it (docs/gguf.md).
_DEFAULT_ALIGNMENT = 32

PERPLEXITY_ADDED: dict[str, float] = load_toml("boardfit.converters.plan", "perplexity.toml")
# The one measured model has 8.03 billion weights. Within a factor of two its figures are shown. On
# a model of 135 million, the same recipes lose about ten times as much.
_MEASURED_PARAMS = 8.03e9
_NEAR = 2.0


@dataclass(frozen=True, eq=False)
class RecipeWeights(StoredWeights):
    """One recipe's exact file size and its tensors, types assigned."""

    recipe: GgufRecipe

    @property
    def perplexity_added(self) -> float:
        """Expected loss of quality; an unmeasured recipe ranks behind all others."""
        return PERPLEXITY_ADDED.get(self.recipe.id, float("inf"))

    @property
    def perplexity_known(self) -> float | None:
        """The same where it was measured near this size, or is nothing by nature; else None."""
        added = PERPLEXITY_ADDED.get(self.recipe.id)
        return added if added == 0.0 or self.is_near_measured else None

    @property
    def is_near_measured(self) -> bool:
        """Whether the model is about as large as the one that the figures come from."""
        return _MEASURED_PARAMS / _NEAR <= self.n_params <= _MEASURED_PARAMS * _NEAR

    @property
    def n_params(self) -> int:
        """All weights of the model."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.artifact_bytes / self.n_params


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
        if recipe.id in self._weighed:
            return self._weighed[recipe.id]
        typed = assign_types(self._spec, recipe, has_imatrix=self._has_imatrix)
        data = sum(pad(entry.nbytes, self._alignment) for entry in typed)
        if self._header_bytes is None:
            plain = assign_types(self._spec, recipe) if self._has_imatrix else typed
            plain_data = sum(pad(entry.nbytes, self._alignment) for entry in plain)
            self._header_bytes = artifact_bytes(self._spec, recipe) - plain_data
        tensors = tuple(stored_tensor(entry.tensor, entry.type, entry.nbytes) for entry in typed)
        weighed = RecipeWeights(self._header_bytes + data, tensors, recipe)
        return self._weighed.setdefault(recipe.id, weighed)


def weigh_as_is(spec: ModelSpec) -> RecipeWeights:
    """A GGUF file as it stands, nothing converted: sizes and types from its header. Raises
    UsageError for another kind of source.
    """
    if spec.source.kind != "gguf":
        raise UsageError(
            f"only a .gguf file can be run as it is, and {spec.name} is a checkpoint",
            next_step="leave out --as-is and --recipe as-is",
        )
    stored = tuple(
        stored_tensor(t, t.source_type, t.n_rows * row_bytes(t.source_type, t.n_per_row))
        for t in spec.tensors
    )
    recipe = make_as_is(find_main_type(spec))
    return RecipeWeights(sum(spec.source.files.values()), stored, recipe)


def find_main_type(spec: ModelSpec) -> str:
    """Find the ggml type that most bytes of the source are stored in."""
    types = Counter[str]()
    for tensor in spec.tensors:
        types[tensor.source_type] += tensor.n_rows * row_bytes(tensor.source_type, tensor.n_per_row)
    return types.most_common(1)[0][0]


def is_quantized_file(spec: ModelSpec) -> bool:
    """Whether the source is a GGUF file whose weights are quantized already."""
    return spec.source.kind == "gguf" and find_main_type(spec) not in FLOAT_TYPES


def describe_requantizing(spec: ModelSpec, recipe: GgufRecipe) -> str:
    """State what is lost by quantizing a quantized file again; empty where no tensor is."""
    n_again = is_quantized_file(spec) and sum(
        entry.type != entry.tensor.source_type and entry.tensor.source_type not in FLOAT_TYPES
        for entry in assign_types(spec, recipe)
    )
    if not n_again:
        return ""
    return (
        f"the file is already quantized, mostly {find_main_type(spec)}: {recipe.id} rounds"
        f" {n_again} of {len(spec.tensors)} tensors a second time, and quality is lost twice;"
        f" --recipe {AS_IS} loses nothing"
    )
