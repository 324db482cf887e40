"""The set-up scripts say exactly what is missing, and do nothing twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import find

ROOT = Path(__file__).parent.parent


def path_with(folder: Path, *programs: str) -> str:
    """A PATH on which only these programs exist."""
    folder.mkdir(exist_ok=True)
    for program in programs:
        found = find(program)
        assert found, program
        (folder / program).symlink_to(found)
    return str(folder)


def test_a_missing_compiler_is_answered_with_the_apt_line(tmp_path: Path) -> None:
    environment = {"PATH": path_with(tmp_path / "bin"), "BOARDFIT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/build_engine"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5
    assert "sudo apt-get install -y g++" in done.stderr
    assert not list((tmp_path / "cache").iterdir()), "nothing is fetched for nothing"


def test_a_missing_python_is_answered_with_the_apt_line(tmp_path: Path) -> None:
    bash = find("bash")
    assert bash
    environment = {"PATH": path_with(tmp_path / "bin", "dirname")}
    done = subprocess.run(
        [bash, ROOT / "scripts/demo"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 5
    assert "sudo apt-get install -y python3-venv g++" in done.stderr


def test_an_old_python_is_named(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    environment.pop("PYTHON", None)
    done = subprocess.run([ROOT / "scripts/demo"], env=environment, capture_output=True, text=True)
    assert done.returncode == 5 and "Python 3.8.1 is too old" in done.stderr


def test_a_damaged_download_is_refused_and_removed(tmp_path: Path) -> None:
    """The sha256 of the source is pinned: what was fetched is not unpacked unseen."""
    cache = tmp_path / "cache"
    (cache / "downloads").mkdir(parents=True)
    script = (ROOT / "scripts/build_engine").read_text()
    version = re.search(r'^VERSION = "(.+)"$', script, re.MULTILINE)
    assert version
    damaged = cache / "downloads" / f"llama_cpp_python-{version[1]}.tar.gz"
    damaged.write_bytes(b"not it")
    tools = cache / f"build-tools-py{sys.version_info.major}{sys.version_info.minor}"
    tools.mkdir()
    (tools / ".complete").touch()
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/build_engine", "--source"],
        env={**os.environ, "BOARDFIT_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "sha256" in done.stderr
    assert not damaged.exists()
    assert not (cache / "src").exists()


@pytest.mark.parametrize("name", ["demo", "test", "build_engine", "bench_startup", "bench_convert",
                                  "bench_decode", "bench_lint"])  # fmt: skip
def test_scripts_can_be_run(name: str) -> None:
    assert os.access(ROOT / "scripts" / name, os.X_OK)
