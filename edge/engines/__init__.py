"""Engines behind one protocol (`boardfit.edge.types.Engine`): a table, and the door to them.

    engine = open_engine("llama_cpp", Path("model.gguf"))
    for event in engine.stream(engine.tokenize("Once upon"), GenerationConfig(max_tokens=16)):
        print(event.text, end="")

The table is data: listing engines and saying which are missing imports none of them.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import Engine, Plan
from boardfit.edge.units import did_you_mean

__all__ = ["ENGINES", "EngineEntry", "EngineSettings", "is_installed", "open_engine"]


@dataclass(frozen=True)
class EngineEntry:
    """One row: the class as `module:Class`, suffixes it loads, packages of which one must be
    importable, and the extra that installs it. `magic` identifies its files under any name, with
    its place in them.
    """

    target: str
    formats: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    magic: tuple[int, bytes] | None = None

    @property
    def pip_line(self) -> str:
        return install_line(self.extra)


ENGINES: dict[str, EngineEntry] = {
    "llama_cpp": EngineEntry(
        target="boardfit.edge.engines.llama.engine:LlamaCppEngine",
        formats=(".gguf",),
        packages=("llama_cpp",),
        extra="llama",
        magic=(0, b"GGUF"),
    ),
    "litert": EngineEntry(
        target="boardfit.edge.engines.litert.engine:LiteRtLmEngine",
        formats=(".litertlm",),
        packages=("litert_lm",),
        extra="litert",
        magic=(0, b"LITERTLM"),
    ),
    "tflite": EngineEntry(
        target="boardfit.edge.engines.litert.engine:TfliteEngine",
        formats=(".tflite",),
        packages=("ai_edge_litert", "tflite_runtime"),
        extra="tflite",
        magic=(4, b"TFL3"),
    ),
    "onnx": EngineEntry(  # protobuf files have no magic
        target="boardfit.edge.engines.onnx.engine:OnnxEngine",
        formats=(".onnx",),
        packages=("onnxruntime_genai",),
        extra="onnx",
    ),
}


def is_installed(name: str) -> bool:
    """Whether a package of the engine can be found; nothing of it is imported."""
    return any(importlib.util.find_spec(package) for package in ENGINES[name].packages)


def open_engine(
    name: str,
    model: Path | str | OpenedFile,
    settings: EngineSettings | Plan | None = None,
    *,
    progress: Progress | None = None,
) -> Engine:
    """Open a model in the engine called `name`; a path is taken through `model_file` here.
    `progress(done, total)` is called while the weights load.

    Raises UsageError for an unknown engine, EngineMissingError if its package is not installed,
    InputError or UnsafeInputError for a file it cannot load, DoesNotFitError if memory is short,
    IntegrityError for a file that this place does not accept.
    """
    entry = ENGINES.get(name)
    if entry is None:
        raise UsageError(
            f"unknown engine {name!r}; known: {', '.join(ENGINES)}.{did_you_mean(name, ENGINES)}"
        )
    if not is_installed(name):
        raise EngineMissingError(f"the engine {name} is not installed", next_step=entry.pip_line)
    if isinstance(settings, Plan):
        settings = EngineSettings.from_plan(settings)
    from boardfit.edge.engines.model_file import model_file

    model = model_file(Path(model) if isinstance(model, str) else model)
    module_name, class_name = entry.target.split(":")
    engine_class = getattr(importlib.import_module(module_name), class_name)
    settings = settings or EngineSettings()
    engine: Engine = engine_class.open(model, settings, progress=progress)
    try:
        model.check_unchanged()
        if settings.thinking != "auto" or settings.template_variables:
            engine.set_template(settings.thinking, settings.template_variables)
    except BaseException:
        engine.close()
        raise
    return engine
