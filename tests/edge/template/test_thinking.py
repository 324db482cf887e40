"""Thinking is told from the answer, and switched, in the way of each family."""

from __future__ import annotations

import pytest

from boardfit.edge.errors import UsageError
from boardfit.edge.template.conversation import ChatTemplate
from boardfit.edge.template.thinking import ThinkingFilter, ThinkingKind, all_kinds
from boardfit.edge.types import Message, Thinking, TokenEvent

KINDS = all_kinds()
ASK = [Message("user", "hello")]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def split(pieces: list[str], *, opened: ThinkingKind | None = None) -> tuple[str, str]:
    """Thoughts and answer in a stream of pieces."""
    sort = ThinkingFilter(KINDS, opened)
    events = [TokenEvent(1, piece, 0) for piece in pieces]
    done = [sort(event) for event in [*events, TokenEvent(None, "", 0, "stop")]]
    return "".join(e.thought for e in done), "".join(e.text for e in done)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.start)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_every_kind_in_every_cut(kind: ThinkingKind, step: int) -> None:
    for end in kind.ends:
        text = f"{kind.start}\nHm. <b>\n{end}\n\nIt is 4 < 5."
        pieces = [text[i : i + step] for i in range(0, len(text), step)]
        assert split(pieces) == ("\nHm. <b>\n", "It is 4 < 5.")
        opened = text.removeprefix(kind.start)
        assert split(list(opened), opened=kind) == ("\nHm. <b>\n", "It is 4 < 5.")
    assert split([kind.start, "Hm", kind.ends[0][:2]]) == ("Hm" + kind.ends[0][:2], "")


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n 4", "<", "<thin", "Write <think> and </think>.", "</think>", "[T", "  <b>"],
)
def test_an_answer_without_thinking_is_left_alone(text: str) -> None:
    assert split(list(text)) == ("", text)
    assert split([text]) == ("", text)


def test_markers_that_are_tokens_without_text() -> None:
    """As gpt-oss writes: every marker is a control token, which an engine gives no text for."""
    names = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"]
    channel, message, end, start = range(10, 14)
    controls = dict(zip(range(10, 14), names, strict=True))
    stream = [
        (channel, ""), (1, "analysis"), (message, ""), (1, "Hm"), (end, ""), (start, ""),
        (1, "assistant"), (channel, ""), (1, "final"), (message, ""), (1, "Four"), (1, "."),
    ]  # fmt: skip
    for tokens, thought in ((stream, "Hm"), (stream[7:], "")):
        sort = ThinkingFilter(KINDS, None, controls)
        done = [sort(TokenEvent(token, text, 0)) for token, text in tokens]
        assert "".join(e.thought for e in done) == thought
        assert "".join(e.text for e in done) == "Four."


def prompt(template: str, thinking: Thinking, **variables: object) -> str:
    written = ChatTemplate(template, bos="", eos="", thinking=thinking, variables=variables)
    written.check_settings()
    return "".join(written.write(ASK, lambda text, is_own: ()))


@pytest.mark.parametrize(
    ("switch", "off", "on"),
    [
        ("enable_thinking", "False", "True"),
        ("thinking", "False", "True"),
        ("thinking_mode", "disabled", "enabled"),
        ("reasoning_effort", "none", None),
    ],
)
def test_switches_of_families(switch: str, off: str, on: str | None) -> None:
    template = (
        CHAT + "{# <think> #}{{ " + switch + " if " + switch + " is defined }}{{ '' if 'none' }}"
    )
    assert prompt(template, "auto") == "<user>hello"
    assert prompt(template, "off") == f"<user>hello{off}"
    if on is not None:
        assert prompt(template, "on") == f"<user>hello{on}"


def test_thinking_without_a_switch_is_ended_in_the_prompt() -> None:
    opens = CHAT + "{% if add_generation_prompt %}<a><think>\n{% endif %}"
    assert prompt(opens, "off").endswith("<a><think>\n\n</think>\n\n")
    writes = (
        CHAT + "{% set x = m.split('</think>') if m %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    assert prompt(writes, "off").endswith("<a><think>\n\n</think>\n\n")
    assert prompt(CHAT, "off") == "<user>hello"
    sort = ChatTemplate(opens, bos="", eos="").filter_answer(ASK, lambda text: [1, 2], bool)
    assert sort(TokenEvent(1, "Hm", 0)).thought == "Hm"
    asked = [Message("user", f"What does {KINDS[0].start} mean?")]
    sort = ChatTemplate(CHAT + "{# <think> #}", bos="", eos="").filter_answer(
        asked, lambda text: [1, 2], bool
    )
    assert sort(TokenEvent(1, "Hm", 0)).text == "Hm"


def test_settings_that_a_template_does_not_know() -> None:
    template = CHAT + "{{ level if level is defined }}"
    assert prompt(template, "auto", level=3) == "<user>hello3"
    with pytest.raises(UsageError, match="Did you mean 'level'"):
        prompt(template, "auto", levl=3)
    for name in ("messages", "max_seconds", "now"):
        with pytest.raises(UsageError, match="set by boardfit"):
            prompt(template + "{{ " + name + " }}", "auto", **{name: 9})
    with pytest.raises(UsageError, match="no thinking"):
        prompt(template, "on")
