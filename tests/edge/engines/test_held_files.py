"""Every engine loads the files that were verified, whatever lies under their names by then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle, seal_bundle
from boardfit.edge.engines import ENGINES, open_engine
from boardfit.edge.types import GenerationConfig, Plan
from tests.edge.engines.conftest import REPLY, Models
from tests.edge.flash.cargo import PLAN

pytestmark = pytest.mark.engine


def bundle_of(model: Path, engine: str, folder: Path) -> Path:
    """The scripted model of an engine as a bundle, with the files that belong to it."""
    folder.mkdir()
    suffix = ENGINES[engine].formats[0]
    alone = engine in ("llama_cpp", "litert")
    sources = [model] if alone else [p for p in model.parent.iterdir() if p.is_file()]
    roles = {}
    for source in sources:
        if not alone and source.suffix == suffix and source != model:
            continue
        name = f"model{suffix}" if source == model else source.name
        shutil.copy(source, folder / name)
        roles[name] = "model" if source == model else "part"
    plan = Plan.from_dict({**PLAN.to_dict(), "engine": engine, "n_ctx": 256})
    document = {"model": {"name": "m"}, "recipe": {"id": "r"}, "plan": plan.to_dict()}
    seal_bundle(folder, document, roles, {})
    return folder


@pytest.mark.parametrize("swap", ["files", "folder"])
def test_swapped_files_are_not_loaded(
    engine_name: str, engine_models: Models, tmp_path: Path, swap: str
) -> None:
    folder = bundle_of(engine_models.scripted, engine_name, tmp_path / "kit")
    bundle = open_bundle(folder)
    model = bundle.model
    if swap == "folder":
        folder.rename(tmp_path / "aside")
        folder.mkdir()
    for file in bundle.files:
        if swap == "files":
            (folder / file.name).rename(folder / f"{file.name}.aside")
        (folder / file.name).write_bytes(b"\xff" * file.n_bytes)
    engine = open_engine(engine_name, model, bundle.plan)
    try:
        events = engine.stream(engine.prompt("x"), GenerationConfig(max_tokens=12))
        assert "".join(event.text for event in events) == REPLY
        assert engine.describe().name == engine_name
    finally:
        engine.close()
