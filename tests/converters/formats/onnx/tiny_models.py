"""The runtime tests' tiny models as ONNX folders, kept in pytest's cache, named by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from boardfit.converters.formats.onnx import convert as target
from boardfit.converters.formats.onnx.recipe import load_recipe
from tests.edge.engines import tiny_hf
from tests.programs import skip_or_fail
from tests.tool_pythons import find_tool_python

_WORKER = Path(target.__file__).parent / "worker"
_PINS = _WORKER.parents[1] / "tools/environments.toml"


def need_builder() -> None:
    """Without the builder's environment: fail in CI, else skip."""
    python = find_tool_python("onnx")
    if python is not None and python.exists():
        return
    missing = (
        "the ONNX builder's environment is missing: BOARDFIT_ONNX_PYTHON, or edge build with "
        "--format onnx, which makes it"
    )
    skip_or_fail(missing)


def converted(checkpoint: Path, cache: Path, recipe: str, n_ctx: int) -> Path:
    """`model.onnx` of a conversion, made once for the same inputs and the same code."""
    digest = hashlib.sha256(f"{recipe} {n_ctx}".encode())
    sources = [*_WORKER.glob("*.py"), Path(target.__file__), _PINS]
    for path in (*sorted(checkpoint.iterdir()), *sorted(sources)):
        digest.update(path.read_bytes())
    home = cache / f"onnx-{checkpoint.name}-{digest.hexdigest()[:16]}"
    if not (home / target.MODEL_FILE).is_file():
        need_builder()
        partial = cache / f".{home.name}.{os.getpid()}"
        target.convert_onnx(checkpoint, partial, load_recipe(recipe), n_ctx=n_ctx, threads=1)
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
    return home / target.MODEL_FILE


def models(folder: Path, cache: Path, tensors: dict[str, tuple[Any, int, str]]) -> dict[str, Path]:
    """One converted model per entry of `tensors`: weights, context, recipe."""
    found = {}
    for name, (weights, n_ctx, recipe) in tensors.items():
        source = tiny_hf.write_llama(folder / name, weights, n_ctx=n_ctx)
        widen_heads(source)
        found[name] = converted(source, cache, recipe, n_ctx)
    return found


def widen_heads(checkpoint: Path) -> None:
    """ONNX Runtime's attention takes heads of 16 values and more: the same matrices, cut into other
    heads. Only for models whose attention adds nothing, or whose reference is told the same.
    """
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    if config["head_dim"] % 16:
        for key in ("num_attention_heads", "num_key_value_heads"):
            config[key] = config[key] * config["head_dim"] // 16
        config["head_dim"] = 16
        path.write_text(json.dumps(config, indent=2))


__all__ = ["converted", "models", "need_builder"]
