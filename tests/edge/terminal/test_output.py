"""The one door to the terminal, and commands that a user may copy from a `next:` line."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.terminal.output import echo, json_line, shell_line, terminal_safe
from boardfit.edge.terminal.progress import TerminalReporter


@pytest.mark.parametrize("path", ["out", "my bundle", "$(touch x)", "it's", "; rm -rf ~", "a\\b"])
def test_a_path_is_one_word_for_a_shell(path: str) -> None:
    assert shlex.split(shell_line("edge", "chat", path)) == ["edge", "chat", path]


def test_a_command_steers_no_terminal_and_is_one_line() -> None:
    line = shell_line("edge", "flash", "BUNDLE", "adb://\x1b]0;x\x07\nrm")
    assert "\x1b" not in line and "\n" not in line and " BUNDLE " in line


ROOT = Path(__file__).parents[3]
#: Who may print without `echo`, and why.
EXCEPTIONS = {
    "edge/terminal/output.py": "the door itself",
    "edge/terminal/progress.py": "moves the cursor, around text that is made safe",
    "edge/cli.py": "colours the word error, in front of text that is made printable",
    "edge/probe/measure.py": "answers its parent through a pipe",
    "edge/probe/proof.py": "answers its parent through a pipe",
    "edge/probe/kernels.py": "answers its parent through a pipe",
    "edge/probe/proof_kernels.py": "answers its parent through a pipe",
    "edge/race/child.py": "answers its parent through a pipe",
    "converters/board/rehearse/guest.py": "answers its parent through a pipe",
    "converters/board/offline/board/install.py": "runs on a board that has no boardfit yet",
}
_PRINTS = {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}


def printing_calls(text: str) -> list[str]:
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [name for call in calls if (name := ast.unparse(call)) in _PRINTS]


def test_text_is_printed_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\x1b[2J\tb\nc\x07", err=True)
    assert capsys.readouterr().err == "a\\x1b[2J\tb\nc\\x07\n"
    assert printing_calls("def f():\n    click.echo(x)\n") == ["click.echo"]
    files = [path for room in ("edge", "converters", "device_profiles")
             for path in (ROOT / room).rglob("*.py")]  # fmt: skip
    around = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if printing_calls(path.read_text(encoding="utf-8"))
    }
    assert around <= set(EXCEPTIONS), "print with terminal.output.echo"
    assert around == set(EXCEPTIONS), "an exception is needed no more"


@given(st.text(max_size=60))
def test_a_line_of_json_is_its_value_and_steers_nothing(text: str) -> None:
    line = json_line({"text": text, "more": "é\x9b2J\u202e\x7f"})
    assert terminal_safe(line) == line and "é" in line
    assert json.loads(line)["text"] == text


def test_progress_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter() as reporter:
        reporter.stage("reading a\x1b]0;x\x07")
        reporter.say("of\x1b[2J b")
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and "\x07" not in shown and "a\\x1b]0;x" in shown
