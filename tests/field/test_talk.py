"""Chat templates, answers, prompts and histories as people and their programs write them.

A row is called as the input is. See `field_case` for its columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.chat.session import KIND, SCHEMA
from tests.edge.engines import tiny_gguf
from tests.field.field_case import BUILD, PLAN, RUN, FieldCase, file, run_case
from tests.field.model_folders import TEMPLATE, write_gguf

CHAT = "chat GGUF --load MODEL --max-tokens 2"
FIRST_PART = TEMPLATE.replace("m['content']", "m['content'][0]['text']")
APPEND = (
    "{% set items = [] %}{% for m in messages %}{% set _ = items.append(m['content']) %}"
    "{% endfor %}{{ items | join(' ') }}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + TEMPLATE
)
MODERN = (
    "{%- set today = strftime_now('%Y-%m-%d') -%}{%- set ns = namespace(last=0) -%}"
    "{%- for m in messages[::-1] -%}{%- if m.role == 'user' and not (m.content is string and "
    "m.content.startswith('<tool_response>')) -%}{%- set ns.last = loop.index0 -%}{%- break -%}"
    "{%- endif -%}{%- endfor -%}{%- for m in messages -%}{%- if loop.previtem is defined and "
    "loop.previtem.role == m.role -%}{{ raise_exception('roles') }}{%- endif -%}"
    "{{- m.content if m.content is string else m.content | tojson(ensure_ascii=False, indent=2) -}}"
    "<|im_end|>{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>{%- endif -%}"
)
ASKED = b"set a timer for ten minutes"


def template(text: str | None) -> Callable[[Path], Path]:
    return file("m.gguf", lambda path: write_gguf(path, template=text))


def answers(*data: int) -> Callable[[Path], Path]:
    """A model that answers these bytes, whatever it is asked."""
    successors = dict(pairwise((ord("\n"), *data, tiny_gguf.IM_END)))
    return file("m.gguf", lambda path: tiny_gguf.scripted_llama(path, successors))


def history(document: object) -> Callable[[Path], Path]:
    """A model, and a file with a conversation."""

    def make(place: Path) -> Path:
        write_gguf(place / "m.gguf")
        path = place / "history.json"
        path.write_text(json.dumps(document))
        return path

    return make


def session(*messages: tuple[str, Any], system: str | None = None) -> Callable[[Path], Path]:
    said = [{"role": role, "content": content} for role, content in messages]
    return history({"kind": KIND, "schema": SCHEMA, "system": system, "messages": said})


def part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


CASES = [
    FieldCase("gguf/template-list-only.gguf", template(FIRST_PART), BUILD, 0),
    FieldCase("gguf/template-append.gguf", template(APPEND), PLAN, 3, (".append", "namespace")),
    FieldCase("gguf/template-append.gguf, build", template(APPEND), BUILD, 3, (".append",)),
    FieldCase("gguf/template-append.gguf, run", template(APPEND), RUN, 3, (".append",)),
    FieldCase("gguf/template-generation.gguf", template(MARKED), BUILD, 0),
    FieldCase("gguf/template-modern.gguf", template(MODERN), BUILD, 0),
    FieldCase("gguf/template-no-system.gguf", template(NO_SYSTEM), f"{RUN} --system Brief", 3,
              ("System role not supported", "in front of the message")),
    FieldCase("gguf/template-no-system.gguf, task", template(NO_SYSTEM), f"{RUN} --task assistant",
              0),
    FieldCase("gguf/template-none.gguf", template(None), "chat MODEL", 3,
              ("has no chat template", "edge run --raw")),
    FieldCase("gguf/emoji.gguf", answers(*"🙂".encode()), "run MODEL hi", 0, ("🙂\n",)),
    FieldCase("gguf/emoji-cut.gguf", answers(*"🙂".encode()[:3]), "run MODEL hi", 0,
              ("\ufffd\n",)),
    FieldCase("sessions/openai-list.json", history([
        {"role": "user", "content": part("What is in the fridge?")},
        {"role": "assistant", "content": "Milk."}]), CHAT, 3,
        ("not a saved session", "edge chat has written")),
    FieldCase("sessions/openai-tools.json", history({"model": "m", "messages": [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function"}]}]}),
        CHAT, 3, ("not a saved session", "edge chat has written")),
    FieldCase("sessions/own-content-list.json",
              session(("user", part("hi")), ("assistant", "ho")), CHAT, 3,
              ("message 0: expected a text",)),
    FieldCase("sessions/own-system-in-the-middle.json", session(
        ("user", "hi"), ("assistant", "ho"), ("system", "In German."), system="Be brief."),
        CHAT, 3, ("message 2: expected a text of user or assistant",)),
    FieldCase("sessions/own-prefill.json",
              session(("user", "hi"), ("assistant", "Sure, the an")), CHAT, 0),
    FieldCase("sessions/own-surrogate.json",
              session(("user", "hi \ud83d there"), ("assistant", "ho")), CHAT, 3,
              ("not valid Unicode",), (), b"again\n"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_talk(
    case: FieldCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_case(case, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "typed",
    [ASKED + b"\r\n", b"\xef\xbb\xbf" + ASKED + b"\n", (ASKED.decode() + "\r\n").encode("utf-16")],
    ids=["prompts/crlf.txt", "prompts/bom.txt", "prompts/utf16.txt"],
)
def test_a_prompt_from_any_editor_is_the_same(
    typed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts = []
    for i, data in enumerate((ASKED + b"\n", typed)):
        case = FieldCase("", template(TEMPLATE), "run MODEL --max-tokens 1 --json", 0, (), (), data)
        (tmp_path / str(i)).mkdir()
        printed = run_case(case, tmp_path / str(i), monkeypatch, capsys)
        record = json.loads(printed.splitlines()[0])
        counts.append((record["n_prompt"], record["text"]))
    assert counts[0] == counts[1]
