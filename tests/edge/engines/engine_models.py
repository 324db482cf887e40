"""The tiny models in the format of each engine, made once: GGUF in a moment, TFLite by upstream's
exporter, which takes its time, so that these are kept in pytest's cache folder, named by content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.edge.engines import tiny_gguf, tiny_hf
from tests.edge.engines.tiny_gguf import F32
from tests.programs import skip_or_fail
from tests.tool_pythons import find_tool_python

REPLY = "a€😀é!"
CHAT_REPLY = "Hi ž."
_EXPORTER = Path(__file__).with_name("export_litert.py")


@dataclass(frozen=True)
class Models:
    """Files of one engine's format. `scripted` says "a€😀é!" and ends after a prompt ending in x,
    and after the template's newline "Hi ž." and ends; `endless` counts there and never ends.
    `heavy` takes long over a prompt. None: the format or its exporter does not know such a model.
    """

    random: Path
    scripted: Path
    heavy: Path
    window: Path | None = None
    recurrent: Path | None = None
    endless: Path | None = None


def successors() -> dict[int, int]:
    table = tiny_gguf.script(REPLY, after=ord("x"), then=tiny_gguf.IM_END)
    table |= tiny_gguf.script(CHAT_REPLY, after=ord("\n"), then=tiny_gguf.IM_END)
    return table | endless(ord("z"))


def endless(after: int) -> dict[int, int]:
    """0 1 2 … 9 0 1 2 … for whoever wants to interrupt."""
    return tiny_gguf.script("0123456789", after=after, then=ord("0"))


def random_tensors() -> dict[str, F32]:
    """Weights of `Models.random`, whatever the format."""
    return tiny_gguf.llama_tensors(np.random.default_rng(0), 128, 2, 128)


def heavy_tensors() -> dict[str, F32]:
    return tiny_gguf.llama_tensors(np.random.default_rng(0), 512, 2, 2048)


# ---- GGUF ---------------------------------------------------------------------------------------


def gguf_models(folder: Path) -> Models:
    return Models(
        random=tiny_gguf.random_llama(folder / "random.gguf"),
        scripted=tiny_gguf.scripted_llama(folder / "scripted.gguf", successors()),
        window=tiny_gguf.random_gemma3(folder / "window.gguf"),
        recurrent=tiny_gguf.random_mamba(folder / "recurrent.gguf"),
        endless=tiny_gguf.scripted_llama(folder / "endless.gguf", endless(ord("\n")), n_ctx=16384),
        heavy=tiny_gguf.random_llama(
            folder / "heavy.gguf", n_ctx=4096, n_embd=512, n_layer=4, n_ff=2048
        ),
    )


# ---- LiteRT -------------------------------------------------------------------------------------

#: Name -> how it is exported. Floats where answers are compared with the reference.
_EXPORTS: dict[str, dict[str, Any]] = {
    "random": {"prefill": [8, 64], "n_ctx": 1024, "recipe": "none"},
    "scripted": {"prefill": [32], "n_ctx": 1024, "recipe": "none"},
    "heavy": {"prefill": [256], "n_ctx": 4096, "recipe": "dynamic_wi8_afp32"},
    "recurrent": {"prefill": [16], "n_ctx": 1024, "recipe": "none"},
}


def litert_models(folder: Path, cache: Path) -> Models:
    """`.litertlm` files."""
    sources = [
        tiny_hf.write_llama(folder / "random", random_tensors(), n_ctx=1024),
        tiny_hf.write_llama(
            folder / "scripted", tiny_gguf.scripted_tensors(successors()), n_ctx=1024
        ),
        tiny_hf.write_llama(folder / "heavy", heavy_tensors(), n_ctx=4096),
        tiny_hf.write_lfm2(folder / "recurrent", n_ctx=1024),
    ]
    jobs, made = [], {}
    for source in sources:
        name = source.name
        job = {"checkpoint": str(source), "out": str(folder / f"{name}-out"), **_EXPORTS[name]}
        made[name] = cache / f"{name}-{_content_key(source, _EXPORTS[name])}.litertlm"
        if not made[name].is_file():
            jobs.append((made[name], job))
    if jobs:
        export(job for _, job in jobs)
        for target, job in jobs:  # the .litertlm last: it stands for both
            for suffix, name in ((".tflite", "plain.tflite"), (".litertlm", "model.litertlm")):
                partial = target.with_name(f".{target.stem}.{os.getpid()}")
                shutil.copy(Path(job["out"]) / name, partial)
                partial.replace(target.with_suffix(suffix))
    return Models(**made)


def export(jobs: Iterator[Mapping[str, Any]]) -> None:
    """Run upstream's exporter. Without its environment: fail in CI, else skip."""
    python = find_tool_python("litert")
    if python is None or not python.exists():
        missing = (
            "litert-torch's environment is missing: BOARDFIT_LITERT_PYTHON, or edge build with "
            "--format tflite, which makes it"
        )
        skip_or_fail(missing)
    command = [str(python), str(_EXPORTER), json.dumps(list(jobs))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _content_key(checkpoint: Path, job: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    pins = Path(__file__).parents[3] / "converters/formats/tools/environments.toml"
    for path in (*sorted(checkpoint.iterdir()), pins, _EXPORTER):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def tflite_models(folder: Path, litert: Models) -> Models:
    """The same decoders as plain `.tflite`, each in a folder with its tokenizer."""
    made = {}
    for name in _EXPORTS:
        home = folder / name
        home.mkdir()
        tiny_hf.write_tokenizer(home)
        source: Path = getattr(litert, name)
        made[name] = Path(shutil.copy(source.with_suffix(".tflite"), home / "model.tflite"))
    return Models(**made)


def onnx_models(folder: Path, cache: Path) -> Models:
    """Folders for onnxruntime-genai. Floats where answers are compared with the reference."""
    from tests.converters.formats.onnx import tiny_models

    return Models(
        **tiny_models.models(
            folder,
            cache,
            {
                "random": (random_tensors(), 1024, "onnx_f32"),
                "scripted": (tiny_gguf.scripted_tensors(successors()), 1024, "onnx_f32"),
                "heavy": (heavy_tensors(), 4096, "onnx_int8"),
            },
        )
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time, so that two test workers do not export the same models."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class ModelShelf:
    """Models by engine, made when first asked for. `new_folder` makes a temporary one, `cache` is
    kept between runs.
    """

    new_folder: Callable[[str], Path]
    cache: Path

    def __post_init__(self) -> None:
        self._made: dict[str, Models] = {}

    def __getitem__(self, engine: str) -> Models:
        if engine not in self._made:
            self._made[engine] = self._make(engine)
        return self._made[engine]

    def _make(self, engine: str) -> Models:
        if engine == "llama_cpp":
            return gguf_models(self.new_folder("gguf"))
        if engine == "litert":
            with alone(self.cache):
                return litert_models(self.new_folder("litert"), self.cache)
        if engine == "tflite":
            return tflite_models(self.new_folder("tflite"), self["litert"])
        if engine == "onnx":
            with alone(self.cache):
                return onnx_models(self.new_folder("onnx"), self.cache)
        raise KeyError(f"no tiny models in the format of {engine}")
