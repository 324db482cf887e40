"""The pinned environments, and the sample model built once for all tests of a worker process."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.converters.formats.base import FORMATS
from boardfit.edge.bundle.bundle import Bundle, open_bundle
from tests.programs import skip_or_fail
from tests.tool_pythons import find_tool_python

# Before any test points the cache elsewhere.
_LITERT, _ONNX = find_tool_python("litert"), find_tool_python("onnx")
#: Context of the built bundles.
N_CTX = 512


@pytest.fixture(scope="session")
def litert_python() -> Path:
    """The interpreter of the litert environment. Its absence fails in CI, and skips elsewhere."""
    return _needed("litert", _LITERT)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The sample model in every format by one `edge build`, quality cards included: bundles by
    format.
    """
    pythons = {tool: _needed(tool, path) for tool, path in (("litert", _LITERT), ("onnx", _ONNX))}
    home = tmp_path_factory.mktemp("built")
    words = [
        "sample", "-d", "raspberry-pi-5-8gb", "-o", str(home / "sample"), "--threads", "1",
        "--ctx", str(N_CTX), "--format", ",".join(FORMATS), "--json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOARDFIT_CACHE", str(home / "cache"))
        for tool, python in pythons.items():
            patch.setenv(f"BOARDFIT_{tool.upper()}_PYTHON", str(python))
        done = CliRunner().invoke(build_command, words, catch_exceptions=False)
    assert len(done.stdout.splitlines()) == len(FORMATS)
    return {name: open_bundle(home / "sample" / name, verify=True) for name in FORMATS}


def _needed(tool: str, python: Path | None) -> Path:
    if python is None or not python.exists():
        skip_or_fail(f"the {tool} environment is not there: scripts/test makes it")
    return python
