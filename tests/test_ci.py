"""CI installs what the tests ask for: on a fresh machine no test may end in "apt-get install"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import programs

TESTS = Path(__file__).parent
RUN = TESTS.parent / ".ci" / "run"
#: Not asked for by a test: what other programs of the list use, and scripts/build_engine.
ALSO = {"arch-test", "g++", "python3-venv", "rsync", "xz-utils"}
#: On every system that has a shell.
BASE = {"cp", "sh", "sleep", "true"}
OWN = ("programs.py", Path(__file__).name)


def installed() -> list[str]:
    """The packages in `.ci/run`."""
    found = re.search(r"apt-get install ((?:[^\n>]|\\\n)*)>", RUN.read_text())
    assert found
    words = found[1].replace("\\\n", " ").split()
    return [word for word in words if not word.startswith("-")]


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted(TESTS.rglob("*.py")):
        if path.name not in OWN:
            yield path.relative_to(TESTS), ast.parse(path.read_text())


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


def test_ci_installs_what_tests_ask_for_and_nothing_else() -> None:
    packages = installed()
    assert len(packages) == len(set(packages))
    assert set(packages) == {*programs.PACKAGES.values(), *ALSO}


def test_every_program_that_a_test_names_has_a_package() -> None:
    """What is asked for, and what is started by a plain name."""
    named: dict[str, str] = {}
    for path, tree in trees():
        of_images = path.parent.name == "media"  # `run` of images.py
        for name, call in calls(tree):
            first = call.args[0] if call.args else None
            if isinstance(first, (ast.List, ast.Tuple)) and first.elts:
                first = first.elts[0]
            is_subprocess = ast.unparse(call.func).startswith("subprocess.")
            started = is_subprocess or (name == "run" and of_images)
            for word in call.args if name == "require" else [first] if started else []:
                if isinstance(word, ast.Constant) and re.fullmatch(r"[\w.+-]+", str(word.value)):
                    named[str(word.value)] = f"{path}:{call.lineno}"
    assert {"sfdisk", "unshare", "mmdebstrap"} <= set(named), "the search finds them"
    assert not set(named) - {*programs.PACKAGES, *BASE}, named
    text = " ".join(path.read_text() for path in TESTS.rglob("*.py") if path.name not in OWN)
    assert not [name for name in programs.PACKAGES if f'"{name}' not in text], "no longer used"


def test_tests_ask_through_one_door() -> None:
    """Who asks in another way is not compared with what CI installs."""
    wrong = []
    for path, tree in trees():
        for name, call in calls(tree):
            text = ast.unparse(call)
            if name == "which" or (name in ("skip", "fail", "skipif") and "apt-get" in text):
                wrong.append(f"{path}:{call.lineno} {text[:80]}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value == "CI" and path.name != "conftest.py":
                wrong.append(f"{path}:{node.lineno} asks whether this is CI")
    assert not wrong


def test_a_missing_program_skips_here_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "find", lambda _: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs toybox, dash: apt-get install toybox"):
        programs.require("toybox", "dash")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"apt-get install mtools$"):
        programs.require("mcopy", "mtype")
    with pytest.raises(KeyError):
        programs.require("a-program-of-no-package")


def test_what_is_there_is_found() -> None:
    programs.require("bash")
    assert programs.find("sh") and not programs.find("no-such-program")
