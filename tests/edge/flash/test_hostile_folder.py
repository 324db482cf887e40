"""Commands that are run in a folder full of a stranger's files run and read none of them.

A hook of Python's own (sys.addaudithook) lists every process that a command starts and every file
that it opens, so that a new call site is covered by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.bundle.bundle import seal_bundle
from tests.edge.flash.boards import edge_command
from tests.edge.flash.cargo import PLAN
from tests.edge.flash.media.images import PROGRAMS, make_image
from tests.programs import require

# Started with a path without the current folder; then our environment turns hostile.
START = """
import sys
sys.path[:] = [place for place in sys.path if place[:1] == "/"]
import json, os
log = os.environ.pop("TEST_LOG")
os.environ.update(json.loads(os.environ.pop("TEST_VARIABLES")))
STARTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "pty.spawn")

def text(value):
    if isinstance(value, (list, tuple)):
        return [text(one) for one in value]
    return {text(k): text(v) for k, v in value.items()} if hasattr(value, "items") else (
        value if value is None or isinstance(value, (int, str)) else os.fsdecode(value)
        if isinstance(value, (bytes, os.PathLike)) else repr(value))

def watch(event, arguments):
    if event in STARTS or event in ("open", "ctypes.dlopen") and arguments[0] != log:
        entry = [event, text(arguments)]
        if event in STARTS:
            entry += [text(os.environ), os.getcwd()]
        # Opened anew each time: a fork may have closed every descriptor.
        file = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.write(file, (json.dumps(entry) + "\\n").encode())
        os.close(file)

sys.addaudithook(watch)
sys.argv[0] = "edge"
exec(os.environ.pop("TEST_CODE"))
"""
EDGE = "from boardfit.edge.cli import main; main()"

MODULES = (
    "boardfit",
    *("psutil", "json", "click", "edge", "site", "sitecustomize", "usercustomize", "pip", "venv"),
    *("runpy", "encodings", "os", "numpy", "llama_cpp", "jinja2", "converters", "device_profiles"),
    *("matplotlib", "ensurepip", "subprocess", "__main__", "conftest"),
)
PACKAGES = ("boardfit", "edge", "encodings", "venv", "pip", "converters", "llama_cpp", "psutil")
PROGRAMS_THERE = (
    *("ssh", "sh", "adb", "rsync", "git", "docker-credential-x", "python3", "python"),
    *("uname", "fc-list", "lsblk", "debugfs", "e2fsck", "resize2fs", "dumpe2fs", "openssl"),
    *("mcopy", "zstd", "cmake", "ninja", "aarch64-linux-gnu-g++", "gcc", "qemu-aarch64-static"),
    *("proot", "unshare", "mmdebstrap", "systemd-run", "getconf", "vcgencmd", "ldconfig", "env"),
    *("readlink", "dirname", "gdb", "ld", "cc", "latex", "getprop", "tegrastats", "file", "stty"),
)
CONFIGURATION = (
    *("matplotlibrc", "pyproject.toml", "pip.conf", "setup.cfg", "pyvenv.cfg", ".netrc"),
    *(".gdbinit", "evil.pth", "CMakePresets.json", ".gitconfig", "boards.toml"),
    *("edge.toml", ".env", "python311._pth", "config.json", "libggml-cpu-evil.so", "fonts.conf"),
)
# Libraries start these by name, on our clean PATH: Python's platform, matplotlib.
OTHERS = {"uname", "fc-list"}


@dataclass(frozen=True)
class Trap:
    """A folder in which everything leaves a mark, and where the marks are left."""

    folder: Path
    marks: Path
    log: Path


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    folder, marks = tmp_path / "downloads", tmp_path / "marks"
    folder.mkdir()
    marks.mkdir()

    def python(name: str) -> str:
        return f"open({str(marks / name)!r}, 'w').close()\n"

    for name in MODULES:
        (folder / f"{name}.py").write_text(python(f"{name}.py"))
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(python(f"{name}.init"))
        (folder / name / "__main__.py").write_text(python(f"{name}.main"))
    for name in PROGRAMS_THERE:
        (folder / name).write_text(f"#!/bin/sh\necho > {marks}/{name}.program\n")
        (folder / name).chmod(0o755)
    for name in CONFIGURATION:
        (folder / name).write_text("import os\n" if name.endswith("pth") else "x\n")
    info = folder / "evil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge.commands]\nevil = psutil:COMMANDS\n")
    log = tmp_path / "log"
    log.touch()
    return Trap(folder, marks, log)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "kit"
    command = edge_command("build", "sample", "-d", "raspberry-pi-5-8gb", "-o", str(folder))
    subprocess.run([*command, "--no-quality"], check=True, capture_output=True)
    return folder


def run(
    trap: Trap, arguments: Sequence[str], *, hostile: bool = True, code: str = EDGE, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, with PATH beginning with `.`; `hostile`: with the folder in
    PYTHONPATH and other variables of Python as well.
    """
    variables = {"PATH": f".::{os.environ['PATH']}", **extra}
    if hostile:
        variables |= dict.fromkeys(
            ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"), str(trap.folder)
        ) | {
            "PYTHONSTARTUP": "psutil.py",
            "PYTHONINSPECT": "1",
            "PYTHONWARNINGS": "error::psutil.x",
        }
    env = {**os.environ, "TEST_LOG": str(trap.log), "TEST_VARIABLES": json.dumps(variables),
           "TEST_CODE": code, "XDG_CONFIG_HOME": str(trap.log.parent / "config")}  # fmt: skip
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, "-c", START, *arguments], cwd=trap.folder, env=env, text=True,
        capture_output=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def events(trap: Trap) -> list[list[Any]]:
    return [json.loads(line) for line in trap.log.read_text().splitlines()]


