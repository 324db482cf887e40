"""No word of anybody gets lost in a chat template."""

from __future__ import annotations

import pytest

from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.template.lint import check
from boardfit.edge.template.render import render
from boardfit.edge.template.words import WordForm, find_form

GENERATE = "{% if add_generation_prompt %}<a>{% endif %}"
TEXT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + GENERATE
FIRST_PART = TEXT.replace("m.content", "m.content[0].text")
ALL_PARTS = TEXT.replace(
    "{{ m.content }}", "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}"
)  # fmt: skip
USER_PARTS = TEXT.replace(
    "m.content", "(m.content[0]['text'] if m.role == 'user' else m.content + '')"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEXT
)
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + TEXT
)
LATE_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}{% if loop.last and messages[0].role == 'system' "
    "%}{{ messages[0].content }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}" + GENERATE
)


def form(template: str) -> WordForm:
    return find_form(lambda messages: render(template, messages, bos_token="", eos_token=""))


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (TEXT, set()),
        (TEXT.replace("m.content", "m.content | upper"), set()),
        (LATE_SYSTEM, set()),
        (NEEDS_SYSTEM, set()),
        (FIRST_PART, {"user", "assistant", "system"}),
        (ALL_PARTS, {"user", "assistant", "system"}),
        (USER_PARTS, {"user"}),
    ],
)
def test_templates_that_keep_every_word(template: str, parts: set[str]) -> None:
    found = form(template)
    assert (set(found.parts), found.refused, found.lost) == (parts, {}, frozenset())


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("Hello" + GENERATE, "leaves out the user's words"),
        (TEXT.replace("m.content", "m.content[:4]"), "leaves out the user's words"),
        (TEXT.replace("m.content", "m.text"), "leaves out the user's words"),
        (TEXT.replace("m.content", "m.content + m.content"), "writes the user's words 2 times"),
        ("{{ raise_exception('tools only') }}", "tools only"),
    ],
)
def test_a_template_that_loses_the_users_words_is_refused(template: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        form(template)


@pytest.mark.parametrize(
    ("template", "role", "said"),
    [
        (TEXT.replace("in messages", "in messages if m.role == 'user'"), "assistant", "answer"),
        (TEXT.replace("in messages", "in messages | reverse"), "assistant", "another order"),
        (TEXT.replace("in messages", "in messages if m.role != 'system'"), "system", "leaves out"),
    ],
)
def test_what_is_lost_of_others_is_known(template: str, role: str, said: str) -> None:
    found = form(template)
    assert role in found.lost
    with pytest.raises(InputError, match=said):
        found.shape([{"role": role, "content": "x"}])
    assert found.shape([{"role": "user", "content": "x"}]) == [{"role": "user", "content": "x"}]


def test_a_refusal_is_no_loss_and_has_a_next_step() -> None:
    found = form(NO_SYSTEM)
    assert not found.lost
    with pytest.raises(InputError, match="no system") as caught:
        found.shape([{"role": "system", "content": "x"}])
    assert "in front of the message" in str(caught.value.next_step)


def test_the_sandbox_is_not_taken_for_a_form() -> None:
    with pytest.raises(UnsafeInputError, match="append"):
        form("{% set x = [] %}{% for m in messages %}{% set _ = x.append(m) %}{% endfor %}")


def test_the_lint_tries_a_template_of_parts_with_parts() -> None:
    assert check(FIRST_PART) == []
