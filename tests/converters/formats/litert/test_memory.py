"""Laws of memory against what was measured, and refusals before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.formats.litert.convert import conversion_bytes, convert_litert
from boardfit.converters.formats.litert.recipe import load_recipe
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source.hf import open_directory
from boardfit.device_profiles.shape import LayerShape, ModelShape
from boardfit.edge.errors import DoesNotFitError

MIB = 1024**2
QWEN_05B = ModelShape(
    arch="qwen2",
    n_layer=24,
    n_embd=896,
    n_head=14,
    n_ff=4864,
    n_vocab=151936,
    n_ctx_train=32768,
    layers=(LayerShape(2, 64, 64),) * 24,
    n_params=494_032_768,
    n_params_active=494_032_768,
    tied_embeddings=True,
)


def test_conversion_of_half_a_billion() -> None:
    # Measured: 0.80 GiB of private memory with two prefills; upstream takes 7.3 GB.
    predicted = conversion_bytes(QWEN_05B, n_signatures=3, gptq=False)
    assert 0.8 <= predicted / 1024**3 <= 1.6


def test_more_signatures_and_calibration_take_more() -> None:
    plain = conversion_bytes(QWEN_05B, n_signatures=2, gptq=False)
    assert conversion_bytes(QWEN_05B, n_signatures=4, gptq=False) > plain
    rounded = conversion_bytes(QWEN_05B, n_signatures=2, gptq=True, n_calibration=8192)
    assert plain < rounded < 6 * 1024**3


def test_too_little_memory_is_told_before_it_starts(tmp_path: Path) -> None:
    spec = open_directory(MODEL_DIR)
    with pytest.raises(DoesNotFitError, match="converting to LiteRT takes about") as caught:
        convert_litert(
            spec,
            MODEL_DIR,
            load_recipe("litert_int4_b32_best"),
            tmp_path / "out.litertlm",
            prefill_lengths=[128],
            cache_length=512,
            memory_bytes=64 * MIB,
        )
    assert caught.value.shortfall_bytes
    assert "litert_int4_b32" in str(caught.value.next_step)
    assert list(tmp_path.iterdir()) == []
