"""Command-line options that `chat` and `run` share, and what they mean."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from boardfit.edge.click_options import add_options
from boardfit.edge.engines.settings import KV_TYPES
from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.progress import ProgressLine
from boardfit.edge.types import GenerationConfig

_DEFAULT = GenerationConfig()
_ENGINE_OPTIONS = (
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
)
_GENERATION_OPTIONS = (
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


#: Adds the options of both groups to a click command.
model_options = add_options(*_GENERATION_OPTIONS, *_ENGINE_OPTIONS)


def open_with_progress(path: str, options: dict[str, Any], *, n_draft: int = 0) -> OpenModel:
    """Open the model that the command line names, drawing progress where it takes time."""
    with closing(ProgressLine("loading")) as line:
        return open_model(
            path,
            progress=line,
            n_threads=options["n_threads"],
            n_ctx=options["n_ctx"],
            kv_type=options["kv_type"],
            n_draft=n_draft,
            check_memory=False if options["no_memory_check"] else None,
        )


def generation_config(options: dict[str, Any]) -> GenerationConfig:
    """Raises UsageError for values out of range."""
    return GenerationConfig(
        max_tokens=options["max_tokens"],
        temperature=options["temperature"],
        top_k=options["top_k"],
        top_p=options["top_p"],
        min_p=options["min_p"],
        repeat_penalty=options["repeat_penalty"],
        seed=options["seed"],
        stop=tuple(options["stop"]),
    )
