"""A case of the field: an input as people have it, a whole command, and its verdict.

A row of a table is a case: what is written, the command, its exit code, words that its output
must have, words that it must not have, and what comes through the pipe. `MODEL` in a command stands
for the path that the case has written, and `GGUF` for `m.gguf` beside it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import huggingface_hub.constants  # noqa: F401 - reads the environment once, before a test sets it
import pytest

from boardfit.edge.cli import main
from tests.programs import skip_or_fail

PLAN = "plan MODEL -d raspberry-pi-5-8gb"
BUILD = "build MODEL -d raspberry-pi-5-8gb --no-quality -o OUT"
MEASURED = "build MODEL -d raspberry-pi-5-8gb --quality-text TEXT -o OUT"
RUN = "run MODEL hello --max-tokens 2"
OFFLINE = "plan someone/base-1b -d raspberry-pi-5-8gb"


Write = Callable[[Path], None]


class FieldCase(NamedTuple):
    """`write` makes the input below a folder and returns the path that the command gets."""

    name: str
    write: Callable[[Path], Path]
    command: str
    exit_code: int
    words: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    typed: bytes = b""


def folder(write: Callable[[Path], object], name: str = "model") -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        path = place / name
        path.mkdir(parents=True)
        write(path)
        return path

    return make


def file(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        return path

    return make


def run_case(
    case: FieldCase,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """Run the command of a case, hold it to its verdict and return what it printed."""
    if not case.command.startswith("plan") and find_spec("llama_cpp") is None:
        skip_or_fail("llama-cpp-python is not installed: pip install -e '.[llama]'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "cache" / "hub"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(case.typed)))
    model = case.write(place)
    text = place / "text.txt"
    text.write_text("The light in the kitchen is on, and the one in the hall is off. " * 80)
    places = {
        "MODEL": str(model),
        "LORA": str(model / "lora"),
        "OUT": str(place / "bundle"),
        "TEXT": str(text),
    }
    places["GGUF"] = str(place / "m.gguf")
    with pytest.raises(SystemExit) as left:
        main([places.get(word, word) for word in case.command.split()])
    printed = "".join(capsys.readouterr())
    assert left.value.code == case.exit_code, printed
    for word in case.words:
        assert word in printed, printed
    for word in ("this is a bug", "Traceback", *case.absent):
        assert word not in printed, printed
    return printed
