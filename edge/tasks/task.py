"""One task: its prompt, the lengths of prompts and answers, and the time limit, in a TOML file.

What the user gives goes into `message` at `{text}`, parameters at their names. Lengths are in
tokens of the model's own tokenizer.
"""

from __future__ import annotations

import functools
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from boardfit.device_profiles.toml_parser import decode_toml, load_toml
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.types import GenerationConfig, Thinking
from boardfit.edge.units import did_you_mean, parse_seconds, printable

if TYPE_CHECKING:  # a chat without a budget never imports it
    from boardfit.edge.deadline.budget import Budget

Input = Literal["text", "file"]
ParameterKind = Literal["language", "file"]

MAX_TASK_BYTES = 256 * 1024
PLACE = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_KEYS = ("title", "about", "system", "message", "input", "extractive", "conversation", "thinking")
_TABLES = ("parameters", "prompt", "answer", "budget", "sampling")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
#: From the shortest to the longest.
NAMES = (
    "assistant", "translate", "customer-service", "translate-paragraph", "manual-question",
    "summarize",
)  # fmt: skip
#: No prompt or answer of a task is longer, in tokens.
_LONGEST = 1_000_000


@dataclass(frozen=True)
class Length:
    """Tokens: at least `low`, most often `typical`, at most `high`; triangular in between."""

    low: int
    typical: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.typical <= self.high <= _LONGEST:
            raise InputError(
                f"a length must have 1 <= low <= typical <= high, got {self.low}, {self.typical}, "
                f"{self.high}"
            )

    def draw(self, rng: random.Random) -> int:
        return self.quantile(rng.random())

    def quantile(self, q: float) -> int:
        """The length that a share `q` of all requests does not pass, rounded to whole tokens."""
        low, mode, high = self.low, self.typical, self.high
        if low == high:
            return low
        if q < (mode - low) / (high - low):
            return round(low + math.sqrt(q * (high - low) * (mode - low)))
        return round(high - math.sqrt((1 - q) * (high - low) * (high - mode)))

    def __str__(self) -> str:
        return f"{self.low}–{self.high}"


@dataclass(frozen=True)
class Parameter:
    """An input of a task beside the text: a language, a file."""

    name: str
    kind: ParameterKind
    help: str = ""
    example: str = "FILE"

    @property
    def option(self) -> str:
        return f"--{self.name} {self.example}"


@dataclass(frozen=True)
class Task:
    """A preset. `input`: whether the user gives a text or a file with one; `extractive`: answers
    repeat words of the prompt, so that looking ahead may pay; `conversation`: earlier turns matter.
    `sampling` holds fields of GenerationConfig. `thinking` would take the seconds that a task has.
    """

    name: str
    title: str
    about: str
    message: str
    prompt: Length
    answer: Length
    within_s: float
    first_within_s: float | None = None
    system: str | None = None
    input: Input = "text"
    extractive: bool = False
    conversation: bool = False
    thinking: Thinking = "off"
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sampling: Mapping[str, float | int] = field(default_factory=dict)

    def budget(self, **changes: Any) -> Budget:
        """The task's own budget; it gives what the time allows unless `on_miss` says otherwise."""
        from boardfit.edge.deadline.budget import Budget

        return Budget(self.within_s, self.first_within_s, **{"on_miss": "best", **changes})

    def fill(self, values: Mapping[str, str]) -> str:
        """The message with `values` (`text` and every parameter) in their places."""
        return PLACE.sub(lambda match: values[match[1]], self.message)


def read_task(path: Path) -> Task:
    """A task from a TOML file, named as the file is. Raises InputError that says what is wrong."""
    from boardfit.edge.files.kind import read_regular

    return parse_task(path.stem, read_regular(path, MAX_TASK_BYTES))


def parse_task(name: str, data: bytes) -> Task:
    """A task from TOML. Raises InputError that names the task and what is wrong."""
    where = f"task {printable(name, 40)}"
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: a name has lower-case words joined by hyphens")
    try:
        table = decode_toml(data.decode("utf-8"))
        return _task(name, table)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not TOML: {printable(str(error))}") from None


