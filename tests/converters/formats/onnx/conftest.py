"""Small networks that are no language models, made once for all tests of a worker process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.converters.formats.litert.conftest import litert_python
from tests.converters.formats.onnx.tiny_models import need_builder
from tests.tool_pythons import find_tool_python

__all__ = ["litert_python", "networks"]  # fixtures of these tests


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with picture.onnx, speech.onnx and squares.npz."""
    need_builder()
    python = find_tool_python("onnx")
    assert python is not None  # need_builder saw it
    home = tmp_path_factory.mktemp("networks")
    command = [str(python), str(Path(__file__).parents[1] / "network/networks.py"), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return home
