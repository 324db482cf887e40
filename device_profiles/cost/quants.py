"""Bits of a stored weight by type. Source of the block sizes: ggml/src/ggml-common.h."""

from __future__ import annotations

from collections.abc import Mapping

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
