"""The house rules of CONTRIBUTING.md, checked: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Collection, Mapping
from itertools import chain
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
# What one room alone may import, since nobody enters it without asking for it.
ROOMS_OWN = {"edge/serve": {"uvicorn"}}
# What may be imported nowhere outside these files, not even inside a function.
NEVER_IN_EDGE = {
    *("boardfit.converters", "torch", "transformers", "gguf", "tokenizers", "sentencepiece")
}
# Engines whose file is a checkpoint's tokenizer.json bring its library, inside a function.
EXCEPT = {("edge/engines/hf_tokenizer.py", "tokenizers")}
# Rooms of each package, a row at a time: a room imports from its own row and from those above it.
ORDER = {
    "device_profiles": (
        "profile shape toml_parser",
        "cost engine_rules models spellings toml",
        "catalog text",
    ),
    "edge": (
        "errors fields units",
        "requirements terminal types",
        "disk process template",
        "cli deadline files trust",
        "bundle probe supervisor tasks",
        "engines",
        "states",
        "chat",
        "bench report serve slots",
        "watch",
        "flash race",
        "api",
    ),
    "converters": (
        "board documents oci sample spec",
        "families gguf_packing",
        "tokenizers",
        "source",
        "formats",
        "imatrix plan quality",
        "build",
        "api",
    ),
}
LEVEL = {
    package: {room: level for level, row in enumerate(rows) for room in row.split()}
    for package, rows in ORDER.items()
}
Arrows = Mapping[str, Collection[str]]


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
            # Workers run in the pinned environments of converters/formats/tools/environments.toml.
            worker = path.parent.name == "worker"
            allowed = ALLOWED[package] | ROOMS_OWN.get(f"{package}/{path.parent.name}", set())
            if top not in STDLIB | allowed | {own} and not worker:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


@pytest.mark.parametrize("package", ALLOWED)
def test_nothing_shipped_imports_the_laboratory(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(package)
        for name in imported(ast.parse(path.read_text()), module_level=False)
        if top_of(name) == "lab"
    ]
    assert not wrong, wrong


def test_edge_never_imports_the_host_side() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files("edge")
        for name in imported(ast.parse(path.read_text()), module_level=False)
        if top_of(name) in NEVER_IN_EDGE and (str(path.relative_to(ROOT)), name) not in EXCEPT
    ]
    assert not wrong, wrong


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name. A package's name stands for its `__init__`."""
    files = [*(ROOT / "src/boardfit").glob("*.py"), *chain(*map(python_files, ORDER))]
    names = (path.relative_to(ROOT).as_posix().removeprefix("src/boardfit/") for path in files)
    dotted = (f"boardfit.{name.removesuffix('.py')}".replace("/", ".") for name in names)
    return {n.removesuffix(".__init__"): f for n, f in zip(dotted, files, strict=True)}


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def our_imports(module: str, text: str, known: Collection[str]) -> set[str]:
    """The modules of ours that a text imports: anywhere, in functions and for types too."""
    found: set[str] = set()
    # Dots of a relative import count from the module's folder: a package is its own.
    parts = [*module.split("."), *(["__init__"] if is_package(module) else [])]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = parts[: -node.level] if node.level else []
            base = ".".join([*home, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in known else base)
    return (found & set(known)) - {module}


@functools.cache
def graph() -> Arrows:
    known = modules()
    return {name: our_imports(name, path.read_text(), known) for name, path in known.items()}


def find_circles(arrows: Arrows) -> set[frozenset[str]]:
    """Sets of names that reach each other, and themselves, along the arrows."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        todo, reach[start] = [start], set()
        while todo:
            new = set(arrows.get(todo.pop(), ())) - reach[start]
            reach[start] |= new
            todo += new
    return {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in arrows
        if name in reach[name]
    }


def room_of(module: str, folder: str) -> str:
    """The entry of a folder that a module lies in; `__init__` is the folder's own."""
    return module.removeprefix(folder).strip(".").split(".")[0] or "__init__"


def arrows_inside(folder: str) -> list[tuple[str, str]]:
    """Imports from one entry of a folder to another, as pairs of modules."""
    inside = [name for name in graph() if name == folder or name.startswith(f"{folder}.")]
    return [
        (module, target)
        for module in inside
        for target in graph()[module]
        if target in inside and room_of(module, folder) != room_of(target, folder)
    ]


def test_no_module_is_in_a_circle() -> None:
    found = find_circles(graph())
    circles = [
        sorted(f"{a} → {b}" for a in circle for b in set(graph()[a]) & circle) for circle in found
    ]
    assert not circles, circles


def test_no_entry_of_a_folder_is_in_a_circle() -> None:
    """Files and folders side by side have an order. The packages' own is written above."""
    folders = {name.rpartition(".")[0] for name in graph() if name.count(".") > 2}
    wrong = []
    for folder in sorted(folders):
        arrows: dict[str, set[str]] = {}
        for module, target in arrows_inside(folder):
            arrows.setdefault(room_of(module, folder), set()).add(room_of(target, folder))
        wrong += [(folder, sorted(circle)) for circle in find_circles(arrows)]
    assert not wrong, wrong


@pytest.mark.parametrize("package", ORDER)
def test_rooms_import_downwards_only(package: str) -> None:
    folder, level = f"boardfit.{package}", {"__init__": -1, **LEVEL[package]}
    rooms = {room_of(name, folder) for name in graph() if name.startswith(f"{folder}.")}
    assert rooms - {"__main__"} == set(LEVEL[package]), "each room has one place in the order above"
    wrong = [
        f"{module} imports {target}"
        for module, target in arrows_inside(folder)
        if room_of(module, folder) in LEVEL[package]
        and level[room_of(target, folder)] > level[room_of(module, folder)]
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "text",
    [
        "import boardfit.edge.units",
        "from boardfit.edge import units",
        "from boardfit.edge.units import printable",
        "def late() -> None:\n    from boardfit.edge.units import printable",
        "if TYPE_CHECKING:\n    from boardfit.edge.units import printable",
        "from . import units",
        "from .units import printable",
    ],
)
def test_every_way_to_import_is_seen(text: str) -> None:
    assert our_imports("boardfit.edge.errors", text, modules()) == {"boardfit.edge.units"}
    assert our_imports("boardfit.edge", text, modules()) == {"boardfit.edge.units"}


def test_a_name_of_a_package_is_its_init() -> None:
    text = "from boardfit.edge.files.gguf import read_header"
    assert our_imports("boardfit.edge.cli", text, modules()) == {"boardfit.edge.files.gguf"}
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str]()}
    assert find_circles(arrows) == {frozenset("bc")}


def test_scripts_import_what_is_there() -> None:
    """mypy does not read files without a suffix."""
    absent = []
    for script in sorted((ROOT / "scripts").iterdir()):
        if not script.is_file() or b"python" not in script.read_bytes()[:64]:
            continue
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boardfit."):
                module = importlib.import_module(str(node.module))
                absent += [
                    f"{script.name}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name)
                    and not importlib.util.find_spec(f"{node.module}.{alias.name}")
                ]
    assert not absent


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
        "boardfit.edge.process",
        "boardfit.edge.process.search_path",
        "boardfit.edge.units",
    }
    assert "build" in output and "chat" in output
