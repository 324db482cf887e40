"""Where the engine's base library lies, found without importing the engine's package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.requirements import install_line

_LIBRARY = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(
    sys.platform, "libggml-base.so"
)


def library_path() -> Path:
    """ggml's base library in the installed engine. Raises EngineMissingError, with the pip line."""
    spec = importlib.util.find_spec("llama_cpp")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        library = Path(folder) / "lib" / _LIBRARY
        if library.is_file():
            return library
    found = f"llama_cpp is installed, but without {_LIBRARY}" if spec else "it is not installed"
    raise EngineMissingError(
        f"quantizing needs the engine llama-cpp-python: {found}",
        next_step=install_line("llama", "llama-cpp-python"),
    )
