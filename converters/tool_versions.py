"""Versions of everything that shaped an artifact, for the manifest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from boardfit.edge import __version__

PACKAGES = ("llama-cpp-python", "gguf", "numpy", "tokenizers", "sentencepiece")


def tool_versions() -> dict[str, str | None]:
    """boardfit's version and those of the packages that convert; None for one that is absent."""
    found: dict[str, str | None] = {"boardfit": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
