"""The tasks that come with boardfit, and the languages that they know."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.tasks.task import Task, parse_task, read_task
from boardfit.edge.units import did_you_mean, printable

#: From the shortest to the longest.
NAMES = (
    "assistant", "translate", "customer-service", "translate-paragraph", "manual-question",
    "summarize",
)  # fmt: skip


@functools.cache
def load_tasks() -> dict[str, Task]:
    """All presets by name, the shortest first."""
    folder = resources.files("boardfit.edge.tasks").joinpath("presets")
    return {name: parse_task(name, folder.joinpath(f"{name}.toml").read_bytes()) for name in NAMES}


def find_task(name: str) -> Task:
    """A preset by its name, or a task of one's own by the path of its TOML file. Raises UsageError,
    with the nearest name, for an unknown one; InputError for a broken file.
    """
    tasks = load_tasks()
    if name in tasks:
        return tasks[name]
    if name.endswith(".toml"):
        return read_task(Path(name).expanduser())
    raise UsageError(
        f"there is no task {printable(name, 40)!r}.{did_you_mean(name, tasks)}",
        next_step=f"tasks: {', '.join(tasks)}, or a .toml file of your own",
    )


def languages() -> dict[str, str]:
    """Code → name in English."""
    return load_toml("boardfit.edge.tasks", "languages.toml")


def language_name(text: str) -> str:
    """`zh`, `ZH`, `chinese` → `Chinese`. Raises InputError, with the nearest one, otherwise."""
    known = languages()
    wanted = text.strip().lower().replace("_", "-")
    for code, name in known.items():
        if wanted in (code.lower(), name.lower()):
            return name
    near = did_you_mean(wanted, [w.lower() for pair in known.items() for w in pair])
    raise InputError(
        f"unknown language {printable(text, 40)!r}.{near}",
        next_step="give a code such as zh, de or pt-BR, or the English name",
    )
