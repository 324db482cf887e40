"""Lint a chat template: list facts to know before shipping it.

A template is a program that speaks in the user's name; a poisoned one can stay inside any sandbox
(a hidden instruction, a link, a reaction to a trigger word). These notes are pure facts about its
text and about trial conversations; nothing is refused here that `render` accepts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.template.render import parse, render
from boardfit.edge.template.words import WordForm, find_form
from boardfit.edge.units import printable

_KNOWN_NAMES = frozenset(
    [
        "messages", "tools", "documents", "bos_token", "eos_token", "unk_token", "pad_token",
        "add_generation_prompt", "raise_exception", "strftime_now", "namespace", "range", "dict",
        "cycler", "joiner", "loop", "caller", "varargs", "kwargs", "self", "super",
        "enable_thinking", "custom_tools", "builtin_tools", "tools_in_user_message",
        "date_string", "xml_tools", "python_tools", "controls", "reasoning_effort",
    ]
)  # fmt: skip
_URL = re.compile(r"https?://[^\s'\"<>)}\]]+")
_USER = {"role": "user", "content": "Hello"}
_TRIALS: tuple[tuple[str, list[dict[str, str]]], ...] = (
    ("a single user message", [_USER]),
    ("a system message", [{"role": "system", "content": "Be brief."}, _USER]),
    (
        "a second turn",
        [_USER, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Again"}],
    ),
)


def check(template: str) -> list[str]:
    """List what is worth knowing about a template before it is shipped, one sentence each.

    Raises as `template.render.render` does where it does not parse or breaks a limit on a trial.
    """
    trials = _check_trials(template)  # first, under their limit: parsing may take long as well
    return [*_check_names(parse(template)), *_check_text(template), *trials]


def _check_names(tree: Any) -> list[str]:
    from jinja2 import meta, nodes

    names = meta.find_undeclared_variables(tree)
    found = []
    if "messages" not in names:
        found.append("it never reads the messages")
    if "add_generation_prompt" not in names:
        found.append(
            "it ignores add_generation_prompt: the answer may begin in the wrong place, or the "
            "template always opens the assistant's turn"
        )
    if "strftime_now" in names:
        found.append("its text depends on the date: a cached prompt prefix is lost at midnight")
    # Jinja counts a name as undeclared when only one branch of an `if` sets it.
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    unknown = sorted(names - own - _KNOWN_NAMES)
    if unknown:
        found.append(
            f"it reads variables that boardfit does not set: {printable(', '.join(unknown))}"
        )
    return found


def _check_text(template: str) -> list[str]:
    found = [f"it contains the link {printable(url, 80)}" for url in sorted(_links(template))]
    hidden = sorted({f"U+{ord(c):04X}" for c in template if _is_hidden(c)})
    if hidden:
        found.append(f"it contains invisible characters: {', '.join(hidden[:5])}")
    if re.search(r"__\w+__", template):
        found.append("it names Python internals (double underscores), which the sandbox refuses")
    return found


def _links(template: str) -> set[str]:
    return set(_URL.findall(template))


def _is_hidden(character: str) -> bool:
    return not character.isprintable() and character not in "\n\r\t\xa0\u3000"


def _find_form(template: str) -> WordForm:
    try:
        return find_form(lambda messages: _render(template, messages))
    except UnsafeInputError:
        raise
    except InputError:  # the trials show what is wrong
        return WordForm()


def _render(template: str, messages: Sequence[Mapping[str, Any]]) -> str:
    return render(template, messages, bos_token="<s>", eos_token="</s>")


def _check_trials(template: str) -> list[str]:
    """Try conversations that every chat has; a template may refuse some, which is good to know."""
    found = []
    rendered: dict[str, str] = {}
    form = _find_form(template)
    for what, messages in _TRIALS:
        try:
            rendered[what] = _render(template, form.as_parts(messages))
        except UnsafeInputError:
            raise
        except InputError as error:
            found.append(f"{what} fails: {error}")
    single = rendered.get("a single user message")
    if single is not None and "Hello" not in single:
        found.append("the user's words are missing from its text")
    system = rendered.get("a system message")
    if system is not None and "Be brief." not in system:
        found.append("it drops the system message without an error")
    return found
