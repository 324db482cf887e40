"""The types and bits of each tensor under a named quantization.

For models of which only the shape is known (`boardfit.device_profiles.models`). Where the recipes
of this kit write the file, the planner weighs the real tensors. Source of the ggml mixtures:
src/llama-quant.cpp (llama_tensor_get_type_impl, llama_tensor_get_type); of the block sizes:
ggml/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from boardfit.device_profiles.cost.memory import StoredTensor
from boardfit.device_profiles.models import KnownModel, Matrix

# Bits per weight. I4 and I8 stand for other engines' integer formats with their scales: 4 bits in
# groups of 32 to 128 with 16-bit scales are 4.1 to 4.5, 8 bits per channel hardly more than 8.
BITS: Mapping[str, float] = {
    **{"F32": 32, "F16": 16, "BF16": 16, "I8": 8.05, "I4": 4.25, "I2": 2.3},
    **{"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "IQ4_NL": 4.5, "MXFP4": 4.25},
    **{"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_XS": 4.25},
    **{"IQ3_S": 3.4375, "IQ3_XXS": 3.0625, "IQ2_S": 2.5625, "IQ2_XS": 2.3125, "IQ2_XXS": 2.0625},
    # Ternary: two of ggml, and bitnet.cpp's (2 bits, one scale for a matrix).
    **{"TQ1_0": 1.6875, "TQ2_0": 2.0625, "I2_S": 2.0},
}

# A row that 256 does not divide is stored in blocks of 32 instead.
_BLOCKS_OF_256 = {
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
    **dict.fromkeys(
        ("Q2_K", "Q3_K", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"), "IQ4_NL"
    ),
}

_Shares = tuple[tuple[str, float], ...]  # (type, share of the layers that have it)


def _halves(more: str, rest: str) -> _Shares:
    """Half of the layers, the first, the last and every third between, get more bits."""
    return ((more, 0.5), (rest, 0.5))


# Quantization → the type of most matrices, and of the roles that differ ("head" is the output
# matrix, or the embedding that serves as one).
_MIXES: Mapping[str, tuple[str, Mapping[str, _Shares]]] = {
    "Q2_K": (
        "Q2_K",
        {"v": (("Q4_K", 1),), "o": (("Q3_K", 1),), "down": (("Q3_K", 1),), "head": (("Q6_K", 1),)},
    ),
    "Q3_K_S": ("Q3_K", {"head": (("Q6_K", 1),)}),
    "Q3_K_M": (
        "Q3_K",
        {"v": (("Q4_K", 1),), "o": (("Q4_K", 1),), "down": (("Q4_K", 1),), "head": (("Q6_K", 1),)},
    ),
    "Q3_K_L": (
        "Q3_K",
        {"v": (("Q5_K", 1),), "o": (("Q5_K", 1),), "down": (("Q5_K", 1),), "head": (("Q6_K", 1),)},
    ),
    "Q4_K_S": ("Q4_K", {"down": (("Q5_K", 0.125), ("Q4_K", 0.875)), "head": (("Q6_K", 1),)}),
    "Q4_K_M": (
        "Q4_K",
        {"v": _halves("Q6_K", "Q4_K"), "down": _halves("Q6_K", "Q4_K"), "head": (("Q6_K", 1),)},
    ),
    "Q5_K_S": ("Q5_K", {"head": (("Q6_K", 1),)}),
    "Q5_K_M": (
        "Q5_K",
        {"v": _halves("Q6_K", "Q5_K"), "down": _halves("Q6_K", "Q5_K"), "head": (("Q6_K", 1),)},
    ),
    "IQ3_M": ("IQ3_S", {"v": (("Q4_K", 1),), "down": (("Q4_K", 1),), "head": (("Q6_K", 1),)}),
    **{
        name: (name, {"head": (("Q6_K", 1),)})
        for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS")
    },
    **{
        name: (name, {"v": (("Q4_K", 1),), "down": (("Q3_K", 1),), "head": (("Q6_K", 1),)})
        for name in ("IQ2_S", "IQ2_XS", "IQ2_XXS")
    },
    # Experts only; the rest stays at 8 bits (ggml-org's gpt-oss files).
    "MXFP4": ("MXFP4", {role: (("Q8_0", 1),) for role in ("q", "k", "v", "o", "head")}),
    **{name: (name, {"head": (("Q6_K", 1),)}) for name in ("TQ1_0", "TQ2_0", "I2_S")},
    **{name: (name, {}) for name in ("Q6_K", "Q8_0", "F16", "BF16", "F32", "I8")},
    # Other engines' 4- and 2-bit schemes keep the head at 8 bits.
    **{name: (name, {"head": (("I8", 1),)}) for name in ("I4", "I2")},
}


def known_quants() -> tuple[str, ...]:
    """Names that `model_tensors` takes."""
    return tuple(_MIXES)


def model_tensors(model: KnownModel, quant: str) -> tuple[StoredTensor, ...]:
    """The tensors of a model under a quantization, layers of equal role and type taken together.

    Raises KeyError for a quantization that is not in `known_quants`.
    """
    return tuple(_tensors(model, quant))


def _tensors(model: KnownModel, quant: str) -> Iterator[StoredTensor]:
    default, exceptions = _MIXES[quant]
    for matrix in model.matrices():
        shares = exceptions.get(matrix.role, ((default, 1.0),))
        for type_name, share in shares:
            yield _stored(matrix, _fitting(type_name, matrix.n_per_row), share)


def _fitting(type_name: str, n_per_row: int) -> str:
    return _BLOCKS_OF_256.get(type_name, type_name) if n_per_row % 256 else type_name


def _stored(matrix: Matrix, type_name: str, share: float) -> StoredTensor:
    # Layers are taken together as more rows of one matrix: only products and bytes count here.
    n_rows = round(matrix.n_rows * matrix.count * share / matrix.n_experts)
    n_values = matrix.n_per_row * n_rows * matrix.n_experts
    return StoredTensor(
        name=matrix.name,
        ggml_type=type_name,
        n_per_row=matrix.n_per_row,
        n_rows=n_rows,
        n_matrices=matrix.n_experts,
        n_bytes=round(n_values * BITS[type_name] / 8),
    )
