"""Where keys are pinned nothing unsigned is run, by whichever command and however it is named."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.cli import edge
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines import open_engine
from boardfit.edge.engines.model_file import built_file, model_file
from boardfit.edge.engines.target import open_model
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UnsafeInputError
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.slots.health import check_release
from boardfit.edge.slots.store import Slots
from boardfit.edge.trust import pins
from boardfit.edge.trust.pins import TRUSTED_KEYS, VARIABLE, format_trusted_keys, key_files
from boardfit.edge.trust.signing import SigningKey
from tests.edge.flash.cargo import make_bundle
from tests.edge.trust.real import OURS, THEIRS, real_bundle, says, scripted
from tests.edge.trust.test_one_descriptor import edit
from tests.edge.trust.test_pins import place_release
from tests.programs import require

ROOT = Path(__file__).parents[3]
Keys = tuple[SigningKey, SigningKey]


@pytest.fixture
def board(tmp_path: Path, keys: Keys) -> Path:
    """A board with one signed release that answers, and its key pinned."""
    bundle = real_bundle(tmp_path / "kit")
    sign_bundle(bundle, keys[0])
    root = tmp_path / "root"
    Slots(LocalFiles(root)).activate(place_release(bundle, root))
    (root / TRUSTED_KEYS).write_bytes(format_trusted_keys([keys[0].public]))
    return root


@pytest.fixture(params=["variable", "machine"])
def pinned(
    request: pytest.FixtureRequest, tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A key file that counts for everything here."""
    path = tmp_path / "accepted"
    if request.param == "machine":
        path = pins.SYSTEM_KEYS
        path.parent.mkdir()
    path.write_bytes(format_trusted_keys([keys[0].public]))
    if request.param == "variable":
        monkeypatch.setenv(VARIABLE, str(path))
    return path


# ---- every command -------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "run": lambda model: ["run", str(model), "x", "--raw"],
    "chat": lambda model: ["chat", str(model)],
    "bench": lambda model: ["bench", str(model), "--quick"],
    "bench a workload": lambda model: ["bench", str(model), "--workload", "mix"],
    "race": lambda model: ["race", str(model), str(model)],
    "imatrix": lambda model: ["imatrix", str(model), str(model), "-o", "out.gguf"],
    "rehearse": lambda model: ["rehearse", str(model)],
}
#: Exit codes of those that take bundles only, and say so of a plain file.
BUNDLES_ONLY = {"race": 2, "rehearse": 3}


