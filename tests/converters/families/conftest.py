"""All oracle cases are converted by upstream once per test session, in one process."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.converters.families.checkpoints import Case
from tests.converters.families.oracle import convert_upstream


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that wait for one slow fixture in one process under pytest-xdist, so that no
    fixture is made twice and no process waits for another's.
    """
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("oracle"):
            shared = "converted" in getattr(item, "fixturenames", ())
            item.add_marker(
                pytest.mark.xdist_group("families-converted" if shared else item.path.stem)
            )


@pytest.fixture(scope="session")
def converted(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    oracle_python: Path,
    llama_cpp_tree: Path,
) -> Path:
    """The directory with every case's checkpoint (`NAME/`) and upstream's float32 GGUF
    (`NAME.gguf`), made by whichever test process comes first.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base
    work = shared / "oracle"
    work.mkdir(exist_ok=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (work / "done").exists():
            convert_upstream(all_cases(), work, oracle_python, llama_cpp_tree)
            (work / "done").touch()
    return work


def all_cases() -> tuple[Case, ...]:
    """The cases of every `cases_*.py` in this directory."""
    import importlib

    cases: tuple[Case, ...] = ()
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        cases += importlib.import_module(f"tests.converters.families.{path.stem}").CASES
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "case names must be unique"
    return cases
