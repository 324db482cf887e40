"""Command-line options that `chat` and `run` share, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import click

from boardfit.edge.engines.settings import CHAT_MARKS, KV_TYPES
from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.template.options import TEMPLATE_OPTIONS, parse_variables
from boardfit.edge.terminal.options import pass_value
from boardfit.edge.terminal.progress import ProgressLine
from boardfit.edge.types import GenerationConfig

_DEFAULT = GenerationConfig()
_ENGINE = (
    click.option(
        "--threads", "n_threads", type=int, help="Number of threads. [default: the plan's]"
    ),
    click.option(
        "--ctx", "n_ctx", type=int, help="Context length, in tokens. [default: the plan's]"
    ),
    click.option("--kv-type", type=click.Choice(KV_TYPES), help="Type of the KV cache."),
    click.option(
        "--no-memory-check", is_flag=True, help="Load the model even if memory looks too short."
    ),
    *TEMPLATE_OPTIONS,
)
_GENERATION = (
    click.option(
        "--temperature",
        type=float,
        default=_DEFAULT.temperature,
        show_default=True,
        help="0 always takes the likeliest token; a higher value varies more.",
    ),
    click.option(
        "--top-k",
        type=int,
        default=_DEFAULT.top_k,
        show_default=True,
        help="Sample from this many likeliest tokens only.",
    ),
    click.option(
        "--top-p",
        type=float,
        default=_DEFAULT.top_p,
        show_default=True,
        help="Sample from the likeliest tokens that reach this total probability.",
    ),
    click.option(
        "--min-p",
        type=float,
        default=_DEFAULT.min_p,
        show_default=True,
        help="Drop tokens below this share of the likeliest token's probability.",
    ),
    click.option(
        "--repeat-penalty",
        type=float,
        default=_DEFAULT.repeat_penalty,
        show_default=True,
        help="Penalty for repeated tokens. 1.0: none.",
    ),
    click.option(
        "--seed",
        type=int,
        default=_DEFAULT.seed,
        show_default=True,
        help="Seed of the sampler. -1: random.",
    ),
    click.option(
        "--max-tokens", type=int, default=-1, help="Longest answer, in tokens. [default: no limit]"
    ),
    click.option("--stop", multiple=True, help="Text that ends an answer. Repeatable."),
)


def _make_overrides(
    *, no_memory_check: bool, template_vars: Sequence[str], **settings: Any
) -> dict[str, Any]:
    return {
        **settings,
        "template_variables": parse_variables(template_vars) or None,
        "check_memory": False if no_memory_check else None,
    }


#: Adds the options of sampling to a command, which gets `config`, a GenerationConfig.
generation_options = pass_value("config", GenerationConfig, *_GENERATION)
#: Adds the options of the engine to a command, which gets `overrides` for `open_with_progress`.
engine_options = pass_value("overrides", _make_overrides, *_ENGINE)


def open_with_progress(path: str, overrides: dict[str, Any], *, n_draft: int = 0) -> OpenModel:
    """Open the model that the command line names, drawing progress where it takes time."""
    with closing(ProgressLine("loading")) as line:
        settings = {"n_draft": n_draft, "n_marks": CHAT_MARKS, **overrides}
        return open_model(path, progress=line, **settings)
