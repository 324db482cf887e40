"""The house rules of CONTRIBUTING.md, checked: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STDLIB = {*sys.stdlib_module_names, "tomllib"}  # tomllib: imported where it exists, from 3.11

# Module-level third-party imports that each room may have.
ALLOWED = {
    "device_profiles": {"tomli"},
    "edge": {"click", "psutil", "boardfit.device_profiles", "tomli"},
    "converters": {
        *("click", "psutil", "numpy", "gguf", "tokenizers", "sentencepiece", "huggingface_hub"),
        *("yaml", "tqdm", "jinja2", "tomli", "httpx"),
        *("boardfit.edge", "boardfit.device_profiles"),
    },
}
# What may be imported nowhere outside these files, not even inside a function.
NEVER_IN_EDGE = {
    *("boardfit.converters", "torch", "transformers", "gguf", "tokenizers", "sentencepiece")
}
# Engines whose file is a checkpoint's tokenizer.json bring its library, inside a function.
EXCEPT = {("edge/engines/hf_tokenizer.py", "tokenizers")}
# Rooms of edge in the order in which they may know each other; earlier never imports later.
ORDER = (
    ("errors", "units", "last_words", "search_path", "child", "option_groups"),
    ("input_folder", "requirements"),
    ("types", "atomic", "rooted", "ggml_types", "opened_file", "filekind", "terminal"),
    ("interrupt", "line_reader", "live"),
    ("gguf", "onnx_file", "safetensors", "verified", "secret", "bundle", "trust"),
    ("quality_text", "probe"),
    ("template", "template_limits", "template_lint", "template_sandbox"),
    ("engines", "deadline"),
    ("states",),
    ("session", "tasks"),
    ("admission",),
    ("timed_session",),
    ("timed_open",),
    ("model", "model_options", "chat_stats", "chat", "run", "bench", "report"),
    ("devices_command", "bundle_pair", "states_command"),
    ("bundle_command",),
    ("race", "watch"),
    ("slots",),
    ("flash",),
    ("cli", "api"),
    ("supervisor",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def top_of(name: str) -> str:
    """`click` of click.testing; of ours, the package: `boardfit.edge` of boardfit.edge.cli."""
    return ".".join(name.split(".")[: 2 if name.startswith("boardfit.") else 1])


def imported(tree: ast.AST, *, module_level: bool) -> set[str]:
    """Dotted names imported in a file; at module level only, TYPE_CHECKING blocks left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                ours = child.module in ("boardfit", "boardfit.edge")
                names.update(
                    f"{child.module}.{alias.name}" if ours else child.module
                    for alias in child.names
                )
            elif (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)) or (
                module_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            ):
                continue
            else:
                visit(child)

    visit(tree)
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_module_level_imports_stay_in_their_room(package: str) -> None:
    wrong = []
    for path in python_files(package):
        for name in imported(ast.parse(path.read_text()), module_level=True):
            top, own = top_of(name), f"boardfit.{package}"
            training = "sample" in path.parts and top in {"torch", "safetensors"}
            # Workers run in the pinned environments of converters/formats/tools/environments.toml.
            worker = path.parent.name == "worker"
            if top not in STDLIB | ALLOWED[package] | {own} and not (training or worker):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_edge_never_imports_the_host_side() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files("edge")
        for name in imported(ast.parse(path.read_text()), module_level=False)
        if top_of(name) in NEVER_IN_EDGE and (str(path.relative_to(ROOT)), name) not in EXCEPT
    ]
    assert not wrong, wrong


def test_rooms_of_edge_import_downwards_only() -> None:
    wrong = []
    for path in python_files("edge"):
        room = path.relative_to(ROOT / "edge").parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        assert room in LEVEL, f"edge/{room} has no place in the order above: give it one"
        for name in imported(ast.parse(path.read_text()), module_level=False):
            parts = name.removeprefix("boardfit.").split(".")
            if parts[0] == "edge" and LEVEL.get(parts[1], -1) > LEVEL[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_report_reads_stored_results_and_never_an_engine() -> None:
    for path in python_files("edge/report"):
        names = imported(ast.parse(path.read_text()), module_level=False)
        assert not {name for name in names if name.startswith("boardfit.edge.engines")}, path


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import boardfit", set()),
        ("from boardfit import edge, errors", set()),
        ("import boardfit.edge.cli", {"click"}),
    ],
)
def test_importing_stays_light(code: str, extra: set[str]) -> None:
    """In a fresh interpreter, without site packages' own start-up imports being blamed on us."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    tops = {top_of(name) for name in output.split()}
    loaded = {top for top in tops if top not in STDLIB and not top.startswith("_")}
    assert loaded <= {"boardfit", "boardfit.edge", "boardfit.device_profiles", *extra}, loaded


def test_help_imports_no_command() -> None:
    script = (
        "import sys\nfrom boardfit.edge.cli import edge\n"
        "edge.main(['--help'], standalone_mode=False)\n"
        "print('LOADED', *sorted(m for m in sys.modules if m.startswith('boardfit')))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    loaded = set(output.split("LOADED", 1)[1].split())
    assert loaded <= {
        "boardfit",
        "boardfit.edge",
        "boardfit.edge.cli",
        "boardfit.edge.errors",
        "boardfit.edge.process.search_path",
        "boardfit.edge.units",
    }
    assert "build" in output and "chat" in output
