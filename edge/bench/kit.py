"""The boardfit that made a result: its version and, where known, its commit."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from boardfit.edge import __version__
from boardfit.edge.process.child import SubprocessError, decode_output, run_child


def kit_facts() -> dict[str, str | bool | None]:
    """`version`, `commit` (None where unknown) and whether the checkout had been changed."""
    commit, changed = _installed_commit(), None
    if commit is None:
        commit, changed = _checkout_commit(Path(__file__).resolve().parents[2])
    return {"version": __version__, "commit": commit, "changed": changed}


def _installed_commit() -> str | None:
    """The commit that pip installed from (direct_url.json, PEP 610)."""
    try:
        text = metadata.distribution("boardfit").read_text("direct_url.json")
        found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _checkout_commit(root: Path) -> tuple[str | None, bool | None]:
    """HEAD of a checkout, and whether tracked files differ from it."""
    if not (root / ".git").exists():
        return None, None
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        return head or None, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, SubprocessError):
        return None, None


def _git(root: Path, *words: str) -> str:
    done = run_child(["git", "-C", str(root), *words], timeout_s=10)
    done.check_returncode()
    return decode_output(done.stdout)
