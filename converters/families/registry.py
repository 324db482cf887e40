"""Which family handles which `model_type`: data; the class is imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from boardfit.converters.families.base import Family
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.units import did_you_mean, printable

# model_type of config.json → module:class, and the name that people know the family by.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "llama": ("boardfit.converters.families.llama:Llama", "Llama 2 and 3, TinyLlama, SmolLM2"),
    "mistral": ("boardfit.converters.families.mistral:Mistral", "Mistral, Ministral 8B"),
    "ministral3": ("boardfit.converters.families.mistral:Mistral3", "Ministral 3"),
    "mistral3": ("boardfit.converters.families.mistral:Mistral3", "Mistral Small 3 (text)"),
    "qwen2": ("boardfit.converters.families.qwen2:Qwen2", "Qwen2, Qwen2.5"),
    "qwen3": ("boardfit.converters.families.qwen3:Qwen3", "Qwen3 (dense)"),
    "smollm3": ("boardfit.converters.families.smollm3:SmolLM3", "SmolLM3"),
    "gemma2": ("boardfit.converters.families.gemma2:Gemma2", "Gemma 2"),
    "gemma3_text": ("boardfit.converters.families.gemma3:Gemma3", "Gemma 3 (text)"),
    "gemma3": ("boardfit.converters.families.gemma3:Gemma3", "Gemma 3 (text part)"),
    "gemma3n_text": ("boardfit.converters.families.gemma3n:Gemma3n", "Gemma 3n (text)"),
    "gemma3n": ("boardfit.converters.families.gemma3n:Gemma3n", "Gemma 3n (text part)"),
    "gemma4_text": ("boardfit.converters.families.gemma4:Gemma4", "Gemma 4 (text)"),
    "gemma4": ("boardfit.converters.families.gemma4:Gemma4", "Gemma 4 (text part)"),
    "gemma4_unified_text": (
        "boardfit.converters.families.gemma4:Gemma4Unified",
        "Gemma 4 12B (text)",
    ),
    "gemma4_unified": (
        "boardfit.converters.families.gemma4:Gemma4Unified",
        "Gemma 4 12B (text part)",
    ),
    "phi3": ("boardfit.converters.families.phi3:Phi3", "Phi-3, Phi-3.5, Phi-4-mini"),
    "qwen3_moe": ("boardfit.converters.families.qwen3moe:Qwen3Moe", "Qwen3 (mixture of experts)"),
    "qwen3_vl": ("boardfit.converters.families.qwen3vl:Qwen3Vl", "Qwen3-VL (text part)"),
    "smolvlm": ("boardfit.converters.families.smolvlm:SmolVlm", "SmolVLM (text part)"),
    "idefics3": ("boardfit.converters.families.smolvlm:SmolVlm", "Idefics 3 (text part)"),
    "qwen3_5": ("boardfit.converters.families.qwen35:Qwen35", "Qwen3.5, Qwen3.6 (text part)"),
    "qwen3_5_text": ("boardfit.converters.families.qwen35:Qwen35", "Qwen3.5, Qwen3.6 (text)"),
    "qwen3_5_moe": (
        "boardfit.converters.families.qwen35:Qwen35Moe",
        "Qwen3.5, Qwen3.6 (mixture of experts, text part)",
    ),
    "qwen3_5_moe_text": (
        "boardfit.converters.families.qwen35:Qwen35Moe",
        "Qwen3.5, Qwen3.6 (mixture of experts, text)",
    ),
    "granite": ("boardfit.converters.families.granite:Granite", "Granite 3 (dense)"),
    "granitemoe": (
        "boardfit.converters.families.granite:GraniteMoe",
        "Granite 3 (mixture of experts)",
    ),
    "granitemoeshared": (
        "boardfit.converters.families.granite:GraniteMoe",
        "Granite 3 (shared expert)",
    ),
    "granitemoehybrid": (
        "boardfit.converters.families.granite4:Granite4",
        "Granite 4 (attention only, hybrid, mixture of experts)",
    ),
    "nemotron_h": (
        "boardfit.converters.families.nemotron_h:NemotronH",
        "Nemotron-H, Nemotron Nano 2 and 3",
    ),
    "falcon_h1": ("boardfit.converters.families.falcon_h1:FalconH1", "Falcon-H1"),
    "olmo2": ("boardfit.converters.families.olmo2:Olmo2", "OLMo 2"),
    "olmo3": ("boardfit.converters.families.olmo2:Olmo3", "OLMo 3"),
    "gpt_oss": ("boardfit.converters.families.gpt_oss:GptOss", "gpt-oss"),
    "exaone4": ("boardfit.converters.families.exaone4:Exaone4", "EXAONE 4"),
    "hunyuan_v1_dense": (
        "boardfit.converters.families.hunyuan_v1_dense:HunyuanDense",
        "Hunyuan (dense)",
    ),
    "ernie4_5": ("boardfit.converters.families.ernie4_5:Ernie45", "ERNIE 4.5 (dense)"),
    "lfm2": ("boardfit.converters.families.lfm2:Lfm2", "LFM2, LFM2.5"),
    "lfm2_vl": ("boardfit.converters.families.lfm2:Lfm2Vl", "LFM2-VL, LFM2.5-VL (text part)"),
    "lfm2_moe": ("boardfit.converters.families.lfm2:Lfm2Moe", "LFM2 (mixture of experts)"),
}


# How a model_type, and the GGUF architecture, begins → the first engine build that runs it.
NEEDS_ENGINE: Mapping[str, str] = {"lfm3": "b11960"}


def needed_engine(name: str) -> str:
    """Which engine a model is waiting for, as the end of a message; empty for all others."""
    builds = [build for start, build in NEEDS_ENGINE.items() if name.startswith(start)]
    return f"; it needs engine {builds[0]} or later" if builds else ""


def model_type(config: Mapping[str, Any]) -> str:
    """`model_type` of a parsed `config.json`. Raises InputError when it is absent."""
    value = config.get("model_type")
    if not isinstance(value, str):
        raise InputError(
            "config.json has no model_type, so the model's family is unknown",
            next_step="use the config.json that belongs to the checkpoint",
        )
    return value


def family_for(config: Mapping[str, Any], *, keep_mtp: bool = False) -> Family:
    """The family that converts this configuration, with its MTP head if `keep_mtp`.

    Raises UnsupportedModelError that names the unknown `model_type` and lists ours.
    """
    name = model_type(config)
    if needed_engine(name):
        raise UnsupportedModelError(
            f"model_type {printable(name)!r} is unknown to this engine{needed_engine(name)}",
            next_step="update boardfit when a release brings that engine",
        )
    if name not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {printable(name)!r} is not a family that boardfit converts."
            f"{did_you_mean(name, FAMILIES)} Known: {', '.join(sorted(FAMILIES))}",
            next_step="if llama.cpp knows the model, come in through a GGUF: "
            "python convert_hf_to_gguf.py MODEL_DIR --outtype bf16 --outfile model.gguf, "
            "then give edge that model.gguf",
        )
    module, _, attribute = FAMILIES[name][0].partition(":")
    family: Family = getattr(importlib.import_module(module), attribute).from_config(config)
    if keep_mtp and not family.can_keep_mtp:
        raise UnsupportedModelError(
            f"--mtp keep is for Qwen3.5; of model_type {printable(name)!r} no MTP head is kept",
            next_step="leave out --mtp keep",
        )
    family.keep_mtp = keep_mtp
    return family
