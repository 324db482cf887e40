"""Cargo and boards for the flash tests. All that need servers run on one worker and share them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.flash.boards import AdbBoard, FolderBoard, SshBoard, edge_command
from tests.edge.flash.cargo import make_bundle, variant
from tests.programs import require, skip_or_fail


def need(kind: str) -> None:
    """Skip what this machine cannot do for a board of this kind; in CI fail."""
    if kind == "ssh":
        require("sshd", "ssh", "ssh-keygen")
        if os.geteuid() != 0:
            skip_or_fail("sshd with users of its own takes root")
    if kind == "adb":
        require("adb")


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of the sample model: the same files, another id."""
    folder = tmp_path_factory.mktemp("cargo")
    command = edge_command(
        "build", "sample", "--device", "raspberry-pi-4b-4gb", "--recipe", "q4_0", "--no-quality",
        "-o", str(folder / "built"),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Threads that spin wait long for each other where the cores are busy with other tests.
    plan = {"n_threads": 1}
    return (
        variant(folder / "built", folder / "a", plan=plan),
        variant(folder / "built", folder / "b", plan=plan, name="another name"),
    )


@pytest.fixture
def cargo(tmp_path: Path) -> tuple[Path, Path]:
    """Two small bundles that share one file; their models are no models."""
    shared = {"data/weights.bin": b"shared" * 5000, "README.md": b""}
    return (
        make_bundle(tmp_path / "cargo/a", {"model.gguf": b"old " * 30_000, **shared}),
        make_bundle(tmp_path / "cargo/b", {"model.gguf": b"new " * 40_000, **shared}),
    )


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    need("ssh")
    folder = tmp_path_factory.mktemp("ssh")
    with SshBoard(folder / "sshd", folder / "root") as board:
        yield board


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbBoard]:
    need("adb")
    folder = tmp_path_factory.mktemp("adb")
    with AdbBoard(folder / "adb", folder / "root") as board:
        yield board


@pytest.fixture(params=["dir", "ssh", "adb"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FolderBoard | SshBoard | AdbBoard:
    """A board of each kind with an empty root whose name has a space and an umlaut."""
    names = {"ssh": "sshd", "adb": "device"}
    board = (
        FolderBoard(tmp_path)
        if request.param == "dir"
        else request.getfixturevalue(names[request.param])
    )
    board.root = tmp_path / "böard with ' space"
    for name, value in board.env.items():
        monkeypatch.setenv(name, value)
    return board  # type: ignore[no-any-return]
