"""The engine `tflite` on tflite-runtime 2.14, which needs numpy 1 and Python 3.11 at most, and so
an environment of its own: made once, kept in pytest's cache folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.edge.engines import reference
from tests.edge.engines.engine_models import CHAT_REPLY, ModelShelf, alone, random_tensors
from tests.programs import skip_or_fail

ROOT = Path(__file__).parents[3]
DRIVER = Path(__file__).with_name("tflite_runtime_driver.py")
PACKAGES = ("tflite-runtime==2.14.0", "numpy<2", "tokenizers>=0.20", "psutil", "click", "jinja2")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.xdist_group("engine-tflite")]


def old_python() -> str:
    """An interpreter that the wheel exists for (3.10 and 3.11; boardfit needs 3.10)."""
    if sys.version_info < (3, 12):
        return sys.executable
    found = next(filter(None, map(shutil.which, ("python3.11", "python3.10"))), None)
    if found is None:
        pytest.skip("tflite-runtime 2.14 has no wheel for this Python, and there is no older one")
    return found


@pytest.fixture(scope="module")
def runtime_python(request: pytest.FixtureRequest) -> Path:
    cache = request.config.cache.mkdir("boardfit-tflite-runtime")
    with alone(cache):
        home, done = cache / "venv", cache / "complete"
        wanted = " ".join((sys.version, *PACKAGES))
        if not done.is_file() or done.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([old_python(), "-m", "venv", home], check=True, timeout=120)
            pip = [home / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            result = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True, timeout=300)
            if result.returncode != 0:
                message = f"tflite-runtime cannot be installed: {result.stderr[-500:]}"
                skip_or_fail(message)
            done.write_text(wanted)
    return home / "bin/python"


@pytest.fixture(scope="module")
def seen(
    runtime_python: Path, model_shelf: ModelShelf, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver saw."""
    folder = tmp_path_factory.mktemp("tflite-runtime")
    models = model_shelf["tflite"]
    composite = folder / "composite"
    shutil.copytree(models.random.parent, composite)
    container = model_shelf["litert"].random
    from boardfit.edge.engines.litert.container import read_container

    section = read_container(container).model
    data = container.read_bytes()[section.offset : section.offset + section.n_bytes]
    (composite / "model.tflite").write_bytes(data)
    paths = (models.random, models.scripted, models.heavy, composite / "model.tflite")
    result = subprocess.run(
        [runtime_python, DRIVER, *paths],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr == "", "the runtime's greetings stay inside"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_it_is_the_runtime_that_was_meant(seen: dict[str, Any]) -> None:
    assert seen["build"] == "tflite-runtime/2.14.0" and seen["inside"] is False


def test_logits_are_the_references(seen: dict[str, Any]) -> None:
    expected = reference.logits(random_tensors(), seen["prompt"])
    assert np.abs(np.array(seen["logits"]) - expected).max() < 1e-3


def test_prefixes_are_reused_cut_saved_and_restored(seen: dict[str, Any]) -> None:
    n = len(seen["prompt"])
    assert seen["reused"] == [0, n - 1, 40]
    first, again, branched, branched_cold = seen["answers"]
    assert first == again and branched == branched_cold and seen["same"] is True


def test_chat_and_stop(seen: dict[str, Any]) -> None:
    assert (seen["reply"], seen["finish"]) == (CHAT_REPLY, "stop")
    # Nothing inside a step can be interrupted, so steps are short; tests share a busy machine.
    assert seen["stopped"] == "aborted" and seen["late_s"] < 0.5


def test_the_operator_it_lacks_is_named(seen: dict[str, Any]) -> None:
    assert "STABLEHLO_COMPOSITE" in seen["refused"] and "2.14.0" in seen["refused"]
