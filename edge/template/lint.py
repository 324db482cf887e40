"""Lint a chat template: list facts to know before shipping it.

A poisoned template can stay inside any sandbox (a hidden instruction, a link, a reaction to a
trigger word). These notes are facts about its text and about trial conversations; nothing is
refused here that `render` accepts.
"""

import functools
import re
from typing import Any

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.template.render import parse, render
from boardfit.edge.template.words import WordForm, find_form
from boardfit.edge.units import printable

_URL = re.compile(r"https?://[^\s'\"<>)}\]]+")
_USER = {"role": "user", "content": "Hello"}
_ANSWER, _AGAIN = {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Again"}
_TRIALS = (
    ("a single user message", [_USER]),
    ("a system message", [{"role": "system", "content": "Be brief."}, _USER]),
    ("a second turn", [_USER, _ANSWER, _AGAIN]),
)


def check(template: str) -> list[str]:
    """List what is worth knowing about a template before it is shipped. Raises as `render`."""
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
    known = load_toml("boardfit.edge.template", "names.toml")["lint"]["known"].split()
    unknown = sorted(names.difference(own, known))
    if unknown:
        found.append(
            f"it reads variables that boardfit does not set: {printable(', '.join(unknown))}"
        )
    return found


def _check_text(template: str) -> list[str]:
    links = sorted(set(_URL.findall(template)))
    found = [f"it contains the link {printable(url, 80)}" for url in links]
    invisible = {c for c in template if not c.isprintable()} - set("\n\r\t\xa0\u3000")
    hidden = sorted(f"U+{ord(c):04X}" for c in invisible)
    if hidden:
        found.append(f"it contains invisible characters: {', '.join(hidden[:5])}")
    if re.search(r"__\w+__", template):
        found.append("it names Python internals (double underscores), which the sandbox refuses")
    return found


def _check_trials(template: str) -> list[str]:
    """Try conversations that every chat has; a template may refuse some, which is good to know."""
    write = functools.partial(render, template, bos_token="<s>", eos_token="</s>")
    found = []
    rendered: dict[str, str] = {}
    try:
        form = find_form(write)
    except UnsafeInputError:
        raise
    except InputError:  # the trials show what is wrong
        form = WordForm()
    for what, messages in _TRIALS:
        try:
            rendered[what] = write(form.as_parts(messages))
        except UnsafeInputError:
            raise
        except InputError as error:
            found.append(f"{what} fails: {error}")
    if "Hello" not in rendered.get("a single user message", "Hello"):
        found.append("the user's words are missing from its text")
    if "Be brief." not in rendered.get("a system message", "Be brief."):
        found.append("it drops the system message without an error")
    return found
