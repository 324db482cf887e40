"""Which family handles which `model_type`: data; the class is imported when it is used."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.units import did_you_mean, printable

if TYPE_CHECKING:
    from boardfit.converters.families.decoder import DecoderFamily
    from boardfit.converters.families.layout import Checkpoint

_TABLE = load_toml("boardfit.converters.families", "families.toml")
# model_type of config.json → module:class, and the name that people know the family by.
FAMILIES: Mapping[str, tuple[str, str]] = _TABLE["families"]
# How a model_type, and the GGUF architecture, begins → the first engine build that runs it.
NEEDS_ENGINE: Mapping[str, str] = _TABLE["needs_engine"]


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


def family_for(
    config: Mapping[str, Any], *, keep_mtp: bool = False
) -> Callable[[Checkpoint], DecoderFamily]:
    """The family that converts a checkpoint of this configuration, with its MTP head if `keep_mtp`.

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
    module, _, kind = FAMILIES[name][0].partition(":")
    from boardfit.converters.families.settings import Config

    found = importlib.import_module(f"boardfit.converters.families.{module}")
    family: type[DecoderFamily] = getattr(found, kind).choose(Config(config))
    if keep_mtp and not family.can_keep_mtp:
        raise UnsupportedModelError(
            f"--mtp keep is for Qwen3.5; of model_type {printable(name)!r} no MTP head is kept",
            next_step="leave out --mtp keep",
        )
    return functools.partial(family, keep_mtp=keep_mtp)
