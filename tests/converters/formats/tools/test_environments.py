"""Pinned environments: what is installed when, and what is said when it cannot be."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from boardfit.converters.formats.tools import environments
from boardfit.converters.formats.tools.environments import (
    Environment,
    load_environments,
    tool_python,
)
from boardfit.edge.errors import DoesNotFitError, EngineMissingError, UsageError
from tests.tool_pythons import find_tool_python


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for environment in load_environments().values():
        monkeypatch.delenv(environment.override, raising=False)
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small(**changes: object) -> Environment:
    fields = {
        "name": "litert",
        "about": "a test",
        "override": "BOARDFIT_LITERT_PYTHON",
        "first": (),
        "packages": (),
        "disk_bytes": 1,
    }
    return Environment(**{**fields, **changes})  # type: ignore[arg-type]


def only(monkeypatch: pytest.MonkeyPatch, environment: Environment) -> None:
    monkeypatch.setattr(environments, "load_environments", lambda: {"litert": environment})


@pytest.mark.parametrize("environment", load_environments().values(), ids=lambda e: e.name)
def test_torch_comes_first_and_everything_that_matters_is_pinned(environment: Environment) -> None:
    assert environment.first == ("torch==2.13.0",)
    assert not any(p.startswith("torch==") for p in environment.packages)
    pinned = {p.split("==")[0] for p in environment.packages if "==" in p}
    assert "transformers" in pinned


def test_the_key_changes_with_a_pin() -> None:
    assert small().key != small(packages=("x==1",)).key
    assert small(about="other words").key == small().key


def test_the_host_extra_installs_no_torch() -> None:
    pyproject = Path(environments.__file__).resolve().parents[3] / "pyproject.toml"
    lines = [x for x in pyproject.read_text().splitlines() if "torch==" in x]
    assert all(line.startswith("train = ") for line in lines)


def test_an_own_python_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    monkeypatch.setenv("BOARDFIT_LITERT_PYTHON", str(link))
    assert tool_python("litert") == link  # the link, not its target: it is what makes a venv
    assert find_tool_python("litert") == link


def test_an_own_python_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_LITERT_PYTHON", str(tmp_path))
    with pytest.raises(UsageError, match=r"BOARDFIT_LITERT_PYTHON is .* not a program") as caught:
        tool_python("litert")
    assert "litert-torch" in str(caught.value.next_step)


@pytest.mark.slow
def test_it_is_made_once_by_one_maker_and_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, small())
    assert find_tool_python("litert") is None
    said: list[str] = []
    found: list[Path] = []

    def make() -> None:
        found.append(tool_python("litert", say=said.append))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == find_tool_python("litert")
    assert sum(line.startswith("making the litert environment") for line in said) == 1
    inside = subprocess.run(
        [found[0], "-c", "import sys; print(sys.prefix != sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert inside.stdout.strip() == "True"
    assert not list(cache.glob("environments/*.partial"))


@pytest.mark.slow
def test_offline_leaves_nothing_and_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, small(packages=("no-such-package-of-boardfit==1",)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EngineMissingError, match="no-such-package-of-boardfit") as caught:
        tool_python("litert")
    assert "BOARDFIT_LITERT_PYTHON" in str(caught.value.next_step)
    assert find_tool_python("litert") is None
    assert [p.name for p in cache.glob("environments/*") if p.is_dir()] == []


def test_too_small_a_disk_is_told_before_anything_is_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, small(disk_bytes=1 << 60))
    with pytest.raises(DoesNotFitError, match="environment takes about") as caught:
        tool_python("litert")
    assert caught.value.shortfall_bytes
    assert not [p for p in cache.glob("environments/*") if stat.S_ISDIR(p.stat().st_mode)]