def _task(name: str, table: dict[str, Any]) -> Task:
    _check_keys(table, (*_KEYS, *_TABLES), "it")
    for key in ("title", "message"):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise InputError(f"{key!r} must be a text")
    for key, kind, noun in (
        *((key, str, "a text") for key in ("about", "system", "input")),
        *((key, bool, "true or false") for key in ("extractive", "conversation")),
        *((key, dict, "a table") for key in _TABLES),
    ):
        if key in table and not isinstance(table[key], kind):
            raise InputError(f"{key!r} must be {noun}")
    if table.get("input", "text") not in ("text", "file"):
        raise InputError(f"'input' must be text or file, got {table['input']!r:.40}")
    if table.get("thinking", "off") not in get_args(Thinking):
        choices = ", ".join(get_args(Thinking))
        raise InputError(f"'thinking' must be one of {choices}, got {table['thinking']!r:.40}")
    parameters = {key: _parameter(key, value) for key, value in table.get("parameters", {}).items()}
    if odd := sorted({"text", *parameters} ^ set(PLACE.findall(table["message"]))):
        raise InputError(
            "'message' must hold {text} and every parameter, once named; see: " + ", ".join(odd)
        )
    budget = table.get("budget", {})
    _check_keys(budget, ("within", "first_within"), "'budget'")
    first = budget.get("first_within")
    plain = {key: table[key] for key in _KEYS if key in table}
    return Task(
        **{"about": "", **plain, "system": table.get("system") or None},
        name=name,
        prompt=_length(table, "prompt"),
        answer=_length(table, "answer"),
        within_s=_time(budget.get("within"), "within"),
        first_within_s=None if first is None else _time(first, "first_within"),
        parameters=parameters,
        sampling=_sampling(table.get("sampling", {})),
    )


def _sampling(table: dict[str, Any]) -> dict[str, Any]:
    _check_keys(table, _SAMPLING, "'sampling'")
    if not all(type(value) in (int, float) for value in table.values()):
        raise InputError("'sampling' must hold numbers")
    try:
        GenerationConfig(**table)
    except ValueError as error:
        raise InputError(f"'sampling': {error}") from None
    return table


def _parameter(name: str, table: Any) -> Parameter:
    if not isinstance(table, dict):
        raise InputError(f"parameter {name!r} must be a table")
    _check_keys(table, ("kind", "help", "example"), f"parameter {name!r}")
    if table.get("kind") not in ("language", "file"):
        raise InputError(f"parameter {name!r}: kind must be language or file")
    if not all(isinstance(value, str) for value in table.values()):
        raise InputError(f"parameter {name!r} must hold texts")
    return Parameter(name, **table)


def _length(table: Mapping[str, Any], key: str) -> Length:
    found = table.get(key)
    if not isinstance(found, dict):
        raise InputError(f"a table [{key}] with low, typical and high is missing")
    _check_keys(found, ("low", "typical", "high"), f"[{key}]")
    values = [found.get(name) for name in ("low", "typical", "high")]
    if not all(type(value) is int for value in values):
        raise InputError(f"[{key}] must hold low, typical and high as whole numbers")
    return Length(*values)  # type: ignore[arg-type]


def _time(value: Any, key: str) -> float:
    if not isinstance(value, str):
        raise InputError(f'[budget] needs {key} as a text such as "2s"')
    try:
        return round(parse_seconds(value), 9)
    except ValueError as error:
        raise InputError(f"[budget] {key}: {error}") from None


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in known:
            raise InputError(
                f"{what} has no entry {printable(key, 40)!r}.{did_you_mean(key, known)}"
            )


# ---- those that come with boardfit --------------------------------------------------------------


@functools.cache
def load_tasks() -> dict[str, Task]:
    """All presets by name, the shortest first."""
    folder = resources.files("boardfit.edge.tasks").joinpath("presets")
    return {name: parse_task(name, folder.joinpath(f"{name}.toml").read_bytes()) for name in NAMES}


def find_task(name: str) -> Task:
    """A preset by its name, or a task by its TOML file. Raises UsageError or InputError."""
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
