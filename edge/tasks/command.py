"""`edge tasks`: list the built-in tasks with their lengths and time limits."""

import dataclasses
from typing import Any

import click

from boardfit.edge.tasks.task import Task, find_task, languages, load_tasks
from boardfit.edge.tasks.use import time_text
from boardfit.edge.terminal.output import echo, json_line
from boardfit.edge.units import format_seconds, printable


@click.command()
@click.argument("name", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per task, one per line."
)
def tasks(name: str | None, as_json: bool) -> None:
    """List built-in tasks with typical prompt and answer lengths, or show one in full.

    NAME may also be your own .toml file. Run a task with `edge chat --task NAME` or
    `edge run --task NAME`. Measure it with `edge bench --workload NAME`. Plan for it with
    `edge plan --workload NAME`.
    """
    found = [find_task(name)] if name else list(load_tasks().values())
    if as_json:
        lines = [json_line(task_record(task)) for task in found]
    else:
        lines = task_lines(found[0]) if name else table_lines(found)
    echo("\n".join(lines))


def table_lines(found: list[Task]) -> list[str]:
    """One line per task."""
    width = max(len(task.name) for task in found)
    lines = [f"  {'task':<{width}}  {'prompt':>9}  {'answer':>8}  {'within':>7}  {'first':>7}  "]
    for task in found:
        parameters = "".join(f" {p.option}" for p in task.parameters.values())
        lines.append(
            f"  {task.name:<{width}}  {task.prompt!s:>9}  {task.answer!s:>8}  "
            f"{format_seconds(task.within_s):>7}  {format_seconds(task.first_within_s):>7}  "
            f"{task.title}{',' if parameters else ''}{parameters}"
        )
    note = "  lengths in tokens; edge tasks NAME shows one, edge chat BUNDLE --task NAME uses it"
    return [*lines, "", note]


def task_lines(task: Task) -> list[str]:
    """Everything about one task."""
    lines = [f"{task.name}: {printable(task.title)}", ""]
    if task.about:
        lines += [f"  {printable(task.about)}", ""]
    rows = [
        ("prompt", f"{task.prompt} tokens, most often {task.prompt.typical}"),
        ("answer", f"{task.answer} tokens, most often {task.answer.typical}"),
        ("time", time_text(task.within_s, task.first_within_s)),
        ("given as", "a file, or - for standard input" if task.input == "file" else "a text"),
        ("earlier turns", "count" if task.conversation else "do not count"),
        ("answer's words", "mostly the prompt's" if task.extractive else "its own"),
    ]
    if task.sampling:
        rows.append(("sampling", ", ".join(f"{k} {v:g}" for k, v in task.sampling.items())))
    for parameter in task.parameters.values():
        rows.append((f"--{parameter.name}", printable(parameter.help)))
    if any(p.kind == "language" for p in task.parameters.values()):
        rows.append(("languages", f"{len(languages())}, by code or English name"))
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:<{width}}  {text}" for name, text in rows]
    if task.system:
        lines += ["", "  system prompt", f"    {printable(task.system, 2000)}"]
    message = task.message.splitlines()
    return [*lines, "", "  message", *(f"    {printable(line)}" for line in message)]


def task_record(task: Task) -> dict[str, Any]:
    """A task as a JSON-able object."""
    parameters = [{"name": p.name, "kind": p.kind} for p in task.parameters.values()]
    return {**dataclasses.asdict(task), "parameters": parameters}
