"""Open what a user names on the command line: a bundle, or a plain model file of any format."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from boardfit.edge.bundle.bundle import Bundle, open_bundle
from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.engines import ENGINES, EngineSettings, open_engine
from boardfit.edge.engines.model_file import bundle_around, file_in, model_file
from boardfit.edge.errors import InputError
from boardfit.edge.files.kind import open_regular, piece_kind
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import Engine, Plan

if TYPE_CHECKING:  # who offers no tools pays for none
    from boardfit.edge.template.tool_format import ToolFormat

E = TypeVar("E")


@dataclass(frozen=True)
class FoundTarget(Generic[E]):
    """A model, its engine, and where it came from; `bundle` is None for a plain file."""

    name: str
    path: Path
    engine: E
    settings: EngineSettings
    bundle: Bundle | None
    model: OpenedFile

    @property
    def plan(self) -> Plan | None:
        return self.bundle.plan if self.bundle else None

    @functools.cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools: as its manifest says, else as its template shows.
        Raises InputError for a manifest that says something else.
        """
        from boardfit.edge.template.tool_format import ToolFormat
        from boardfit.edge.template.tool_proof import find_tool_format

        sealed = (self.manifest or {}).get("tools")
        assert isinstance(self.engine, Engine)
        return ToolFormat.from_dict(sealed) if sealed else find_tool_format(self.engine.template)

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        return self.bundle.manifest if self.bundle else None


OpenModel = FoundTarget[Engine]
FoundModel = FoundTarget[str]  # checked but not loaded: with the engine's name


def open_model(
    path: Path | str, *, progress: Progress | None = None, **overrides: Any
) -> OpenModel:
    """Open a bundle directory, or its model by name, with the settings of its plan, or a model file
    with defaults in the engine of its format; `overrides` are fields of EngineSettings (None: not
    overridden). Raises as `open_bundle` and `open_engine`; InputError if the path is neither.
    """
    found = find_target(path, progress=progress, **overrides)
    engine = open_engine(found.engine, found.model, found.settings, progress=progress)
    return OpenModel(found.name, found.path, engine, found.settings, found.bundle, found.model)


def find_target(
    path: Path | str, *, progress: Progress | None = None, **overrides: Any
) -> FoundModel:
    """What `open_model` loads, and how. Raises as it does, but for loading."""
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"no such file or directory: {str(path)!r}",
            next_step="give a bundle directory (edge build makes one) or a model file: "
            f"{', '.join(suffix for row in ENGINES.values() for suffix in row.formats)}",
        )
    bundle = open_bundle(path, progress=progress) if path.is_dir() else bundle_around(path)
    if bundle is not None:
        model = bundle.model
        if not path.is_dir() and file_in(bundle, path).path != model.path:
            raise InputError(
                f"{path} is part of the bundle {bundle.path}, and not its model",
                next_step=f"edge run {bundle.path}",
            )
        path = bundle.path
        settings = EngineSettings.to_use(bundle.plan).replace(**overrides)
        name, engine_name = bundle.name, bundle.plan.engine
    else:
        model = model_file(path)
        settings = EngineSettings(flash_attn="quicker").replace(**overrides)
        name, engine_name = path.stem, engine_of(model)
    return FoundModel(name, path, engine_name, settings, bundle, model)


def engine_of(path: Source) -> str:
    """The engine of a model file: by its first bytes, then by its suffix; else llama_cpp, whose
    linter says what it is. Raises InputError if it cannot be read.
    """
    file, _ = open_regular(path)
    with file:
        head = file.read(16)
    for name, row in ENGINES.items():
        if row.magic is not None and head.startswith(row.magic[1], row.magic[0]):
            return name
    if piece := piece_kind(path.name):
        raise InputError(f"{path}: {piece.name}", next_step=piece.next_step)
    suffix = path.suffix.lower()
    return next((name for name, row in ENGINES.items() if suffix in row.formats), "llama_cpp")
