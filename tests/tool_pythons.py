"""The pinned environments of other formats, where a test may use them without making one."""

from __future__ import annotations

import os
from pathlib import Path

from boardfit.converters.formats.tools import environments
from boardfit.edge.disk.verified import cache_directory


def find_tool_python(name: environments.ToolName) -> Path | None:
    """The interpreter of `name` if it can be used without installing anything, else None."""
    environment = environments.load_environments()[name]
    if own := os.environ.get(environment.override):
        return Path(own).expanduser()
    python = cache_directory() / "environments" / f"{name}-{environment.key}" / "bin/python"
    return python if python.exists() else None
