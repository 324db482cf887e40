"""Parse TOML on every supported Python: 3.11 brings the parser, 3.10 has its backport."""

import functools
import sys
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the 3.10 backport has the same interface
    import tomli as tomllib

TOMLDecodeError = tomllib.TOMLDecodeError


def decode_toml(text: str) -> dict[str, Any]:
    document: dict[str, Any] = tomllib.loads(text)
    return document


@functools.cache
def load_toml(package: str, name: str) -> dict[str, Any]:
    """Parse a TOML file that lies in a package."""
    return decode_toml(resources.files(package).joinpath(name).read_text("utf-8"))
