"""The engine for the board, compiled once per machine; bundles with it; the arm64 root.

Everything here lives in the real cache folder: the first run compiles (four minutes on two cores),
later ones find it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from boardfit.converters.board.engine.build import build_wheel
from boardfit.converters.board.engine.store import BuiltEngine
from boardfit.converters.board.offline.parts import bundle_with_engine
from boardfit.converters.build.build import BuildRequest, build
from boardfit.converters.quality.building import QualityOptions
from boardfit.converters.source.resolve import open_model
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.verified import cache_directory
from tests.programs import require

# Read before any test gives itself an empty cache.
REAL_CACHE = cache_directory()

CROSS = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc", "cmake", "ninja")
EMULATION = ("qemu-aarch64-static", "proot", "mmdebstrap")


class Quiet:
    """A reporter for tests; says nothing."""

    def stage(self, text: str) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass


@pytest.fixture(autouse=True)
def _shared_cache(_own_home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes to make is shared by all runs on this machine."""
    monkeypatch.setenv("BOARDFIT_CACHE", str(REAL_CACHE))


@pytest.fixture(scope="session")
def cross_tools() -> None:
    require(*CROSS)


@pytest.fixture(scope="session")
def wheel(cross_tools: None) -> BuiltEngine:
    """The wheel with every kernel variant."""
    return build_wheel(reporter=Quiet())


def sample_bundle(folder: Path, device: str, *, with_engine: bool = True) -> Bundle:
    """The sample model, built for a board."""
    folder.mkdir(exist_ok=True)
    request = BuildRequest(
        spec=open_model("sample"),
        devices=(find_profile(device),),
        output=folder / device,
        with_engine=with_engine,
        quality=QualityOptions(enabled=False),
    )
    return build(request, Quiet())[0].bundle


@pytest.fixture(scope="session")
def pi4_bundle(wheel: BuiltEngine, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample model for a Raspberry Pi 4, with everything it needs there."""
    return sample_bundle(tmp_path_factory.mktemp("pi4"), "raspberry-pi-4b-4gb")


@pytest.fixture(scope="session")
def rebundled(
    pi4_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """The same model with another engine or for another board: `rebundled(device, **options)`."""

    def make(device: str, **options: str) -> Bundle:
        output = tmp_path_factory.mktemp("rebundled") / "bundle"
        return bundle_with_engine(pi4_bundle.path, output, find_profile(device), Quiet(), **options)

    return make
