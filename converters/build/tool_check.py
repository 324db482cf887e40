"""Ask a model for calls of tools: how often the call is valid, the tool right, the arguments right.

The requests are in `tool_trials.toml`. Each is asked twice: free, as `tool_choice` auto without a
mask asks, and held to a grammar, as required asks.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.chat.session import Session
from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.errors import EngineMissingError
from boardfit.edge.template.tools import Tool, ToolUse
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import GenerationConfig, ToolCall

_CONFIG = GenerationConfig(max_tokens=160)
_TYPES = {"integer": int, "string": str, "boolean": bool}


def read_tools() -> list[Tool]:
    """The tools on offer, their arguments closed sets where they name things."""
    table = load_toml("boardfit.converters.build", "tool_trials.toml")
    tools = []
    for row in table["tools"]:
        properties = {
            name: {"type": "string", "enum": table["things"][kind]}
            if isinstance(kind, str)
            else kind
            for name, kind in row["arguments"].items()
        }
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        tools.append(Tool(row["name"], row["description"], schema))
    return tools


def read_trials() -> list[tuple[str, str, dict[str, Any]]]:
    """Requests, each with the right tool and its arguments."""
    rows = load_toml("boardfit.converters.build", "tool_trials.toml")["trials"]
    return [(row["text"], *next(iter(row["call"].items()))) for row in rows]


def check_tools(bundle: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Ask the model of a bundle, and count. Raises as opening it does."""
    opened = open_model(bundle)
    with closing(opened.engine):
        trials, tools = read_trials(), read_tools()
        found: dict[str, Any] = {"n_asked": len(trials), "proof": opened.tool_format.proof}
        for i, (mode, choice) in enumerate((("free", "auto"), ("held", "required"))):
            done = i * len(trials)
            try:
                found[mode] = _count(_ask_all(opened, tools, trials, choice, done, progress))
            except EngineMissingError as error:
                found[mode] = {"not_asked": f"{error}. {error.next_step}"}
        return found


def _ask_all(
    opened: OpenModel,
    tools: list[Tool],
    trials: list[tuple[str, str, dict[str, Any]]],
    choice: str,
    done: int,
    progress: Progress | None,
) -> Iterator[tuple[bool, bool, bool]]:
    """Whether each call is valid, of the right tool, and has the right arguments."""
    schemas = {tool.name: tool.parameters for tool in tools}
    for i, (text, name, values) in enumerate(trials, start=done + 1):
        session = Session(opened.engine)
        use = ToolUse(opened.tool_format, tuple(tools), choice, parallel=False)
        session.offer(use, is_held=choice == "required")
        for _ in session.ask(text, _CONFIG):
            pass
        answer = session.last_answer
        calls = answer.calls if answer else ()
        is_right = bool(calls) and calls[0].name == name
        is_valid = bool(calls) and is_valid_call(calls[0], schemas)
        yield is_valid, is_right, is_right and calls[0].values == values
        if progress is not None:
            progress(i, 2 * len(trials))


def is_valid_call(call: ToolCall, schemas: Mapping[str, Any]) -> bool:
    """Whether a call names a tool on offer and its arguments fit, for schemas as ours are."""
    schema, values = schemas.get(call.name), call.values
    if schema is None or set(values) != set(schema["required"]):
        return False
    return all(_fits(values[name], row) for name, row in schema["properties"].items())


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    if type(value) is not _TYPES[schema["type"]] or value not in schema.get("enum", [value]):
        return False
    return bool(schema["type"] != "integer" or schema["minimum"] <= value <= schema["maximum"])


def _count(rows: Iterator[tuple[bool, bool, bool]]) -> dict[str, int]:
    counted = [sum(column) for column in zip(*rows, strict=True)]
    return dict(zip(("valid", "tool_right", "arguments_right"), counted, strict=True))


def check_lines(found: Mapping[str, Any]) -> list[str]:
    """A check in words."""
    lines, n = [], found["n_asked"]
    for mode, words in (("free", "calls asked for freely"), ("held", "calls held to the schemas")):
        row = found[mode]
        if "not_asked" in row:
            lines.append(f"{words}: not asked: {row['not_asked']}")
        else:
            lines.append(
                f"{words}: of {n}, {row['valid']} valid, {row['tool_right']} of the right tool, "
                f"{row['arguments_right']} with the right arguments"
            )
    return lines
