"""A task filled in for one run or chat: its options on the command line, its message and limits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from boardfit.edge.errors import EdgeError, InputError, UsageError
from boardfit.edge.tasks.task import Task, find_task, language_name
from boardfit.edge.terminal.options import add_options
from boardfit.edge.types import Engine, Message
from boardfit.edge.units import format_seconds

MAX_FILE_BYTES = 4 * 1024**2  # far beyond any context
#: What `--within` says for no limit at all, the task's own one included.
NO_LIMIT = "none"
# Sentences are counted one by one to shorten a text; together they may take a few tokens more.
_TRIES = 6

_add_options = add_options(
    click.option(
        "--task", "task_name", metavar="NAME",
        help="Task from `edge tasks`: sets prompt, sampling, time limit (--within none: no limit).",
    ),
    click.option(
        "--to", metavar="LANGUAGE", help="Target language of a translation: zh, de, Spanish."
    ),
    click.option(
        "--document", type=click.Path(), metavar="FILE", help="Text that the question is about."
    ),
)  # fmt: skip


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --task and the parameters of all tasks to a click command, which gets them as `use`. A
    task sets sampling and time where the user did not. Its options stand above theirs.
    """

    @functools.wraps(command)
    def call(*args: Any, task_name: str | None, **values: Any) -> Any:
        use = prepare_task(task_name, {key: values.pop(key) for key in ("to", "document")})
        if use is not None:
            _set_defaults(use.task, values)
        if (values["within"] or "").strip().lower() == NO_LIMIT:
            values["within"] = None
        return command(*args, use=use, **values)

    return _add_options(call)


@dataclass(frozen=True)
class TaskUse:
    """A task with its parameters: `values` holds the text of each."""

    task: Task
    values: Mapping[str, str]

    def message(self, text: str) -> str:
        return self.task.fill({**self.values, "text": text})

    def place_system(self, engine: Engine, *, plain: bool = False) -> tuple[str | None, TaskUse]:
        """The system prompt to open a session with, and the task to use in it. Without a system
        role in the template (`plain`: without a template) it stands in front of every message.
        """
        system, task = self.task.system, self.task
        if system is None:
            return None, self
        if not plain:
            with contextlib.suppress(EdgeError):
                engine.render([Message("system", system), Message("user", "hello")])
                return system, self
        inside = system.replace("{", "(").replace("}", ")")
        task = dataclasses.replace(task, system=None, message=f"{inside}\n\n{task.message}")
        return None, TaskUse(task, self.values)

    def fit_text(
        self, text: str, engine: Engine, system: str | None, n_answer: int, *, plain: bool = False
    ) -> tuple[str, str | None]:
        """The message for `text`, shortened to what the context holds beside `n_answer` tokens (-1:
        not limited), and a note where it was.
        """

        def n_prompt(message: str) -> int:
            if plain:
                return len(engine.prompt(message))
            opening = [Message("system", system)] if system else []
            return len(engine.render([*opening, Message("user", message)]))

        share = engine.n_ctx // 4
        room = engine.n_ctx - (share if n_answer < 0 else min(n_answer, share)) - 1
        return fit_message(self.message(text), n_prompt, engine.count, room)


def fit_message(
    message: str, n_prompt: Callable[[str], int], count: Callable[[str], int], room: int
) -> tuple[str, str | None]:
    """`message`, shortened to its most relevant sentences until its prompt takes at most `room`
    tokens, with a note; unchanged where it fits or nothing in it can go.
    """
    total = n_prompt(message)
    if total <= room:
        return message, None
    from boardfit.edge.deadline.shorten import select, split

    pieces = split(message)
    sizes = [count(piece.text) for piece in pieces]
    budget = sum(sizes) - (total - room)
    for _ in range(_TRIES):
        short = select(pieces, sizes, budget)
        if short is None:
            break
        taken = n_prompt(short)
        if taken <= room:
            note = (
                f"the text is longer than the context: {count(short)} of {sum(sizes)} tokens kept, "
                "the most relevant sentences"
            )
            return short, note
        budget -= taken - room + 4
    return message, None


def prepare_task(name: str | None, given: Mapping[str, str | None]) -> TaskUse | None:
    """Return the task `name` with the `given` parameters; None without a name. Raises UsageError
    for an unknown or missing one, InputError for an unknown language or an unreadable file.
    """
    if name is None:
        for key, value in given.items():
            if value is not None:
                raise UsageError(f"--{key} belongs to a task", next_step="edge tasks lists them")
        return None
    task = find_task(name)
    values = {}
    for key, value in given.items():
        if value is not None and key not in task.parameters:
            raise UsageError(f"the task {task.name} takes no --{key}")
    for parameter in task.parameters.values():
        value = given.get(parameter.name)
        if value is None:
            raise UsageError(
                f"the task {task.name} needs --{parameter.name}",
                next_step=f"--task {task.name} {parameter.option}",
            )
        is_language = parameter.kind == "language"
        values[parameter.name] = language_name(value) if is_language else read_text(value)
    return TaskUse(task, values)


def _set_defaults(task: Task, options: dict[str, Any]) -> None:
    """Put what the task suggests in place of defaults; what the user typed stays."""
    context = click.get_current_context()

    def is_default(key: str) -> bool:
        return context.get_parameter_source(key) in (None, ParameterSource.DEFAULT)

    for key, value in task.sampling.items():
        if is_default(key):
            options[key] = value
    if options.get("thinking", "") is None:
        options["thinking"] = task.thinking
    if options.get("max_tokens", 0) == -1 and options.get("thinking") != "on":
        # Twice what an answer of this task may take is no answer to it any more.
        options["max_tokens"] = 2 * task.answer.high
    if options["within"] is None and options["first_within"] is None:
        options["within"] = f"{task.within_s:g}s"
        if task.first_within_s is not None:
            options["first_within"] = f"{task.first_within_s:g}s"
        if is_default("on_miss"):
            options["on_miss"] = "best"  # who asked for no limit is not refused for one


def read_text(path: str | Path) -> str:
    """A text file. Raises InputError if it cannot be read, is empty, too long or no text."""
    from boardfit.edge.files.kind import read_regular
    from boardfit.edge.files.text import decode_text

    text = decode_text(read_regular(Path(path).expanduser(), MAX_FILE_BYTES), str(path))
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def time_text(within_s: float | None, first_within_s: float | None) -> str:
    """`within 2.00 s, first word 700 ms`, or that there is no limit."""
    limits = (("within", within_s), ("first word", first_within_s))
    parts = [f"{what} {format_seconds(limit)}" for what, limit in limits if limit is not None]
    return ", ".join(parts) or "no limit"
