"""Render every upstream template with transformers and with boardfit, and compare.

Runs in the oracle's interpreter, which has transformers and jinja2 but no pytest:

    python tests/edge/template/template_driver.py PATH_OF_LLAMA_CPP
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))

from boardfit.edge.errors import EdgeError  # noqa: E402 (after the checkout is on the path)
from boardfit.edge.template.render import render  # noqa: E402

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The <weather> of a "city" & more, é',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Paris", "n": [1, 2]}},
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be <b>brief</b> & kind"},
        {"role": "user", "content": "Hi\n  there "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyo {{ x }}"},
        {"role": "user", "content": "émoji 😀"},
    ],
    [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "22 C", "name": "get_weather", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "22 degrees"},
        {"role": "user", "content": "thanks"},
    ],
    [{"role": "assistant", "content": "out of turn"}, {"role": "nobody", "content": "?"}],
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": False},
    {"tools": TOOLS},
    {"enable_thinking": False},
]


def transformers_text(template: str, messages: Any, settings: dict[str, Any]) -> str | None:
    """What transformers renders, or None where the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    values = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", **settings}
    try:
        return str(render_jinja_template([messages], chat_template=template, **values)[0][0])
    except Exception:  # any error of the template
        return None


def our_text(template: str, messages: Any, settings: dict[str, Any]) -> str | None:
    try:
        return render(template, messages, bos_token="<s>", eos_token="</s>", **settings)
    except EdgeError:
        return None


def compare_all(tree: Path) -> int:
    """Render every template both ways; returns how many texts were compared."""
    compared = 0
    for path in sorted((tree / "models/templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for index, messages in enumerate(CONVERSATIONS):
            for settings in SETTINGS:
                expected = transformers_text(template, messages, settings)
                got = our_text(template, messages, settings)
                assert got == expected, f"{path.name}, conversation {index}, {settings}"
                compared += expected is not None
    return compared


if __name__ == "__main__":
    print(compare_all(Path(sys.argv[1])))
