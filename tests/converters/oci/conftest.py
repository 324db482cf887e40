"""One docker-registry for all tests of a worker; each test has a repository of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from boardfit.converters.oci.registry import Registry, parse_reference
from tests.converters.oci.registries import PROGRAM, DockerRegistry, Relay
from tests.edge.flash.cargo import make_bundle
from tests.programs import require


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    require(PROGRAM)
    with DockerRegistry(tmp_path_factory.mktemp("registry") / "a") as registry:
        yield registry


@pytest.fixture
def relay(server: DockerRegistry) -> Iterator[Relay]:
    with Relay(server.port) as relay:
        yield relay


@pytest.fixture(autouse=True)
def no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("boardfit.converters.oci.registry._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("boardfit.converters.oci.pull._PAUSE_S", 0.01)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Nested files, an empty one, the same content twice; a model of 3 MiB."""
    return make_bundle(
        tmp_path / "bundle",
        {
            "model.gguf": os.urandom(3 << 20),
            "empty.txt": b"",
            "parts/one.bin": b"the same" * 1000,
            "parts/two.bin": b"the same" * 1000,
        },
    )


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """A name that no other test uses."""
    return "edge/" + tmp_path.name.lower().replace("_", "-").strip("-").replace("--", "-")


def connect(address: str, repository: str, tag: str = "v1") -> Registry:
    return Registry(parse_reference(f"{address}/{repository}:{tag}"))
