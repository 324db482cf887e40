"""The table of engines, settings, and what a board pays for importing them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from boardfit.edge.engines import ENGINES, EngineSettings, is_installed, open_engine
from boardfit.edge.engines.settings import usable_cpus
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.requirements import install_line
from boardfit.edge.types import Plan

PLAN = Plan(
    engine="llama_cpp", recipe="q4_0", device="rpi-5-8gb", n_ctx=2048, kv_type="q8_0", n_threads=3,
    n_batch=256, n_ubatch=128, use_mmap=True, repack=False, artifact_bytes=1,
    memory={"weights_mapped": 10, "kv_cache": 5}, budget_bytes=100,
)  # fmt: skip


def test_unknown_engine_suggests() -> None:
    with pytest.raises(UsageError, match="llama_cpp"):
        open_engine("lama_cpp", Path("x.gguf"))


def test_missing_package_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert not any(is_installed(name) for name in ENGINES)
    with pytest.raises(EngineMissingError) as caught:
        open_engine("llama_cpp", Path("x.gguf"))
    assert caught.value.next_step == install_line("llama")
    assert "llama-cpp-python==" in install_line("llama")


def test_settings_follow_the_plan_and_overrides() -> None:
    settings = EngineSettings.from_plan(PLAN)
    assert settings.n_threads == min(3, usable_cpus())
    assert (settings.n_ctx, settings.kv_type, settings.n_ubatch) == (2048, "q8_0", 128)
    assert settings.need_bytes == 15 and settings.repack is False
    assert settings.replace(n_threads=1, n_ctx=None).need_bytes == 15
    changed = settings.replace(n_ctx=512)
    assert changed.n_ctx == 512 and changed.need_bytes is None, "the prediction was for 2048"


def test_a_plan_for_more_cores_than_there_are_is_run_with_those_there_are() -> None:
    many = dataclasses.replace(PLAN, n_threads=4096)
    assert EngineSettings.from_plan(many).n_threads == usable_cpus()


@pytest.mark.parametrize(
    "wrong", [{"n_ctx": 0}, {"n_threads": -1}, {"kv_type": "q8"}, {"flash_attn": "yes"}]
)
def test_settings_are_validated(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        EngineSettings(**wrong)  # type: ignore[arg-type]


def fresh(code: str) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def test_listing_engines_imports_none() -> None:
    loaded = fresh(
        "import json, sys; import boardfit.edge.engines;"
        "boardfit.edge.engines.is_installed('llama_cpp');"
        "print(json.dumps({m.split('.')[0]: 1 for m in sys.modules}))"
    )
    assert not {"llama_cpp", "numpy", "jinja2"} & loaded.keys()


@pytest.mark.engine
def test_the_engine_costs_little_and_leaves_the_package_alone() -> None:
    seen = fresh(
        "import json, sys\n"
        "import boardfit.edge.engines.llama.engine\n"
        "from boardfit.edge.engines.llama.library import load_library\n"
        "load_library()\n"
        "names = sorted({m.split('.')[0] for m in sys.modules})\n"
        "from boardfit.edge.chat.run_command import peak_rss_bytes\n"
        "peak = peak_rss_bytes()\n"
        "import llama_cpp, ctypes\n"
        "whole = llama_cpp.Llama.__name__ + llama_cpp.llama_cpp.__name__\n"
        "print(json.dumps({'names': names, 'peak': peak, 'whole': whole}))"
    )
    names = seen["names"]
    assert isinstance(names, list) and not {"numpy", "jinja2", "diskcache", "llama_cpp"} & set(
        names
    )
    assert seen["whole"] == "Llamallama_cpp.llama_cpp"
    # Interpreter, boardfit, ctypes declarations and the mapped library together.
    assert isinstance(seen["peak"], int) and seen["peak"] < 40 * 2**20
