"""Jobs in another interpreter: answers, errors, limits, and no child that outlives us."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.formats.tools import worker
from boardfit.converters.formats.tools.worker import Cage, run_worker
from boardfit.edge.errors import (
    DoesNotFitError,
    EngineError,
    UnsafeInputError,
    UnsupportedModelError,
)
from tests.programs import require

JOBS = Path(__file__).with_name("worker_jobs.py")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run one of `worker_jobs`, shown to the child as a package of ours."""
    package = tmp_path / "jobs"
    package.mkdir()
    shutil.copy(JOBS, package / "worker_jobs.py")
    (tmp_path / "boardfit").symlink_to(worker._root() / "boardfit")
    monkeypatch.setattr(worker, "_PACKAGES", ("boardfit", "jobs"))
    monkeypatch.setattr(worker, "_root", lambda: tmp_path)

    def call(name: str, **options: Any) -> dict[str, Any]:
        request = {"job": name, **options.pop("request", {})}
        return run_worker(Path(sys.executable), "jobs.worker_jobs", request, **options)

    return call


def test_an_answer_with_progress_and_peaks(job: Callable[..., dict[str, Any]]) -> None:
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    answer = job(
        "echo",
        request={"value": "a€"},
        say=said.append,
        progress=lambda done, total: steps.append((done, total)),
        threads=3,
    )
    assert answer["got"] == "a€"
    assert said == ["working"]
    assert steps == [(1, 2)]
    assert answer["environment"]["HF_HUB_OFFLINE"] == "1"
    assert answer["environment"]["OMP_NUM_THREADS"] == "3"
    assert "PYTHONPATH" not in answer["environment"]


def test_our_errors_come_through_whole(job: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UnsupportedModelError, match="not this one") as caught:
        job("refuse")
    assert caught.value.next_step == "take another"


def test_other_errors_come_with_the_last_lines(job: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(EngineError, match=r"(?s)KeyError: .*gone.*job_raise"):
        job("raise")
    with pytest.raises(EngineError, match=r"(?s)ended with code -6.*last words"):
        job("crash")


def test_no_network(job: Callable[..., dict[str, Any]]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(UnsafeInputError, match="tried to use the network"),
    ):
        job("connect", request={"port": server.getsockname()[1]})


@linux_only
def test_the_limit_holds(job: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(DoesNotFitError, match=r"ran out of memory \(limit 300.0 MiB\)"):
        job("fill", memory_limit=300 << 20)


def test_a_python_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot start"):
        run_worker(tmp_path / "python", "x", {})


@linux_only
def test_the_child_goes_when_we_are_killed(tmp_path: Path) -> None:
    package = tmp_path / "converters_jobs"
    package.mkdir()
    shutil.copy(JOBS, package / "worker_jobs.py")
    root = worker._root()
    code = f"""
import sys
sys.path.insert(0, {str(root)!r})
from pathlib import Path
from boardfit.converters.formats.tools import worker
worker._PACKAGES = ("boardfit", "converters_jobs")
(Path({str(tmp_path)!r}) / "boardfit").symlink_to(worker._root() / "boardfit")
worker._root = lambda: Path({str(tmp_path)!r})
worker.run_worker(Path(sys.executable), "converters_jobs.worker_jobs", {{"job": "sleep"}},
                  say=lambda pid: print(pid, flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_cage_shows_and_lets_write_what_it_was_given(
    job: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("bwrap")
    monkeypatch.setenv("HF_TOKEN", "secret")
    writable, elsewhere = tmp_path / "writable", tmp_path / "elsewhere"
    for folder in (writable, elsewhere):
        folder.mkdir()
    shown, hidden = elsewhere / "shown", elsewhere / "hidden"
    shown.write_text("to be read")
    hidden.write_text("not to be read")
    cage = Cage((shown,), writable)
    files = [str(writable / "new"), str(elsewhere / "new"), str(shown)]
    answer = job("write", request={"paths": files, "shown": str(shown)}, cage=cage)
    assert answer["found"][files[0]] == "written"
    assert (writable / "new").read_text() == "x"
    assert answer["found"][files[2]] == "OSError"
    assert not (elsewhere / "new").exists()
    assert (answer["shown"], answer["secret"]) == ("to be read", None)
    again = job("write", request={"paths": [], "shown": str(hidden)}, cage=cage)
    assert again["shown"] is None


def test_without_a_cage_the_reason_is_given(
    job: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boardfit.edge.process.cage.find_program", lambda name: None)
    said: list[str] = []
    answer = job("echo", request={"value": 1}, cage=Cage((), tmp_path), say=said.append)
    assert answer["got"] == 1
    assert said[0] == "the conversion runs without a cage: bwrap is not installed"