def check(trap: Trap, *, least: int = 0) -> list[list[str]]:
    """Nothing of the folder was run or read; the command lines of all children."""
    assert not list(trap.marks.iterdir()), sorted(path.name for path in trap.marks.iterdir())
    started = []
    for event, arguments, *around in events(trap):
        if event in ("open", "ctypes.dlopen"):
            name = arguments[0]
            if isinstance(name, str) and name not in (".", ""):
                path = Path(os.path.abspath(trap.folder / name))  # or relative to a descriptor
                read = path.is_relative_to(trap.folder) and path.exists()
                assert not read, (event, arguments)
            continue
        if event == "subprocess.Popen":
            program, argv, folder, env = arguments
        else:  # os.exec: the forked child has changed its folder
            (program, argv, env), folder = arguments, around[1]
        env = env or around[0]
        assert all(os.path.isabs(place) for place in env["PATH"].split(":")), argv
        if str(program) in OTHERS:
            continue
        assert os.path.isabs(program), argv
        assert folder and os.path.isabs(folder), argv
        assert not Path(folder).is_relative_to(trap.folder), argv
        assert not [name for name in env if name.startswith("PYTHON")], argv
        started.append(argv)
    assert len(started) >= least, started
    return started


@pytest.mark.parametrize("hostile", [False, True], ids=["PATH", "PYTHONPATH"])
def test_flash_a_folder(trap: Trap, kit: Path, hostile: bool) -> None:
    done = run(trap, ["flash", str(kit), f"dir:{trap.log.parent / 'card'}"], hostile=hostile)
    assert done.returncode == 0, done.stderr
    assert "health" in done.stdout
    check(trap, least=1)


def test_flash_an_image(trap: Trap, kit: Path, tmp_path: Path) -> None:
    require(*PROGRAMS)
    image = make_image(tmp_path / "card.img").path
    done = run(trap, ["flash", str(kit), f"image:{image}", "--in-place"])
    assert done.returncode == 0, done.stderr
    check(trap, least=3)


