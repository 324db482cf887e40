"""Commands that a user may copy from a `next:` line."""

from __future__ import annotations

import shlex

import pytest

from boardfit.edge.terminal.output import shell_line


@pytest.mark.parametrize("path", ["out", "my bundle", "$(touch x)", "it's", "; rm -rf ~", "a\\b"])
def test_a_path_is_one_word_for_a_shell(path: str) -> None:
    assert shlex.split(shell_line("edge", "chat", path)) == ["edge", "chat", path]


def test_a_command_steers_no_terminal_and_is_one_line() -> None:
    line = shell_line("edge", "flash", "BUNDLE", "adb://\x1b]0;x\x07\nrm")
    assert "\x1b" not in line and "\n" not in line and " BUNDLE " in line
