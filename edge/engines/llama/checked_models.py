"""Remember the hashes of models whose vocabulary was checked, so that a start need not read it."""

from __future__ import annotations

import json
from pathlib import Path

from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.verified import cache_directory

#: Raised when the rules change: what passed older ones is looked at again.
_RULES = 1
_MAX_MODELS = 64


class CheckedModels:
    """A small persistent set of sha256 sums. Losing it costs time, never safety."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_directory() / "checked-vocabularies.json"
        self._known: list[str] = []
        try:
            stored = json.loads(self._path.read_bytes())
            if stored["rules"] == _RULES:
                self._known = [entry for entry in stored["sha256"] if isinstance(entry, str)]
        except Exception:
            pass  # no file yet, or a damaged one: everything is checked again

    def __contains__(self, sha256: str | None) -> bool:
        return sha256 is not None and sha256 in self._known

    def add(self, sha256: str) -> None:
        """Remember a model among the newest; a read-only home is no error."""
        self._known = [*(entry for entry in self._known if entry != sha256), sha256][-_MAX_MODELS:]
        document = {"rules": _RULES, "sha256": self._known}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(document).encode(), mode=0o600)
        except OSError:
            pass
