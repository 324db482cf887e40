"""README's commands, run as they are written, in an empty folder with a home of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What does not run here, and why.
NOT_RUN = {
    "scripts/demo": "needs a package index; CI runs it",
    "scripts/test": "runs this test",
}
TYPED = {"edge chat": "who are you?\n/stats\n"}
JOBS = {"devices", "plan", "build", "flash", "run", "chat", "bench", "report"}


def recorded() -> list[str]:
    """Commands of the recording: behind `$` in a fence."""
    fences = re.findall(r"^```.*\n((?:.*\n)*?)```$", README, re.MULTILINE)
    return [line[2:] for fence in fences for line in fence.split("\n") if line[:2] == "$ "]


def indented() -> list[str]:
    """Commands of the indented blocks, a line each; a block of Python is one command."""
    commands = []
    for block in re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", README, re.MULTILINE):
        lines = [line[4:] for line in block.rstrip().split("\n")]
        commands += ["\n".join(lines)] if lines[0].startswith("import ") else lines
    return [re.sub(r"  +# .*", "", command) for command in commands]


def run(command: str, folder: Path, home: Path) -> str:
    is_python = command.startswith("import ")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BOARDFIT_", "XDG_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable if is_python else "bash", "-c", command],
        cwd=folder,
        env={**kept, "PATH": path, "HOME": str(home)},
        input=next((text for start, text in TYPED.items() if command.startswith(start)), ""),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def test_what_is_not_run_is_in_the_readme() -> None:
    assert set(NOT_RUN) <= {*indented(), *recorded()}
    assert {words.split()[1] for words in indented() if words.startswith("edge ")} == JOBS


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("read", [recorded, indented])
def test_the_commands_run_as_written(read: Callable[[], list[str]], tmp_path: Path) -> None:
    folder, home = tmp_path / "empty", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for command in read():
        if command not in NOT_RUN:
            printed = run(command, folder, home)
            assert printed or command.startswith("mkdir "), f"{command} printed nothing"
    assert {path.name for path in folder.iterdir()} <= {"out", "results.jsonl", "report.html"}
