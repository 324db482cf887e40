"""Shared by all tests: nothing touches the user's home, and nothing is skipped in CI in silence."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.programs import skip_or_fail
from tests.real.weights import GEMMA3, SMOLLM2, cache_folder, fetch

# It reads HF_HUB_OFFLINE once, when it is imported: not while a test has set it.
with contextlib.suppress(ImportError):
    import huggingface_hub.constants  # noqa: F401

# A busy machine is no failure; `derandomize` in CI makes a failure there repeatable here.
settings.register_profile("boardfit", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("boardfit")

# A shell starts what it runs in the background with Ctrl-C ignored, and every process that a test
# starts would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """What session-wide fixtures run is not to be seen by `edge watch` in a test either."""
    folder = tempfile.mkdtemp(prefix="boardfit-run-")
    os.environ["XDG_RUNTIME_DIR"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and settings go to a fresh folder for every test."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("BOARDFIT_CACHE", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    # What runs in another test at the same time is not to be seen in this one.
    (home / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = None
    if item.get_closest_marker("oracle"):
        names = ("LLAMA_CPP", "ORACLE_PYTHON", "REFERENCE_PYTHON")
        unset = [v for name in names if not os.environ.get(v := f"BOARDFIT_{name}")]
        missing = f"{' and '.join(unset)} not set: run scripts/test" if unset else None
    if item.get_closest_marker("engine") and importlib.util.find_spec("llama_cpp") is None:
        missing = "llama-cpp-python is not installed: pip install -e '.[llama]'"
    if missing:
        skip_or_fail(missing)


@pytest.fixture(scope="session")
def llama_cpp_tree() -> Path:
    """Upstream's source tree, for oracle tests."""
    return Path(os.environ["BOARDFIT_LLAMA_CPP"])


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as people have it: a GGUF, Q4_1, with a chat template."""
    return fetch(SMOLLM2, cache_folder())


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M as people have it: a GGUF, Q4_K_M, a base model without chat template."""
    return fetch(GEMMA3, cache_folder())


@pytest.fixture(scope="session")
def oracle_python() -> Path:
    """The interpreter that upstream's converter runs in, with the versions it asks for."""
    return Path(os.environ["BOARDFIT_ORACLE_PYTHON"])


@pytest.fixture(scope="session")
def reference_python() -> Path:
    """An interpreter whose transformers has every family's model."""
    return Path(os.environ["BOARDFIT_REFERENCE_PYTHON"])
