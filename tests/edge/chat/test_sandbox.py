"""`edge run --sandbox`: the same answer, from a cage; pins hold there too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.chat.sandbox import cage_environment, visible_paths
from boardfit.edge.errors import EngineMissingError, IntegrityError
from boardfit.edge.process.cage import cage_command
from boardfit.edge.trust.pins import TRUSTED_KEYS
from boardfit.edge.trust.signing import load_signing_key, new_key
from tests.edge.trust.real import OURS, real_bundle
from tests.programs import require

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def bubblewrap() -> None:
    require("bwrap")
    try:
        cage_command(["true"], [], Path("/"), {})
    except EngineMissingError as error:  # a container that allows no namespaces
        pytest.skip(str(error))


def command(model: object, *words: str) -> list[str]:
    prefix = [sys.executable, "-m", "boardfit", "run", str(model), "x", "--raw"]
    return [*prefix, "--max-tokens", "4", "--sandbox", *words]


def run(model: object, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, *words), capture_output=True, text=True, cwd=cwd, timeout=60
    )


@pytest.mark.parametrize("name", ["kit", "./kit", "kit/model.gguf", "link", "alone.gguf"])
def test_the_answer_is_the_same(name: str, tmp_path: Path) -> None:
    real_bundle(tmp_path / "kit")
    (tmp_path / "link").symlink_to("kit")
    (tmp_path / "alone.gguf").write_bytes((tmp_path / "kit/model.gguf").read_bytes())
    done = run(name, tmp_path)
    assert (done.stdout, done.returncode) == (f"{OURS}\n", 0), done.stderr
    assert '"text"' in run(name, tmp_path, "--json").stdout


def test_pins_hold(tmp_path: Path) -> None:
    kit = real_bundle(tmp_path / "board/current/kit")
    new_key(tmp_path / "key", None, "me")
    key = load_signing_key(tmp_path / "key")
    (tmp_path / "board" / TRUSTED_KEYS).write_text(key.public.line + "\n")
    (tmp_path / "alias").symlink_to(kit)
    for name in (kit, kit / "model.gguf", "alias"):
        assert run(name, tmp_path).returncode == IntegrityError.exit_code
    sign_bundle(kit, key)
    for name in (kit, kit / "model.gguf", "alias"):
        assert run(name, tmp_path).stdout == f"{OURS}\n"
    data = bytearray((kit / "model.gguf").read_bytes())
    data[-1] ^= 1
    (kit / "model.gguf").write_bytes(data)
    done = run("alias", tmp_path)
    assert done.returncode == IntegrityError.exit_code and "sha256" in done.stderr


def test_errors_and_their_codes_come_out(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF and nothing")
    done = run("x.gguf", tmp_path)
    assert done.returncode == 3 and "error: " in done.stderr
    assert run("nothing.gguf", tmp_path).returncode == 3


def test_a_file_that_a_word_names_is_shown(tmp_path: Path) -> None:
    kit = real_bundle(tmp_path / "kit")
    page = tmp_path / "page.txt"
    page.write_text("x")
    found = visible_paths(kit, ["run", str(kit), f"--document={page}", "a\0b", "y" * 9999])
    assert page in found and kit in found and tmp_path not in found


def test_no_secret_reaches_the_cage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BOARDFIT_KEY_PASSPHRASE", "HF_TOKEN", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "SECRET")
    assert "SECRET" not in cage_environment(tmp_path).values()


def reads_stdin(process: psutil.Process) -> bool:
    """Whether a process waits in read(0)."""
    try:
        call = Path(f"/proc/{process.pid}/syscall").read_text().split()
    except OSError:
        return False
    return call[:2] in (["0", "0x0"], ["63", "0x0"])  # x86-64, arm64


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    kit = real_bundle(tmp_path / "kit")
    words = command(kit)
    words.remove("x")  # it waits for a prompt
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    own, end = psutil.Process(process.pid), time.monotonic() + 20
    while not any(map(reads_stdin, own.children(recursive=True))) and time.monotonic() < end:
        time.sleep(0.05)  # while Python imports, Ctrl-C ends it without a word
    time.sleep(0.5)  # the programs around it may not be through with their start
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"stopped" in err
