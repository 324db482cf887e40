"""Entry points of one group, without `importlib.metadata`.

That module brings the email and zip packages along, a tenth of what a short command takes. Here
only the `entry_points.txt` of installed distributions are read; the format is that of
https://packaging.python.org/en/latest/specifications/entry-points/.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any


def load_entry_points(group: str) -> Iterator[Any]:
    """The objects that installed distributions name in `group`, the first of each name alone, as
    `sys.path` has them. Import errors are the distribution's own and are raised.
    """
    seen: set[str] = set()
    for text in _files():
        for name, value in _section(text, group):
            if name not in seen:
                seen.add(name)
                module, _, attribute = value.partition(":")
                found: Any = import_module(module.strip())
                for part in filter(None, attribute.partition("[")[0].strip().split(".")):
                    found = getattr(found, part)
                yield found


def _files() -> Iterator[str]:
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except OSError:  # a zip file, or a directory that is not there
            continue
        for name in sorted(names):
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(
                        os.path.join(place, name, "entry_points.txt"), encoding="utf-8"
                    ) as file:
                        yield file.read()
                except (OSError, UnicodeDecodeError):
                    continue


def _section(text: str, group: str) -> Iterator[tuple[str, str]]:
    """(name, value) of the lines below `[group]`."""
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()
