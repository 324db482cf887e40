"""`edge run`: one prompt, one answer, made for pipes.

    edge run BUNDLE "How warm is the board?"
    journalctl -n 50 | edge run BUNDLE --system "Summarize this log in one line."
    edge run BUNDLE --task summarize page.txt
    edge run BUNDLE --task translate --to zh "Where is the station?"
    edge run BUNDLE "dim the lights" --json | jq .text
    edge run BUNDLE "Is it cold at 2 °C?" --choice yes,no

Exit code 0 for an answer, however it ended; 130 if Ctrl-C stopped it; errors as everywhere.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boardfit.edge.chat.embed import write_vectors
from boardfit.edge.chat.interrupt import Interrupt
from boardfit.edge.chat.model_options import (
    engine_options,
    form_options,
    generation_options,
    open_with_progress,
)
from boardfit.edge.chat.sandbox import is_inside, run_in_cage
from boardfit.edge.chat.session import Session
from boardfit.edge.chat.timed_open import draft_tokens, open_session
from boardfit.edge.deadline.options import budget_options
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.files.text import clean_text, decode_text
from boardfit.edge.process.live import STATUS, publish_status
from boardfit.edge.tasks.use import TaskUse, read_text, task_options
from boardfit.edge.terminal.option_groups import GroupedCommand
from boardfit.edge.terminal.output import echo, json_line, terminal_safe, write_text
from boardfit.edge.types import Constraint, Engine, GenerationConfig, Message, TokenEvent
from boardfit.edge.units import printable

if TYPE_CHECKING:  # a run without a budget never imports it
    from boardfit.edge.deadline.budget import Budget

MAX_PROMPT_BYTES = 4 * 1024**2  # far beyond any context
SCHEMA = 1
ONLY_THOUGHT = "the model thought and gave no answer; --thinking off makes it answer at once"


@click.command(
    cls=GroupedCommand, short_help="Answer one prompt, from a pipe too, as text or JSON."
)
@click.argument("bundle", type=click.Path())
@click.argument("prompts", nargs=-1, metavar="[PROMPT]")
@click.option(
    "--embed", is_flag=True,
    help="Write the vector of each TEXT of an embedding model: edge run BUNDLE --embed TEXT…",
)  # fmt: skip
@task_options
@budget_options
@form_options
@generation_options
@engine_options
@click.option("--system", help="System prompt.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without a chat template.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON line instead of the text.")
@click.option(
    "--sandbox", is_flag=True,
    help="Run in a cage without network, secrets and places to write (bubblewrap or systemd).",
)  # fmt: skip
@publish_status("run")
def run(
    bundle: str,
    prompts: tuple[str, ...],
    embed: bool,
    use: TaskUse | None,
    budget: Budget | None,
    constraint: Constraint | None,
    config: GenerationConfig,
    overrides: dict[str, Any],
    system: str | None,
    raw: bool,
    as_json: bool,
    sandbox: bool,
) -> None:
    """Answer PROMPT with BUNDLE (a bundle directory or a .gguf file).

    Without PROMPT, or with "-", read the prompt from standard input. With --task, PROMPT is the
    input of the task. For a task that takes a file (summarize), PROMPT is a path. With --embed,
    write one JSON line with a vector per text, or per line of standard input.
    """
    if sandbox and not is_inside():
        sys.exit(run_in_cage(Path(bundle), sys.argv[1:]))
    if embed:
        if use or budget or system or raw or constraint:
            raise UsageError("--embed answers nothing: leave the options of an answer out")
        write_vectors(bundle, prompts, overrides)
        return
    if prompts[1:]:
        raise UsageError(
            f"one prompt is answered, {len(prompts)} were given", next_step="put it into quotes"
        )
    prompt = prompts[0] if prompts else None
    config = dataclasses.replace(config, constraint=constraint)
    is_path = use is not None and use.task.input == "file" and prompt not in (None, "-")
    text = read_text(prompt or "") if is_path else read_prompt(prompt)
    started_s = time.monotonic()
    n_draft = draft_tokens(budget, use.task if use else None)
    opened = open_with_progress(bundle, overrides, n_draft=n_draft)
    load_s = time.monotonic() - started_s
    with closing(opened.engine), Interrupt() as interrupt:
        engine = opened.engine
        STATUS.publish_model(opened.name, engine.describe())
        if use is not None:
            text_only = raw or not engine.has_template
            task_system, use = use.place_system(engine, plain=text_only)
            system = system or task_system
            text, note = use.fit_text(text, engine, system, config.max_tokens, plain=text_only)
            if note:
                echo(f"note: {note}", err=True)
        plain = is_plain(engine, system, raw)
        session = open_session(opened, system=system, raw=plain, timed=budget is not None)
        if budget is not None:
            session.prepare()
        write_stream(session.ask(text, config, interrupt, budget=budget), quiet=as_json)
        if as_json:
            echo(json_line(to_record(session, opened.name, load_s, use)))
        else:
            if (outcome := session.last_outcome) is not None:
                echo(outcome.line(), err=True)
                for adjustment in outcome.adjustments:
                    echo(f"  {adjustment}", err=True)
            if session.last_answer is not None and session.last_answer.only_thought:
                echo(f"note: {ONLY_THOUGHT}", err=True)
        for problem in session.problems:
            echo(f"note: {printable(problem, limit=400)}", err=True)
        session.keep()
        if interrupt():
            raise click.Abort  # exit code 130, as everywhere


def write_stream(stream: Iterator[TokenEvent], *, quiet: bool) -> None:
    """Write the text of a stream as it comes, with a newline at its end."""
    # A terminal gets escape sequences shown as text; a pipe or file gets the exact answer.
    safe = terminal_safe if sys.stdout.isatty() else str
    last, thinks = None, False
    for last in stream:
        if last.thought and not thinks and not quiet and sys.stderr.isatty():
            thinks = True
            echo("(thinking …)", err=True)
        if last.text and not quiet:
            write_text(safe(last.text))
    if last is not None and not quiet and not last.text.endswith("\n"):
        write_text("\n")


def read_prompt(prompt: str | None) -> str:
    """The prompt, from standard input too. Raises InputError if it is empty, no text or long."""
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise InputError(
                "there is no prompt", next_step='edge run BUNDLE "PROMPT", or pipe one in'
            )
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        if len(data) > MAX_PROMPT_BYTES:
            raise InputError(f"the prompt is longer than {MAX_PROMPT_BYTES} bytes")
        prompt = decode_text(data, "standard input")
    else:
        prompt = clean_text(prompt, "the prompt")
    if not prompt.strip():
        raise InputError("the prompt is empty")
    return prompt


def prompt_tokens(engine: Engine, text: str, system: str | None, raw: bool) -> list[int]:
    """Tokens of a prompt, as a chat turn if the model has a template. Raises as `is_plain`."""
    if is_plain(engine, system, raw):
        return engine.prompt(text)
    messages = [Message("system", system)] if system else []
    return engine.render([*messages, Message("user", text)])


def is_plain(engine: Engine, system: str | None, raw: bool) -> bool:
    """Whether a prompt is plain text to continue. Raises InputError for a system prompt then."""
    plain = raw or not engine.has_template
    if plain and system:
        raise InputError("--system needs a model with a chat template, and no --raw")
    return plain


def to_record(
    session: Session, model: str, load_s: float, use: TaskUse | None = None
) -> dict[str, Any]:
    """One answer as plain data. Times in seconds, null for what was not measured."""
    answer, outcome, info = session.last_answer, session.last_outcome, session.engine.describe()
    assert answer is not None
    figures = dataclasses.asdict(answer)
    del figures["n_dropped"]
    engine = ("name", "version", "n_threads", "n_ctx", "quant", "kv_type")
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "boardfit-run",
        "model": model,
        **figures,
        "load_s": load_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "engine": {key: getattr(info, key) for key in engine},
    }
    if use is not None:
        record["task"] = use.task.name
    if outcome is not None:
        record["deadline"] = outcome.to_dict()
    return record


def peak_rss_bytes() -> int | None:
    """Largest resident set of this process so far, mapped weights included; None where unknown."""
    try:
        # Not getrusage where there is a choice: on Linux it counts what the parent held at fork.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