def test_flash_a_fleet(trap: Trap, kit: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    boards = [f'[boards.b{i}]\ntarget = "dir:{tmp_path}/b{i}"\n' for i in range(2)]
    fleet.write_text("".join(boards))
    done = run(trap, ["flash", str(kit), "--inventory", str(fleet), "--json"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["n_flashed"] == 2, done.stdout
    check(trap, least=2)


def test_rehearse_before_a_flash(trap: Trap, tmp_path: Path) -> None:
    folder = tmp_path / "with-engine"
    (folder / "board").mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"no model")
    (folder / "board/install.sh").write_text("exit 3\n")
    plan = {**PLAN.to_dict(), "device": "jetson-nano-4gb"}  # which cannot be rehearsed
    document = {"model": {"name": "x"}, "recipe": {"id": "q4_0"}, "plan": plan}
    seal_bundle(folder, document, {"model.gguf": "model", "board/install.sh": "launcher"}, {})
    done = run(trap, ["flash", str(folder), f"dir:{tmp_path / 'card'}"])
    assert "the rehearsal of" in done.stderr and done.returncode == 5, done.stderr
    check(trap, least=1)


def test_probe(trap: Trap) -> None:
    done = run(trap, ["probe", "--quick", "--json"])
    assert done.returncode == 0, done.stderr
    kernels = [argv for argv in check(trap, least=1) if "boardfit.edge.probe.kernels" in argv]
    assert kernels and "could not be timed" not in done.stdout


@pytest.mark.slow
def test_race(trap: Trap, kit: Path, tmp_path: Path) -> None:
    command = ["race", str(kit), "--quick", "-o", str(tmp_path / "race.jsonl")]
    done = run(trap, command)
    assert done.returncode == 0, done.stderr
    assert [argv for argv in check(trap, least=1) if "boardfit.edge.race.child" in argv]


@pytest.mark.slow
def test_bench_and_report(trap: Trap, kit: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = tmp_path / "results.jsonl"
    done = run(
        trap, ["bench", str(kit), "--quick", "--repeats", "1", "--gen", "4", "-o", str(results)]
    )
    assert done.returncode == 0, done.stderr
    fresh = {"MPLCONFIGDIR": str(tmp_path / "fonts")}  # so that fonts are looked for
    page = tmp_path / "page.html"
    done = run(trap, ["report", str(results), "-o", str(page)], **fresh)
    assert done.returncode == 0 and page.exists(), done.stderr
    check(trap)


def test_boards_that_are_not_there(trap: Trap, kit: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # bound, so that nobody else answers
        port = server.getsockname()[1]
        server.close()
        for command in (
            ["flash", str(kit), f"ssh://x@127.0.0.1:{port}/opt/x"],
            ["probe", f"ssh://x@127.0.0.1:{port}"],
            ["watch", f"ssh://x@127.0.0.1:{port}"],
        ):
            assert run(trap, command).returncode == 6
    # Without adb on PATH the one that lies here must not stand in.
    (tmp_path / "empty").mkdir()
    only = {"PATH": f".:{tmp_path / 'empty'}:"}
    for command in (["probe", "adb://X"], ["flash", str(kit), "adb://X/data"]):
        done = run(trap, command, **only)
        assert done.returncode == 6 and "adb is not installed" in done.stderr
    check(trap)


def test_keys(trap: Trap, kit: Path, tmp_path: Path) -> None:
    shutil.copytree(kit, tmp_path / "own")
    key = str(tmp_path / "key")
    for command in (
        ["key", "new", "--out", key],
        ["bundle", "sign", str(tmp_path / "own"), key],
        ["bundle", "verify", str(tmp_path / "own"), "--key", f"{key}.pub"],
    ):
        done = run(trap, command)
        assert done.returncode == 0, done.stderr
    check(trap)


class _AsksWhoYouAre(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def registry() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _AsksWhoYouAre)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_credential_helpers(trap: Trap, kit: Path, tmp_path: Path) -> None:
    with registry() as place:
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/config.json").write_text(json.dumps({"credHelpers": {place: "x"}}))
        extra = {"DOCKER_CONFIG": str(tmp_path / "docker")}
        target = f"{place}/kit:1"
        for command in (["push", str(kit), target, "--plain-http"],
                        ["pull", target, str(tmp_path / "pulled"), "--plain-http"]):  # fmt: skip
            done = run(trap, command, **extra)
            assert done.returncode == 3, done.stdout + done.stderr
            assert "docker-credential-x does not answer" in done.stderr
    check(trap)


def test_workers_and_tools(trap: Trap) -> None:
    code = f"""
import sys
from pathlib import Path
from boardfit.converters.board.engine.toolchain import Toolchain, configure
from boardfit.converters.formats.tools.environments import Environment, _run
from boardfit.converters.formats.tools.worker import run_worker
from boardfit.edge.errors import EdgeError
try:
    run_worker(Path(sys.executable), "boardfit.converters.formats.network.worker.onnx", {{}})
except EdgeError as error:
    assert "boardfit-worker" in str(error), error
tools = Environment("x", "x", "X", (), (), 0)
_run("venv", [{str(trap.log.parent / "env")!r}, "--without-pip"], tools)
_run("pip", ["--version"], tools)
work = Path({str(trap.log.parent / "build")!r})
try:
    configure(work, work, Toolchain("none", "x"), [])
except (EdgeError, FileNotFoundError):
    pass
"""
    done = run(trap, [], code=code)
    assert done.returncode == 0, done.stderr
    check(trap, least=3)


def test_python_m_edge_forgets_the_current_folder(trap: Trap) -> None:
    """`python -m` puts it first by itself. Who types that has asked for it; we take it out again
    as soon as we can. A folder with an `edge` of its own is beyond help.
    """
    for path in trap.folder.iterdir():
        if path.name not in ("psutil.py", "click.py", "llama_cpp.py", "evil-1.0.dist-info"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "boardfit", "probe", "--quick"], cwd=trap.folder, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(trap.marks.iterdir())


def test_the_board_installer_and_its_launcher(trap: Trap) -> None:
    from boardfit.converters.board.offline.board import install

    script = Path(install.__file__).with_name("install.sh")
    home = trap.log.parent / "env"
    for folder in ("bin", "site/boardfit/edge"):
        (home / folder).mkdir(parents=True)
    install.write(home / "bin/edge", install.LAUNCHER.format(python=sys.executable), 0o755)
    install.write(home / "main.py", install.MAIN, 0o644)
    install.write(home / "site/boardfit/__init__.py", "", 0o644)
    install.write(home / "site/boardfit/edge/__init__.py", "", 0o644)
    answer = "import json, sys\ndef main():\n    print(sys.path[0], *sys.argv[1:])\n"
    install.write(home / "site/boardfit/edge/supervisor.py", answer, 0o644)
    (trap.folder / "linked").symlink_to(home / "bin/edge")
    env = {"PATH": f".::{os.environ['PATH']}", "PYTHONPATH": str(trap.folder),
           "PYTHONSTARTUP": "psutil.py"}  # fmt: skip

    def shell(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", *command], cwd=trap.folder, env=env, capture_output=True, text=True
        )

    done = shell("./linked", "run", "a b")
    assert done.stdout == f"{home}/site run a b\n", done.stderr
    done = shell(str(script), "made-here")
    assert done.returncode == 7 and "SHA256SUMS" in done.stderr, done.stderr
    check(trap)


def test_relative_paths_are_the_users(kit: Path, tmp_path: Path) -> None:
    """Children work in another folder; what the user names must reach them all the same."""
    require(*PROGRAMS)
    shutil.copytree(kit, tmp_path / "kit")
    make_image(tmp_path / "card.img")
    (tmp_path / "fleet.toml").write_text('[boards.b]\ntarget = "dir:board"\nbundle = "kit"\n')
    env = {**os.environ, "BOARDFIT_CACHE": "cache", "XDG_CONFIG_HOME": "config"}
    for command in (
        ["key", "new", "--out", "key"],
        ["bundle", "sign", "kit", "key"],
        ["flash", "kit", "dir:card"],
        ["flash", "kit", "image:card.img", "--in-place"],
        ["flash", "kit", "--inventory", "fleet.toml", "--require-signature=key.pub"],
        ["slots", "list", "dir:board"],
    ):
        done = subprocess.run(edge_command(*command), cwd=tmp_path, env=env, capture_output=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert (tmp_path / "cache").is_dir()
    assert (tmp_path / "board/trusted_keys").exists()
