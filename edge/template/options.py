"""Command-line options on how a chat template is rendered."""

import json
from collections.abc import Sequence
from typing import Any

import click

from boardfit.edge.errors import UsageError

#: --thinking and --template-var, as `thinking` and `template_vars`.
TEMPLATE_OPTIONS = (
    click.option(
        "--thinking",
        type=click.Choice(["on", "off", "auto"]),
        help="Let a model think before it answers, where it can. auto: as its template has it.",
    ),
    click.option(
        "--template-var",
        "template_vars",
        multiple=True,
        metavar="NAME=VALUE",
        help="Variable of the chat template. The value is JSON, else text. Repeatable.",
    ),
)


def parse_variables(typed: Sequence[str]) -> dict[str, Any]:
    """The variables in `NAME=VALUE` texts. Raises UsageError for a text of another form."""
    found: dict[str, Any] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                f"--template-var takes NAME=VALUE, got {text!r}",
                next_step="--template-var enable_thinking=false",
            )
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = _LITERALS.get(value, value)
    return found


# As they are written in templates.
_LITERALS = {"True": True, "False": False, "None": None}
