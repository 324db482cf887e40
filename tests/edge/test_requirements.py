"""Install lines: safe to paste, whole, and never the name that a stranger has on the index."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from boardfit.edge.cli import COMMANDS
from boardfit.edge.engines import ENGINES
from boardfit.edge.requirements import install_line, is_true_for, split_requirements

ROOT = Path(__file__).parents[2]
ENGINE_EXTRAS = tuple(engine.extra for engine in ENGINES.values())
EXTRAS = ("convert", "host", "report", "serve", "constrain", "train", "test", *ENGINE_EXTRAS)
# Ours by name on an index, in whatever words: pip, pipx, uv; the extra in brackets.
FORBIDDEN = re.compile(
    r"\b(?:pipx?|uv)\b[^\n`]{0,60}\b(?:install|download|wheel|add)\b[^\n`#]{0,80}?"
    r"""(?<![\w./@-])['"]?boardfit(?![\w./-])(?!'s)|\bboardfit\[""",
    re.IGNORECASE,
)


def requirements(line: str) -> list[Requirement]:
    """What pip reads in a line, options left out."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["pip", "install"], line
    return [Requirement(word) for word in words[2:] if not word.startswith("-")]


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_text_of_ours_asks_an_index_for_our_name() -> None:
    wrong = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.name == "pyproject.toml":  # pip knows that these are the project it installs
            text = re.sub(r'"boardfit\[[a-z,]+\]"', "", text)
        wrong += [f"{path.relative_to(ROOT)}: {m[0]}" for m in FORBIDDEN.finditer(text)]
    assert not wrong


@pytest.mark.parametrize(
    "text",
    ["pip install boardfit", "pip install 'boardfit[host]'", "python -m pip install -U boardfit",
     "pipx install boardfit", "uv add boardfit", "pip download boardfit==0.1",
     "the extra boardfit[onnx]", "uv pip install \"boardfit\""],
)  # fmt: skip
def test_the_search_finds_every_way_to_ask(text: str) -> None:
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize(
    "text",
    ["pip install -e '.[host]'", "pip install ./boardfit", "pip does not know boardfit's key"],
)
def test_the_search_leaves_the_rest_alone(text: str) -> None:
    assert not FORBIDDEN.search(text)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_line_names_what_the_metadata_states(extra: str) -> None:
    found = requirements(install_line(extra))
    assert found and all(r.name.lower() != "boardfit" and r.specifier for r in found if (
        not r.name.startswith("types-")
    ))  # fmt: skip
    stated = {
        (r.name.lower(), str(r.specifier))
        for r in map(Requirement, importlib.metadata.requires("boardfit") or [])
        if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
    }
    stated = {pair for pair in stated if pair[0] != "boardfit"}
    assert {(r.name.lower(), str(r.specifier)) for r in found} >= stated


def test_host_holds_what_its_parts_hold() -> None:
    host = {r.name for r in requirements(install_line("host"))}
    for part in ("convert", "llama"):
        assert {r.name for r in requirements(install_line(part))} < host


def test_extras_are_taken_apart_whoever_wrote_the_metadata() -> None:
    """setuptools leaves references to ourselves where hatchling resolves them."""
    base, extras = split_requirements(
        ["a>=1", "t; python_version < '3.11'", "b<2 ; extra == 'x'", 'c==3; extra == "x"',
         "BoardFit[x, z]; extra == 'y'", "d; extra == 'y'", "boardfit[y]; extra == 'z'",
         "e>=1; (python_version >= '3.9') and extra == 'z'"]
    )  # fmt: skip
    assert base == ("a>=1", "t; python_version < '3.11'")
    assert extras["x"] == ("b<2", "c==3")
    assert extras["z"] == ("b<2", "c==3", "d", "e>=1; python_version >= '3.9'")
    assert set(extras["y"]) == set(extras["z"])


def test_markers_are_those_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = ["old<2; python_version < '3.0' and extra == 'x'", "new; extra == 'x'",
              "odd; sys_platform == 'win32' and extra == 'x'"]  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: stated)
    assert install_line("x") == "pip install new 'odd; sys_platform == '\"'\"'win32'\"'\"''"
    assert [r.name for r in requirements(install_line("x"))] == ["new", "odd"]
    assert is_true_for("python_version >= '3.10'", (3, 10))
    assert not is_true_for("python_version != '3.10'", (3, 10))


def test_without_metadata_a_line_stays_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError("boardfit")

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    line = install_line("host")
    assert line.endswith("pip install -e '.[host]'") and not FORBIDDEN.search(line)


# ---- every place that gives one -----------------------------------------------------------------


def calls() -> list[tuple[str, list[str]]]:
    """Every call of `install_line`, with its constant arguments."""
    found = []
    for package in ("edge", "converters"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            constants = {
                t.id: node.value.value
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
                for t in node.targets
                if isinstance(t, ast.Name)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "install_line":
                    values = [
                        a.value if isinstance(a, ast.Constant) else constants.get(ast.unparse(a))
                        for a in node.args
                    ]
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    found.append((where, [v for v in values if isinstance(v, str)]))
    return found


@pytest.mark.parametrize(("where", "arguments"), calls())
def test_every_call_finds_its_packages(where: str, arguments: list[str]) -> None:
    if not arguments:  # an extra of a table: those are tried below
        return
    found = requirements(install_line(*arguments))
    assert {r.name for r in found} >= set(arguments[1:]), where


def test_tables_name_extras_that_exist() -> None:
    extras = {entry.extra for entry in COMMANDS.values() if entry.extra}
    extras |= {engine.extra for engine in ENGINES.values()}
    assert extras and extras <= set(EXTRAS)
    for engine in ENGINES.values():
        assert requirements(engine.pip_line)


def test_no_message_writes_a_pip_line_by_hand() -> None:
    """A version written twice is wrong once. tflite-runtime is in no extra."""
    wrong = []
    for package in ("edge", "converters"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                text = node.value if isinstance(node, ast.Constant) else None
                if not isinstance(text, str) or "pip install " not in text:
                    continue
                if re.search(r"pip install (-e '?\.|tflite-runtime|['a-z…>=]*` )", text):
                    continue
                if path.name != "requirements.py":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {text[:60]!r}")
    assert not wrong


@pytest.mark.parametrize("command", ["plan", "build", "push"])
def test_a_command_whose_packages_are_missing_gives_a_line_that_pip_can_read(
    command: str, tmp_path: Path
) -> None:
    """A process of its own in which no package of the host can be imported."""
    script = (
        "import sys\n"
        "for name in ('gguf', 'numpy', 'yaml', 'httpx', 'cryptography'):\n"
        "    sys.modules[name] = None\n"
        "from boardfit.edge.cli import main\n"
        f"main([{command!r}, '--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 5 and "Traceback" not in done.stderr
    line = next(x for x in done.stderr.splitlines() if x.strip().startswith("next:"))
    assert requirements(line.partition("next:")[2].strip())
