"""`import boardfit`: the names that it exports, what they cost, and the page that explains them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import boardfit

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/python-api.md"
NAMES = ["bench", "build", "devices", "errors", "flash", "open", "plan", "serve"]


def test_these_names_are_exported_and_no_others() -> None:
    assert sorted(boardfit.__all__) == NAMES
    assert dir(boardfit) == ["__version__", *NAMES]
    for name in NAMES:
        assert getattr(boardfit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'chat'"):
        boardfit.chat  # type: ignore[attr-defined]  # noqa: B018


def test_types_and_values_come_from_one_place() -> None:
    """What a type checker reads of the face is what runs."""
    face = ast.parse((ROOT / "src/boardfit/__init__.py").read_text())
    stated = {
        alias.name: node.module
        for node in ast.walk(face)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boardfit")
        for alias in node.names
    }
    for name in NAMES:
        module, _, attribute = boardfit._WHERE[name][0].partition(":")
        assert f"{stated[name]}.{name}" == (f"{module}.{attribute}" if attribute else module)


def test_a_program_can_be_checked_against_it(tmp_path: Path) -> None:
    """py.typed is found, and the names are not `Any`."""
    program = tmp_path / "program.py"
    program.write_text(
        "import boardfit\nwith boardfit.open('x') as m:\n    m.chat(1, within=2)\nboardfit.chat\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'Unexpected keyword argument "within" for "chat" of "Model"' in done.stdout
    assert 'Module has no attribute "chat"' in done.stdout
    assert 'Argument 1 to "chat" of "Model"' in done.stdout and "py.typed" not in done.stdout


def test_importing_it_is_quick() -> None:
    """30 ms are promised; the best of five leaves a busy machine room."""
    script = "import time; a = time.perf_counter(); import boardfit; print(time.perf_counter() - a)"
    command = [sys.executable, "-c", script]
    times = [float(subprocess.check_output(command, cwd=ROOT)) for _ in range(5)]
    assert min(times) < 0.030


def blocks(text: str) -> str:
    """The indented blocks of a page as one program."""
    lines = text.split("\n")
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


@pytest.mark.engine
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks(PAGE.read_text())],
        cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for expected in ("edgekit-assistant", "Sample", '"room":"kitchen"', "met, ", "edge report"):
        assert expected in done.stdout, done.stdout
    assert "no such file or directory: 'nothing-here' → give a bundle" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"kit", "card", "results.jsonl"}
