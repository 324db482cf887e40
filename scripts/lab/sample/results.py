"""Measured accuracy by 4-bit recipe: a JSON file beside the model, and a table in its card.

    from lab.sample import results
    results.update("q4_k_m", score, file_bytes=2_345_678, engine="llama.cpp b1234")

The JSON file is the truth, the table is drawn from it. Recipes are lower case with hyphens or
underscores, as in `converters/formats/gguf/recipes`.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from boardfit.converters.sample import MODEL_DIR
from lab.sample.task import KINDS, TaskScore

BEGIN = "<!-- results: begin (written by converters/sample/results.py) -->"
END = "<!-- results: end -->"


def load(model_dir: Path = MODEL_DIR) -> dict[str, Any]:
    """The results file, or an empty one."""
    path = model_dir / "results.json"
    if not path.exists():
        return {"schema": 1, "training": {}, "recipes": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def save(found: dict[str, Any], model_dir: Path = MODEL_DIR) -> None:
    """Write the results file."""
    text = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_text(model_dir / "results.json", text)


def update(
    recipe: str, score: TaskScore, file_bytes: int, engine: str, model_dir: Path = MODEL_DIR
) -> None:
    """Record one recipe's held-out score and redraw the card's table."""
    if not score.n_asked:
        raise ValueError(f"score for recipe {recipe!r} is empty; ask at least one example")
    if file_bytes <= 0:
        raise ValueError(f"file_bytes is {file_bytes} for recipe {recipe!r}; give the size on disk")
    found = load(model_dir)
    found["recipes"][recipe] = {**score.to_dict(), "file_bytes": file_bytes, "engine": engine}
    save(found, model_dir)
    card = model_dir / "README.md"
    if card.exists():
        write_text(card, render_into(card.read_text(encoding="utf-8"), found))


def table(found: dict[str, Any]) -> str:
    """Markdown table of all recipes, largest file first."""
    if not found["recipes"]:
        return "Not measured yet."
    head = (
        "| recipe | file (MiB) | commands | unseen names | plain questions | new words "
        "| asked | engine |\n|---|---|---|---|---|---|---|---|"
    )
    rows = sorted(found["recipes"].items(), key=lambda item: (-item[1]["file_bytes"], item[0]))
    lines = []
    for recipe, row in rows:
        cells = [_percent(row["exact"].get(kind)) for kind in KINDS]
        n_asked = sum(row["n_asked"].values())
        lines.append(
            f"| {recipe} | {row['file_bytes'] / 2**20:.2f} | {' | '.join(cells)} "
            f"| {n_asked} | {row['engine']} |"
        )
    return "\n".join([head, *lines])


def render_into(card: str, found: dict[str, Any]) -> str:
    """The card with the table between its two markers replaced."""
    if card.count(BEGIN) != 1 or card.count(END) != 1 or card.index(BEGIN) > card.index(END):
        raise ValueError(f"the card needs {BEGIN!r} and then {END!r}, once each; add them back")
    before, rest = card.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    os.chmod(scratch, 0o644)
    os.replace(scratch, path)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
