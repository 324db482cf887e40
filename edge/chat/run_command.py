"""`edge run`: one prompt, one answer, made for pipes.

    edge run BUNDLE "How warm is the board?"
    journalctl -n 50 | edge run BUNDLE --system "Summarize this log in one line."
    edge run BUNDLE --task summarize page.txt
    edge run BUNDLE --task translate --to zh "Where is the station?"
    edge run BUNDLE "dim the lights" --json | jq .text

Exit code 0 for an answer, however it ended; 130 if Ctrl-C stopped it; errors as everywhere.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from boardfit.edge.chat.interrupt import Interrupt
from boardfit.edge.chat.model_options import generation_config, model_options, open_with_progress
from boardfit.edge.chat.session import Session, summarize
from boardfit.edge.chat.timed_open import TimedModel, budget_options, draft_tokens, parse_budget
from boardfit.edge.errors import InputError
from boardfit.edge.option_groups import GroupedCommand
from boardfit.edge.process.live import publish_model, publish_status, watched
from boardfit.edge.states import states_of
from boardfit.edge.tasks.use import TaskUse, parse_task, read_text, task_options
from boardfit.edge.terminal import terminal_safe, write_text
from boardfit.edge.types import Engine, Message, StreamStart, TokenEvent, Trace
from boardfit.edge.units import printable

MAX_PROMPT_BYTES = 4 * 1024**2  # far beyond any context
SCHEMA = 1


@click.command(
    cls=GroupedCommand, short_help="Answer one prompt, from a pipe too, as text or JSON."
)
@click.argument("bundle", type=click.Path())
@click.argument("prompt", required=False)
@model_options
@budget_options
@task_options
@click.option("--system", help="System prompt.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without a chat template.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON line instead of the text.")
@publish_status("run")
def run(
    bundle: str, prompt: str | None, system: str | None, raw: bool, as_json: bool, **options: Any
) -> None:
    """Answer PROMPT with BUNDLE (a bundle directory or a .gguf file).

    Without PROMPT, or with "-", read the prompt from standard input. With --task, PROMPT is the
    input of the task. For a task that takes a file (summarize), PROMPT is a path.
    """
    use = parse_task(options)
    budget = parse_budget(options)
    config = generation_config(options)
    text = task_text(use, prompt) if use else read_prompt(prompt)
    started_s = time.monotonic()
    n_draft = draft_tokens(budget, use.task if use else None)
    opened = open_with_progress(bundle, options, n_draft=n_draft)
    load_s = time.monotonic() - started_s
    with closing(opened.engine), Interrupt() as interrupt:
        engine = opened.engine
        publish_model(opened.name, engine.describe())
        session: Session | None = None
        timed = None
        if use is not None:
            text_only = raw or not engine.has_template
            placed, use = use.placed(engine, plain=text_only)
            system = system or placed
            text, note = use.fitted(text, engine, system, config.max_tokens, plain=text_only)
            if note:
                click.echo(f"note: {note}", err=True)
        plain = is_plain(engine, system, raw)
        if budget is not None:
            timed = TimedModel(opened, system=system, raw=plain)
            session = timed.session
            session.prepare()
            stream = timed.session.ask_within(text, budget, config, interrupt)
        elif plain:
            request_ns = time.monotonic_ns()
            tokens = engine.prompt(text)
            stream = watched(engine.stream(tokens, config, interrupt), len(tokens))
        else:
            session = Session(engine, system=system, states=states_of(opened))
            stream = session.ask(text, config, interrupt)
        events = write_stream(stream, quiet=as_json)
        start = engine.last_start
        if session is None:
            trace = Trace.of_stream(request_ns, tokens, events, start)
        else:
            assert session.last_trace is not None
            trace = session.last_trace
        outcome = timed.session.last_outcome if timed else None
        if as_json:
            record = to_record(trace, start, opened.name, engine, load_s)
            if use is not None:
                record["task"] = use.task.name
            if outcome is not None:
                record["deadline"] = outcome.to_dict()
            click.echo(json.dumps(record, ensure_ascii=False))
        elif outcome is not None:
            click.echo(outcome.line(), err=True)
            for adjustment in outcome.adjustments:
                click.echo(f"  {adjustment}", err=True)
        if timed is not None:
            timed.save()
        if session is not None:
            for problem in session.problems:
                click.echo(f"note: {printable(problem, limit=400)}", err=True)
            session.store_prefix()
        if interrupt.stopped:
            raise click.Abort  # exit code 130, as everywhere


def write_stream(stream: Iterator[TokenEvent], *, quiet: bool) -> list[TokenEvent]:
    """Write the text of a stream as it comes, with a newline at its end; returns its events."""
    # A terminal gets escape sequences shown as text; a pipe or file gets the exact answer.
    safe = terminal_safe if sys.stdout.isatty() else str
    events = []
    for event in stream:
        events.append(event)
        if event.text and not quiet:
            write_text(safe(event.text))
    if events and not quiet and not (events[-1].text or "").endswith("\n"):
        write_text("\n")
    return events


def task_text(use: TaskUse, prompt: str | None) -> str:
    """What the task is done to: a file's text, for tasks that take one, else the prompt itself."""
    if use.task.input == "file" and prompt not in (None, "-"):
        return read_text(prompt or "")
    return read_prompt(prompt)


def read_prompt(prompt: str | None) -> str:
    """The prompt from the command line or from standard input. Raises InputError if it is empty,
    not UTF-8 or longer than MAX_PROMPT_BYTES.
    """
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise InputError(
                "there is no prompt", next_step='edge run BUNDLE "PROMPT", or pipe one in'
            )
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        if len(data) > MAX_PROMPT_BYTES:
            raise InputError(f"the prompt is longer than {MAX_PROMPT_BYTES} bytes")
        try:
            prompt = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8 (byte {error.start})") from None
    if not prompt.strip():
        raise InputError("the prompt is empty")
    return prompt


def prompt_tokens(engine: Engine, text: str, system: str | None, raw: bool) -> list[int]:
    """Tokens of a prompt: as a chat turn if the model has a template, else as text to continue.

    Raises InputError for a system prompt that a plain text has no place for.
    """
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
    trace: Trace, start: StreamStart | None, model: str, engine: Engine, load_s: float
) -> dict[str, Any]:
    """One answer as plain data. Times in seconds, null for what was not measured."""
    answer = summarize(trace, start)
    info = engine.describe()
    return {
        "schema": SCHEMA,
        "kind": "boardfit-run",
        "model": model,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "n_prompt": answer.n_prompt,
        "n_reused": answer.n_reused,
        "n_out": answer.n_out,
        "load_s": load_s,
        "ttft_s": answer.ttft_s,
        "prefill_tps": answer.prefill_tps,
        "decode_tps": answer.decode_tps,
        "total_s": answer.total_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "engine": {"name": info.name, "version": info.version, "n_threads": info.n_threads,
                   "n_ctx": info.n_ctx, "quant": info.quant, "kv_type": info.kv_type},
    }  # fmt: skip


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
