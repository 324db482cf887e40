"""SmolVLM and Idefics 3: the language model of a checkpoint that sees images, a Llama.

Upstream: conversion/llama.py, `LlamaModel` (`VLlama3ForCausalLM`). Quirk: tensors are named
`model.text_model.…`, and early configurations leave out the number of heads.
"""

from __future__ import annotations

from boardfit.converters.families.layout import language_model_only
from boardfit.converters.families.llama import Llama


class SmolVlm(Llama):
    """The language model of `SmolVLMForConditionalGeneration` and its like."""

    defaults = {**Llama.defaults, "num_attention_heads": 32}  # noqa: RUF012 - ClassVar in the base

    def rename(self, name: str) -> str | None:
        known = language_model_only(name)
        return None if known is None else known.replace("text_model.", "", 1)
