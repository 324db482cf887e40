"""Rotary embeddings: the configuration's many spellings, metadata, and Llama 3's factors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from boardfit.converters.families.layout import constant
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.units import printable

_THETA = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta")
# No scaling, or `llama3`, which becomes a tensor (`llama3_factors`). `dynamic` changes nothing up
# to the trained context; the engine has no equivalent beyond, and upstream writes nothing either.
# `mrope` is an old name of `default` for models that see images; its sections are written apart.
_WRITTEN_ELSEWHERE = (None, "default", "llama3", "dynamic", "mrope")
_LOCAL_THETA = ("local_rope_theta", "rope_local_theta", "swa_rope_theta", "rope_local_base_freq")


def rope_parameters(config: Config) -> Config:
    """One mapping from the spellings of transformers 4 (`rope_theta`, `rope_scaling` with `type`)
    and 5 (`rope_parameters`, possibly one per kind of attention). Same reading as upstream's
    conversion/base.py, `TextModel.__init__`.
    """
    params = config.inner("rope_parameters" if "rope_parameters" in config else "rope_scaling")
    if "full_attention" in params or "sliding_attention" in params:
        return params
    local = _find_first(config, _LOCAL_THETA)
    if local is not None:
        params["sliding_attention"] = {"rope_theta": local}
    theta = _find_first(config, _THETA)
    if theta is not None:
        params.setdefault("rope_theta", theta)
    if params.get("type") is not None:
        params.setdefault("rope_type", params["type"])
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if config.get(key) is not None:
            params.setdefault(key, config[key])
    if params.get("rope_type") == "yarn" and config.get("max_position_embeddings") is not None:
        # transformers' `_compute_yarn_parameters` does the same.
        params.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return params


def global_rope(params: Config) -> Config:
    """The parameters of full-attention layers."""
    inner = params.get("full_attention")
    return Config(inner) if isinstance(inner, dict) else params


def rope_metadata(params: Config) -> dict[str, Any]:
    """`rope.scaling.*`, sections and `rope.freq_base*` of the metadata, in upstream's order."""
    full = global_rope(params)
    values = _scaling(full)
    if (sections := params.entries("mrope_section")) is not None:
        values |= rope_sections(sections)
    values["rope.freq_base"] = full.number_or("rope_theta", None)
    sliding = params.get("sliding_attention")
    if isinstance(sliding, dict):
        values["rope.freq_base_swa"] = Config(sliding).number_or("rope_theta", None)
    return {name: value for name, value in values.items() if value is not None}


def rope_sections(sections: Sequence[Any]) -> dict[str, Any]:
    """Pairs of a head that rotate with time, height and width; the engine wants a fourth number."""
    sizes = [Config(mrope_section=s).whole("mrope_section", least=0) for s in sections]
    if not 1 <= len(sizes) <= 4 or not any(sizes):
        raise InputError(f"config.json: mrope_section is {quote(sections)}; expected 3 sizes")
    return {"rope.dimension_sections": [*sizes, 0, 0, 0][:4]}


def _scaling(full: Config) -> dict[str, Any]:
    kind = full.get("rope_type")
    if kind in ("su", "longrope"):
        return {"rope.scaling.type": "longrope"}
    if kind in _WRITTEN_ELSEWHERE:
        return {}
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"config.json: rope_type {printable(repr(kind), 60)} is not one that the engine runs; "
            "known: default, linear, yarn, longrope, llama3",
            next_step="if llama.cpp runs the model, give edge its GGUF",
        )
    values: dict[str, Any] = {"type": kind, "factor": full.number("factor")}
    if kind == "yarn":
        attention = "attention_factor" if "attention_factor" in full else "attn_factor"
        values |= {
            "original_context_length": full.whole("original_max_position_embeddings"),
            "yarn_ext_factor": full.number_or("extrapolation_factor", None),
            "yarn_attn_factor": full.number_or(attention, None),
            "yarn_beta_fast": full.number_or("beta_fast", None),
            "yarn_beta_slow": full.number_or("beta_slow", None),
        }
    return {f"rope.scaling.{name}": value for name, value in values.items()}


def llama3_factors(params: Config, head_dim: int) -> np.ndarray | None:
    """Divisors of the rotary frequencies for Llama 3.1's long context: float32 of `head_dim / 2`,
    or None when the scaling is of another kind.

    Wavelengths shorter than `original / high_freq_factor` stay, longer than
    `original / low_freq_factor` are stretched by `factor`, those between are interpolated
    (conversion/llama.py, `generate_extra_tensors`; transformers' `_compute_llama3_parameters`).
    Computed in float32 as upstream does, so that the bytes agree.
    """
    full = global_rope(params)
    if str(full.get("rope_type", "")).lower() != "llama3":
        return None
    f32 = np.float32
    base = full.number("rope_theta") if "rope_theta" in full else 10000.0
    factor = full.number_or("factor", 8.0) or 8.0
    low = full.number_or("low_freq_factor", 1.0) or 1.0
    high = full.number_or("high_freq_factor", 4.0) or 4.0
    original = full.number_or("original_max_position_embeddings", 8192.0) or 8192.0
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / f32(head_dim)
    frequencies = f32(1.0) / np.power(f32(base), exponents)
    wavelengths = f32(2 * math.pi) / frequencies
    factors = np.ones(len(frequencies), dtype=np.float32)
    factors[wavelengths > f32(original / low)] = factor
    between = (wavelengths >= f32(original / high)) & (wavelengths <= f32(original / low))
    smooth = (f32(original) / wavelengths - f32(low)) / f32(high - low)
    blended = f32(1.0) / ((f32(1.0) - smooth) / f32(factor) + smooth)
    factors[between] = blended[between]
    return factors


def llama3_rope_freqs(params: Config, head_dim: int) -> list[TargetTensor]:
    """The `rope_freqs.weight` tensor of `llama3_factors`, or an empty list."""
    factors = llama3_factors(params, head_dim)
    return [] if factors is None else [constant("rope_freqs.weight", factors, "rope_scaling")]


def _find_first(config: Config, keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if key in config), None)
