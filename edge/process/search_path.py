"""PATH without the entries that mean the current folder. Light: `edge --help` imports it."""

import os


def safe_search_path(path: str | None = None) -> str:
    """PATH, ours by default, without empty and relative entries: they mean the current folder."""
    text = os.environ.get("PATH", "") if path is None else path
    places = [place for place in text.split(os.pathsep) if os.path.isabs(place)]
    return os.pathsep.join(places) or os.defpath