@pytest.mark.engine
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("spelling", ["file", "link", "relative"])
@pytest.mark.usefixtures("pinned")
def test_no_command_runs_a_plain_file(
    tmp_path: Path, command: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scripted(tmp_path / "plain.gguf", THEIRS)
    if spelling == "link":
        (tmp_path / "a").symlink_to(model)
        model = tmp_path / "a"
    elif spelling == "relative":
        monkeypatch.chdir(tmp_path)
        model = Path("plain.gguf")
    result = CliRunner().invoke(edge, COMMANDS[command](model), standalone_mode=False)
    assert isinstance(result.exception, EdgeError), result.output
    assert result.exception.exit_code == BUNDLES_ONLY.get(command, 7)
    assert result.exception.next_step and THEIRS not in result.output


@pytest.mark.usefixtures("pinned")
def test_a_race_of_a_model_is_refused_before_it_builds(tmp_path: Path) -> None:
    result = CliRunner().invoke(edge, ["race", "sample", "--json"], standalone_mode=False)
    assert isinstance(result.exception, IntegrityError), result.output
    assert "builds unsigned bundles" in str(result.exception) and result.output == ""
    assert not (cache_directory() / "race").exists()


@pytest.mark.engine
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("pinned")
def test_no_command_runs_an_unsigned_bundle(tmp_path: Path, command: str) -> None:
    bundle = real_bundle(tmp_path / "unsigned", THEIRS)
    for named in (bundle, bundle / "model.gguf"):
        if command in (BUNDLES_ONLY if named != bundle else ("imatrix",)):
            continue
        result = CliRunner().invoke(edge, COMMANDS[command](named), standalone_mode=False)
        assert isinstance(result.exception, IntegrityError), result.output
        assert "is not signed" in str(result.exception), command


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_no_plain_network_is_measured(tmp_path: Path, suffix: str) -> None:
    from boardfit.edge.bench.network_runtime import open_network

    path = tmp_path / f"network.{suffix}"
    path.write_bytes(b"anything")
    for call in (lambda: open_network(path, 1), lambda: open_engine(suffix, path)):
        with pytest.raises(IntegrityError, match="plain file"):
            call()


@pytest.mark.usefixtures("pinned")
def test_no_folder_of_a_network_is_measured(tmp_path: Path) -> None:
    from boardfit.edge.bench.network_folder import open_network_folder

    (tmp_path / "network.json").write_text("{}")
    with pytest.raises(IntegrityError, match="plain file"):
        open_network_folder(tmp_path)


@pytest.mark.engine
@pytest.mark.usefixtures("pinned")
def test_the_health_gate_runs_nothing_unsigned(tmp_path: Path) -> None:
    health = check_release(real_bundle(tmp_path / "unsigned"))
    assert health.error_kind == "IntegrityError" and not health.text


@pytest.mark.engine
@pytest.mark.usefixtures("pinned")
def test_a_build_tries_what_it_has_made(tmp_path: Path) -> None:
    """Building is not running: what comes out has to be signed before it starts anywhere."""
    model = scripted(tmp_path / "made.gguf", OURS)
    open_engine("llama_cpp", built_file(model)).close()
    with pytest.raises(IntegrityError, match=r"made\.gguf is a plain file"):
        open_engine("llama_cpp", model)


@pytest.mark.engine
def test_the_command_leaves_with_7_and_one_line(board: Path) -> None:
    edit(board / "current/bundle/model.gguf", at=5000)
    for name in ("current/bundle", "current/bundle/model.gguf"):
        done = subprocess.run(
            [sys.executable, "-m", "boardfit", "run", str(board / name), "x", "--raw"],
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert done.returncode == 7 and not done.stdout
        assert "sha256 is" in done.stderr and len(done.stderr.splitlines()) == 2


# ---- however it is named -------------------------------------------------------------------------


@pytest.mark.engine
def test_a_file_of_a_bundle_is_that_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any pins: its plan, its hashes."""
    kit = real_bundle(tmp_path / "kit")
    (tmp_path / "link").symlink_to(kit / "model.gguf")
    (tmp_path / "folder").symlink_to(kit)
    monkeypatch.chdir(tmp_path)
    for name in ("kit/model.gguf", "link", "folder/model.gguf", "kit/../kit/./model.gguf"):
        opened = open_model(name)
        assert opened.bundle is not None and opened.bundle.path.samefile(kit)
        assert says(opened) == OURS
    edit(kit / "model.gguf", at=5000)
    for name in ("kit/model.gguf", "link", "folder/model.gguf"):
        with pytest.raises(IntegrityError, match="sha256 is"):
            open_model(name)


@pytest.mark.engine
def test_a_file_beside_an_honest_manifest_of_another_kind_is_plain(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    assert says(open_model(scripted(tmp_path / "m.gguf", OURS))) == OURS
    (tmp_path / "manifest.json").write_bytes(b"[" * 100_000)
    assert says(open_model(tmp_path / "m.gguf")) == OURS


@pytest.mark.engine
def test_another_file_in_a_bundle_is_not_run(tmp_path: Path) -> None:
    kit = make_bundle(tmp_path / "kit", {"model.gguf": b"w" * 100, "deep/b.gguf": b"other"})
    with pytest.raises(InputError, match="not its model"):
        open_model(kit / "deep/b.gguf")
    scripted(tmp_path / "kit/planted.gguf", THEIRS)
    with pytest.raises(UnsafeInputError, match="not listed"):
        open_model(kit / "planted.gguf")
    (kit / "planted.gguf").unlink()
    (kit / "model.gguf").rename(tmp_path / "aside")
    (kit / "model.gguf").symlink_to(scripted(tmp_path / "evil.gguf", THEIRS))
    with pytest.raises(UnsafeInputError, match="is a link"):
        open_model(kit / "model.gguf")


def spellings(root: Path, outside: Path) -> list[Path]:
    """Ways to name the current release's model."""
    real = (root / "current").resolve() / "bundle"
    outside.mkdir()
    (outside / "to model").symlink_to(root / "current/bundle/model.gguf")
    (outside / "to bundle").symlink_to(real)
    (outside / "to link").symlink_to(outside / "to bundle")
    (outside / "relative").symlink_to(os.path.relpath(real, outside))
    return [
        real,
        root / "current/bundle/",
        root / "releases/../current/bundle",
        outside / "to model",
        outside / "to bundle" / "model.gguf",
        outside / "to link",
        outside / "to link/../bundle",
        outside / "relative",
        Path(f"/proc/self/cwd/{os.path.relpath(real)}"),
    ]


@pytest.mark.engine
def test_pins_hold_however_the_path_is_spelled(
    board: Path, tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(board)
    ways = spellings(board, tmp_path / "outside")
    for way in ways:
        if way.exists():
            assert says(open_model(way)) == OURS
    monkeypatch.setattr(pins, "parse_trusted_keys", lambda data, place: (keys[1].public,))
    for way in ways:
        if way.exists():
            with pytest.raises(IntegrityError, match="is signed by"):
                open_model(way)
    assert sum(way.exists() for way in ways) >= len(ways) - 1


def test_a_plain_file_anywhere_on_a_board_is_refused(board: Path) -> None:
    for place in ("model.gguf", "results/a/b/c/model.gguf", "releases/model.gguf"):
        path = board / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"anything")
        with pytest.raises(IntegrityError, match="plain file"):
            model_file(path)


def test_a_bundle_deep_below_a_board_is_judged(board: Path) -> None:
    unsigned = make_bundle(board / "a/b/c/d/kit", {"model.gguf": b"w" * 100})
    with pytest.raises(IntegrityError, match="not signed"):
        open_model(unsigned)


def test_the_folder_of_every_link_on_the_way_counts(board: Path, tmp_path: Path) -> None:
    """ROOT/next leads out of the board: what is started through it is still the board's."""
    unsigned = make_bundle(tmp_path / "elsewhere/kit", {"model.gguf": b"w" * 100})
    (board / "next").symlink_to(unsigned.parent)
    (tmp_path / "way").symlink_to(board / "next")
    for path in (tmp_path / "way/kit", tmp_path / "way/kit/model.gguf"):
        assert board / TRUSTED_KEYS in [p.resolve() for p in key_files(path)]
    assert board / TRUSTED_KEYS not in key_files(unsigned)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert isinstance(key_files(tmp_path / "loop" / "x"), list)  # and it ends


MOUNTED = """
import sys; sys.path.insert(0, {root!r})
from boardfit.edge.trust import pins
print(*pins.key_files(pins.Path({inside!r})))
"""


def test_a_bind_mount_is_judged_by_what_is_mounted(board: Path, tmp_path: Path) -> None:
    """In a mount namespace of its own, which goes with the process."""
    require("unshare", "mount")
    mounted = tmp_path / "mounted here"
    mounted.mkdir()
    script = MOUNTED.format(root=f"{ROOT}/src", inside=str(mounted))
    quoted = [str(board / "current/bundle"), str(mounted), sys.executable, script]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount --bind "$1" "$2" && exec "$3" -c "$4"', "sh", *quoted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("no mounts can be made here")
    assert done.stdout.strip() == str(board / TRUSTED_KEYS), done.stderr


# ---- no other door -------------------------------------------------------------------------------

#: Who may hand a file to which native loader. A new row is a new door: it must take an `OpenedFile`
#: that came through `boardfit.edge.engines.model_file`, `Bundle.open` or, in a build, `built_file`.
LOADERS = {
    "llama_model_load_from_file": {
        "edge/engines/llama/context.py",
        "converters/imatrix/collect.py",
        "converters/tokenizers/engine_vocab.py",  # the vocabulary of what a build has made
    },
    "OgaCreateConfig": {"edge/engines/onnx/decoder.py"},
    "LiteRtCreateModelFromBuffer": {"edge/engines/litert/graph.py"},
    "InferenceSession": {
        "edge/bench/network_runtime.py",
        "converters/formats/network/worker/onnx.py",  # workers of builds
    },
    "Interpreter": {
        "edge/bench/network_runtime.py",
        "edge/engines/litert/interpreter_graph.py",
        "converters/formats/network/worker/tflite.py",
    },
}
#: The only ones that open what no key was asked for.
BUILDERS = {
    "converters/build/build.py",
    "converters/quality/card.py",
    "converters/quality/reference.py",
    "converters/quality/building.py",
    "converters/build/verify.py",
}


def mentions(name: str) -> set[str]:
    """Files of ours whose code names a function, as a call, an attribute or a string."""
    found = set()
    for package in ("edge", "converters"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                words = (
                    getattr(node, "attr", None), getattr(node, "id", None),
                    getattr(node, "value", None) if isinstance(node, ast.Constant) else None,
                )  # fmt: skip
                if name in words:
                    found.add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("loader", LOADERS)
def test_native_loaders_have_no_other_caller(loader: str) -> None:
    bindings = {"edge/engines/onnx/library.py", "edge/engines/litert/library.py"}
    assert mentions(loader) - bindings == LOADERS[loader]


def test_only_builds_open_what_they_made() -> None:
    assert mentions("built_file") == BUILDERS


def test_engines_are_opened_in_one_place() -> None:
    """`SomeEngine.open(…)` without the door."""
    found = set()
    for package in ("edge", "converters"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr == "open":
                    name = getattr(node.value, "id", "")
                    if name.endswith(("Engine", "engine_class")):
                        found.add(str(path.relative_to(ROOT)))
    assert found == {"edge/engines/__init__.py"}
