"""Text as editors, shells and pipes write it: one reader gives one text."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from boardfit.edge.chat.line_reader import LineReader
from boardfit.edge.chat.run_command import read_prompt
from boardfit.edge.errors import InputError
from boardfit.edge.files.text import decode_text
from boardfit.edge.tasks.use import read_text

TEXT = "set a timer\nfor ten minutes – 😀\n"
SAME = [
    TEXT.encode(),
    TEXT.replace("\n", "\r\n").encode(),
    TEXT.replace("\n", "\r").encode(),
    TEXT.encode("utf-8-sig"),
    TEXT.encode("utf-16"),
    b"\xfe\xff" + TEXT.replace("\n", "\r\n").encode("utf-16-be"),
    TEXT.encode("utf-32"),
]
NO_TEXT = [b"a\0b", b"\xff\xfea", b"\xffoops", "a".encode("utf-16-le"), b"\xef\xbb\xbf\xff"]


class Pipe(io.TextIOWrapper):
    """Standard input of these bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BufferedReader(io.BytesIO(data)), encoding="ascii")


@pytest.mark.parametrize("data", SAME)
def test_every_way_to_write_a_text_is_read_alike(
    data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert decode_text(data, "it") == TEXT
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    assert read_prompt("-") == TEXT
    file = tmp_path / "text.txt"
    file.write_bytes(data)
    assert read_text(file) == TEXT
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    reader = LineReader()
    assert [reader.message(), reader.message()] == TEXT.splitlines()


@pytest.mark.parametrize("data", NO_TEXT)
def test_what_is_no_text_is_refused(
    data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"text|NUL"):
        decode_text(data, "it")
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    with pytest.raises(InputError):
        LineReader().message()


def test_a_prompt_that_the_shell_passed_as_bytes() -> None:
    with pytest.raises(InputError, match="the prompt is not valid Unicode at character 4"):
        read_prompt("bad \udcff")
    assert read_prompt("one\r\ntwo") == "one\ntwo"
