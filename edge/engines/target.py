"""What a user names on the command line, opened: a bundle, or a plain GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.bundle import Bundle, open_bundle
from edge.engines import EngineSettings, open_engine
from edge.errors import InputError
from edge.types import Engine, Plan


@dataclass(frozen=True)
class OpenModel:
    """An open engine and where its model came from; `bundle` is None for a plain file."""

    name: str
    path: Path
    engine: Engine
    settings: EngineSettings
    bundle: Bundle | None

    @property
    def plan(self) -> Plan | None:
        return self.bundle.plan if self.bundle else None

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        return self.bundle.manifest if self.bundle else None


def open_model(
    path: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
    **overrides: Any,
) -> OpenModel:
    """Open a bundle directory with the settings of its plan, or a `.gguf` file with defaults;
    `overrides` are fields of EngineSettings (None: not overridden).

    Raises what `open_bundle` and `open_engine` raise; InputError if the path is neither.
    """
    path = Path(path)
    if path.is_dir():
        bundle = open_bundle(path, progress=progress)
        settings = EngineSettings.from_plan(bundle.plan).replace(
            check_vocabulary=False, **overrides
        )
        name, model_path, engine_name = bundle.name, bundle.model_path, bundle.plan.engine
    else:
        if not path.exists():
            raise InputError(
                f"there is nothing at {path}",
                next_step="give a bundle directory (edge build makes one) or a .gguf file",
            )
        bundle = None
        settings = EngineSettings().replace(**overrides)
        name, model_path, engine_name = path.stem, path, "llama_cpp"
    engine = open_engine(engine_name, model_path, settings, progress=progress)
    return OpenModel(name, path, engine, settings, bundle)
