"""Command-line options that `chat` and `run` share, and what they mean."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from boardfit.edge.engines.settings import CHAT_MARKS, KV_TYPES
from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.errors import UsageError
from boardfit.edge.files.kind import read_regular_text
from boardfit.edge.template.options import TEMPLATE_OPTIONS, parse_variables
from boardfit.edge.terminal.options import pass_value
from boardfit.edge.terminal.progress import ProgressLine
from boardfit.edge.types import Constraint, GenerationConfig

_DEFAULT = GenerationConfig()
_MAX_SCHEMA = 256 * 1024
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


def _sampling_option(flag: str, help_text: str) -> Callable[[Any], Any]:
    """An option for a field of GenerationConfig, with its type and default."""
    default = getattr(_DEFAULT, flag.strip("-").replace("-", "_"))
    return click.option(
        flag, type=type(default), default=default, show_default=True, help=help_text
    )


_GENERATION = (
    _sampling_option(
        "--temperature", "0 always takes the likeliest token; a higher value varies more."
    ),
    _sampling_option("--top-k", "Sample from this many likeliest tokens only."),
    _sampling_option(
        "--top-p", "Sample from the likeliest tokens that reach this total probability."
    ),
    _sampling_option(
        "--min-p", "Drop tokens below this share of the likeliest token's probability."
    ),
    _sampling_option("--repeat-penalty", "Penalty for repeated tokens. 1.0: none."),
    _sampling_option("--seed", "Seed of the sampler. -1: random."),
    click.option(
        "--max-tokens", type=int, default=-1, help="Longest answer, in tokens. [default: no limit]"
    ),
    click.option("--stop", multiple=True, help="Text that ends an answer. Repeatable."),
)

_FORM = (
    click.option(
        "--schema", metavar="FILE",
        help="Answer with JSON that fits the JSON schema in FILE (or given as it is: '{…}').",
    ),
    click.option("--choice", metavar="A,B", help="Answer with one of these texts."),
    click.option("--pattern", metavar="REGEX", help="Answer with a text that REGEX matches."),
)  # fmt: skip


def _make_constraint(
    *, schema: str | None, choice: str | None, pattern: str | None
) -> Constraint | None:
    """Raises UsageError for two forms at once, InputError for a file that cannot be read."""
    if sum(each is not None for each in (schema, choice, pattern)) > 1:
        raise UsageError("--schema, --choice and --pattern: give one of them")
    if choice is not None:
        texts = [text.strip() for text in choice.split(",")]
        return Constraint("choice", json.dumps(texts))
    if pattern is not None:
        return Constraint("regex", pattern)
    if schema is None:
        return None
    is_text = schema.lstrip().startswith("{")
    return Constraint(
        "json_schema", schema if is_text else read_regular_text(Path(schema), _MAX_SCHEMA)
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
#: Adds the options of an answer's form to a command, which gets `constraint`.
form_options = pass_value("constraint", _make_constraint, *_FORM)
#: Adds the options of the engine to a command, which gets `overrides` for `open_with_progress`.
engine_options = pass_value("overrides", _make_overrides, *_ENGINE)


def open_with_progress(path: str, overrides: dict[str, Any], *, n_draft: int = 0) -> OpenModel:
    """Open the model that the command line names, drawing progress where it takes time."""
    with closing(ProgressLine("loading")) as line:
        settings = {"n_draft": n_draft, "n_marks": CHAT_MARKS, **overrides}
        return open_model(path, progress=line, **settings)
