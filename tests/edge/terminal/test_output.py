"""Commands that a user may copy from a `next:` line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from boardfit.edge.terminal.output import echo, shell_line


@pytest.mark.parametrize("path", ["out", "my bundle", "$(touch x)", "it's", "; rm -rf ~", "a\\b"])
def test_a_path_is_one_word_for_a_shell(path: str) -> None:
    assert shlex.split(shell_line("edge", "chat", path)) == ["edge", "chat", path]


def test_a_command_steers_no_terminal_and_is_one_line() -> None:
    line = shell_line("edge", "flash", "BUNDLE", "adb://\x1b]0;x\x07\nrm")
    assert "\x1b" not in line and "\n" not in line and " BUNDLE " in line


ROOT = Path(__file__).parents[3]
#: Commands that print names of boards, servers and result files.
ROOMS = ("edge/flash", "edge/report", "converters/oci")


def test_text_of_others_is_printed_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\x1b[2J\tb\nc\x07", err=True)
    assert capsys.readouterr().err == "a\\x1b[2J\tb\nc\\x07\n"
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    around = [str(path) for path in files if "click.echo(" in path.read_text()]
    assert files and not around, f"print with terminal.output.echo: {around}"
