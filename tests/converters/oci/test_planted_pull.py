"""A pull into a place that a stranger prepared."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.converters.oci.registries import DockerRegistry
from tests.edge.flash.cargo import make_bundle
from tests.planting import Scenario, contents, make_home, run_edge, try_everything


@pytest.fixture
def reference(server: DockerRegistry, repository: str, tmp_path: Path) -> str:
    """A small bundle in the registry: nested, an empty file, the same content twice."""
    files = {"model.gguf": b"m" * 900, "e.txt": b"", "p/one": b"same" * 9, "p/two": b"same" * 9}
    place = f"{server.address}/{repository}:v1"
    assert run_edge("push", make_bundle(tmp_path / "small", files), place)[0] == 0
    return place


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the tracer reads /proc")
def test_what_lies_beside_a_pull_leads_nowhere(reference: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    scenario = Scenario(
        tmp_path / "empty",
        lambda area: ["pull", reference, area / "kit"],
        ("kit", "kit.partial", "kit.partial/bundle/p/one", "kit.partial/bundle"),
    )
    try_everything(scenario, tmp_path / "tried")
    assert {2, 3} <= scenario.codes


def test_a_push_writes_nothing_beside_the_bundle(
    server: DockerRegistry, repository: str, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "kit", {"model.gguf": b"m" * 900})
    before = contents(tmp_path)
    assert run_edge("push", bundle, f"{server.address}/{repository}:v1")[0] == 0
    assert contents(tmp_path) == before


def test_a_planted_folder_does_not_empty_the_home(reference: str, tmp_path: Path) -> None:
    """`ln -s ~ kit.partial/bundle; edge pull … kit`, and photos in kit.partial."""
    home = make_home(tmp_path / "home")
    work = tmp_path / "kit.partial"
    work.mkdir()
    (work / "bundle").symlink_to(home)
    before = contents(home)
    code, err = run_edge("pull", reference, tmp_path / "kit")
    assert code == 2 and "did not make" in err and "move it away" in err
    assert contents(home) == before and (work / "bundle").is_symlink()
    shutil.rmtree(work)
    work.mkdir()
    (work / "photo").write_bytes(b"mine")
    assert run_edge("pull", reference, tmp_path / "kit")[0] == 2
    assert (work / "photo").read_bytes() == b"mine"
