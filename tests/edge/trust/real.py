"""Small bundles that really run: a model says one thing, a stranger's another."""

from __future__ import annotations

from pathlib import Path

from boardfit.edge.bundle.bundle import seal_bundle
from boardfit.edge.engines.target import OpenModel
from boardfit.edge.types import GenerationConfig
from tests.edge.engines import tiny_gguf
from tests.edge.flash.cargo import PLAN

OURS, THEIRS = "mine", "evil"


def scripted(path: Path, text: str) -> Path:
    """A model that answers "x" with `text`. All of them have the same size."""
    return tiny_gguf.scripted_llama(
        path, tiny_gguf.script(text, after=ord("x"), then=tiny_gguf.IM_END)
    )


def real_bundle(folder: Path, text: str = OURS) -> Path:
    folder.mkdir(parents=True)
    scripted(folder / "model.gguf", text)
    document = {
        "model": {"name": "real", "arch": "llama"},
        "recipe": {"id": PLAN.recipe},
        "plan": PLAN.to_dict(),
    }
    seal_bundle(folder, document, {"model.gguf": "model"}, {})
    return folder


def says(opened: OpenModel) -> str:
    """What an opened model answers; closes it."""
    try:
        events = opened.engine.stream([ord("x")], GenerationConfig(max_tokens=8))
        return "".join(event.text for event in events)
    finally:
        opened.engine.close()
