"""Parse TOML on every supported Python: 3.11 brings the parser, 3.10 has its backport."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the 3.10 backport has the same interface
    import tomli as tomllib

TOMLDecodeError = tomllib.TOMLDecodeError


def decode_toml(text: str) -> dict[str, Any]:
    """Parse a TOML document. Raises TOMLDecodeError."""
    document: dict[str, Any] = tomllib.loads(text)
    return document


def read_own_toml(module: str, name: str) -> dict[str, Any]:
    """The data in the file `name` that ships beside a module; `module` is its `__file__`."""
    return decode_toml(Path(module).with_name(name).read_text(encoding="utf-8"))
