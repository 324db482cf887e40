"""`edge build --check-tools`: what is asked, what counts as right, and a model that calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.build.tool_check import (
    check_lines,
    check_tools,
    is_valid_call,
    read_tools,
    read_trials,
)
from boardfit.edge.types import ToolCall
from tests.edge.engines import tiny_gguf

SCHEMAS = {tool.name: tool.parameters for tool in read_tools()}


def test_every_trial_has_a_right_call() -> None:
    trials = read_trials()
    assert len(trials) >= 12 and {name for _, name, _ in trials} == set(SCHEMAS)
    for _, name, values in trials:
        assert is_valid_call(ToolCall(name, json.dumps(values)), SCHEMAS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dance", {}),
        ("turn_on", {}),
        ("turn_on", {"name": "the moon"}),
        ("turn_on", {"name": "desk lamp", "more": 1}),
        ("set_timer", {"minutes": "10"}),
        ("set_timer", {"minutes": True}),
        ("set_timer", {"minutes": 0}),
    ],
    ids=["tool", "none", "thing", "more", "text", "flag", "range"],
)
def test_a_call_that_does_not_fit_is_not_valid(name: str, values: dict[str, Any]) -> None:
    assert not is_valid_call(ToolCall(name, json.dumps(values)), SCHEMAS)


@pytest.mark.engine
def test_a_model_is_asked_freely_and_held(tmp_path: Path) -> None:
    """It writes one call by itself, of a tool on offer; held, its random weights call validly."""
    wire = '{"name": "set_timer", "arguments": {"minutes": 10}}'
    pad = tiny_gguf.PAD
    model = tiny_gguf.scripted_llama(
        tmp_path / "caller.gguf", {10: pad, pad: tiny_gguf.IM_END}, pad=wire, n_ctx=8192
    )
    found = check_tools(model)
    assert (found["n_asked"], found["proof"]) == (12, "generic")
    assert found["free"] == {"valid": 12, "tool_right": 2, "arguments_right": 1}
    assert found["held"]["valid"] == 12
    assert check_lines(found)[0].endswith(
        "of 12, 12 valid, 2 of the right tool, 1 with the right arguments"
    )
