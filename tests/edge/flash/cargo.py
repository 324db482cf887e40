"""Bundles to flash: the sample model's, variants of it, and large ones of random bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boardfit.edge.bundle.bundle import Bundle, open_bundle, seal_bundle
from boardfit.edge.slots import layout
from boardfit.edge.slots.files import LocalFiles
from boardfit.edge.types import Plan

PLAN = Plan(
    engine="llama_cpp", recipe="q4_k_m", device="raspberry-pi-4b-4gb", n_ctx=256, kv_type="f16",
    n_threads=1, n_batch=64, n_ubatch=64, use_mmap=True, repack=False, artifact_bytes=1,
    memory={"weights_mapped": 64 << 20}, budget_bytes=1 << 30,
)  # fmt: skip


def make_bundle(
    folder: Path, files: dict[str, bytes], *, plan: Plan = PLAN, **manifest: Any
) -> Path:
    """A sealed bundle whose model may be anything; `files` must hold `model.gguf`."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    roles = {name: "model" if name == "model.gguf" else "part" for name in files}
    document = {
        "model": {"name": "cargo", "arch": "llama"},
        "recipe": {"id": plan.recipe},
        "plan": plan.to_dict(),
        **manifest,
    }
    seal_bundle(folder, document, roles, {})
    return folder


def random_bundle(folder: Path, n_bytes: int) -> Path:
    """A bundle whose model is `n_bytes` of random bytes, written in pieces."""
    folder.mkdir(parents=True)
    with (folder / "model.gguf").open("wb") as file:
        for at in range(0, n_bytes, 1 << 20):
            file.write(os.urandom(min(1 << 20, n_bytes - at)))
    document = {
        "model": {"name": "random", "arch": "llama"},
        "recipe": {"id": PLAN.recipe},
        "plan": PLAN.to_dict(),
    }
    seal_bundle(folder, document, {"model.gguf": "model"}, {})
    return folder


def variant(
    source: Path, folder: Path, *, plan: Mapping[str, Any] | None = None, **model: Any
) -> Path:
    """The same bundle with other words in its manifest: another id, the same files."""
    opened = open_bundle(source)
    folder.mkdir(parents=True)
    for file in opened.files:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.name, folder / file.name)
    kept = {k: v for k, v in opened.manifest.items() if k not in ("kind", "schema", "files")}
    kept["model"] = {**kept["model"], **model}
    kept["plan"] = {**kept["plan"], **(plan or {})}
    seal_bundle(folder, kept, {f.name: f.role for f in opened.files}, {})
    return folder


def claim_incoming(root: Path, bundle: Bundle) -> Path:
    """Make the folders that an interrupted flash leaves; where the bundle's files come."""
    files, folder = LocalFiles(root), layout.incoming_folder(bundle.id)
    files.prepare()
    for each in (layout.INCOMING, folder):
        files.claim(each)
    files.make_folder(f"{folder}/bundle")
    return root / folder / "bundle"
