r"""`edge chat`: talk to a model on a terminal, or through pipes.

    edge chat BUNDLE --system "You are brief."

A line ending with a backslash goes on in the next one; a block between two lines of `\"\"\"` is one
message. Ctrl-C stops the answer; at the prompt, a second Ctrl-C, or Ctrl-D, leaves. Where standard
input is no terminal, every line (or block) is a question and only answers are written.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import psutil

from edge.deadline import Budget, Outcome
from edge.errors import EdgeError, InputError, UsageError
from edge.interrupt import Interrupt
from edge.model_options import generation_config, model_options, open_with_progress
from edge.session import Session, state_path
from edge.terminal import terminal_safe, write_text
from edge.timed_open import TimedModel, budget_options, parse_budget
from edge.types import GenerationConfig, TokenEvent
from edge.units import did_you_mean, format_bytes, format_seconds, printable

_FENCE = '"""'
_PROMPT, _MORE = "> ", ". "
_HELP = """\
/help          this text                  /stats         figures of the last answer
/reset         forget the conversation    /system TEXT   set the system prompt (empty: none)
/save FILE     write the conversation     /load FILE     go on with a saved one
/exit          leave (or Ctrl-D)          Ctrl-C         stop the answer
End a line with \\ to go on in the next, or write a block between two lines of \"\"\"."""


@click.command(short_help="Talk to a bundle, offline.")
@click.argument("bundle", type=click.Path())
@model_options
@budget_options
@click.option("--system", help="System prompt.")
@click.option("--load", "load_path", type=click.Path(), help="Go on with a saved conversation.")
def chat(bundle: str, system: str | None, load_path: str | None, **options: Any) -> None:
    """Talk to BUNDLE (a bundle directory or a .gguf file). /help lists what can be typed."""
    budget = parse_budget(options)
    config = generation_config(options)
    opened = open_with_progress(bundle, options)
    with closing(opened.engine):
        timed = TimedModel(opened, system=system) if budget else None
        session = timed.session if timed else Session(opened.engine, system=system)
        room = ChatRoom(session, config, LineReader(), timed, budget)
        # A model without a chat template, or with one that takes no system prompt, says so now and
        # not after the first question; and what rendering imports is there by then.
        session.render_check()
        if load_path:
            room.say(session.load(Path(load_path).expanduser()))
        info = opened.engine.describe()
        room.say(
            f"{printable(opened.name)}: {info.quant}, {info.n_ctx} tokens of context, "
            f"{info.n_threads} threads. /help for help."
        )
        room.talk()


class LineReader:
    """Lines from standard input, with editing and history where it is a terminal."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        if self.interactive:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline  # noqa: F401  (importing it gives `input` editing and history)

    def line(self, prompt: str) -> str:
        """One line without its newline. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C,
        InputError for bytes that are no text.
        """
        try:
            line = input(prompt) + "\n" if self.interactive else sys.stdin.readline()
        except UnicodeDecodeError:
            raise InputError("standard input is not valid text in its encoding") from None
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def message(self) -> str:
        """One message of one or more lines. An unfinished block at the end counts as finished."""
        line = self.line(_PROMPT)
        if line.strip() == _FENCE:
            return self._until(lambda text: text.strip() == _FENCE)
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            try:
                line = self.line(_MORE)
            except EOFError:
                return "\n".join(lines)
        return "\n".join([*lines, line])

    def _until(self, is_end: Callable[[str], bool]) -> str:
        lines: list[str] = []
        while True:
            try:
                line = self.line(_MORE)
            except EOFError:
                return "\n".join(lines)
            if is_end(line):
                return "\n".join(lines)
            lines.append(line)


class ChatRoom:
    """The loop: read a message, obey or answer it."""

    def __init__(
        self,
        session: Session,
        config: GenerationConfig,
        reader: LineReader,
        timed: TimedModel | None = None,
        budget: Budget | None = None,
    ) -> None:
        """With `timed` and a `budget`, `session` is the timed one and keeps the budget."""
        self.session = session
        self.config = config
        self.reader = reader
        self.timed = timed
        self.budget = budget
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self.say(_HELP, always=True),
            "reset": self._reset,
            "save": self._save,
            "load": self._load,
            "stats": self._stats,
            "system": self._system,
        }

    def say(self, text: str, *, always: bool = False) -> None:
        """Tell the user something that is no answer; in a pipe only what was asked for."""
        if always or self.reader.interactive:
            click.echo(text)

    def talk(self) -> None:
        """Until /exit, the end of input, or a second Ctrl-C."""
        warned = False
        while True:
            try:
                text = self.reader.message()
                warned = False
                if text.strip() in ("/exit", "/quit"):
                    return
                if text.strip():
                    self.handle(text)
            except EOFError:
                self.say("")
                return
            except KeyboardInterrupt:  # at the prompt, or a second one right behind an answer
                if not self.reader.interactive:
                    raise
                if warned:
                    self.say("")
                    return
                warned = True
                self.say("\n(Ctrl-C again, or Ctrl-D, to leave)")

    def handle(self, text: str) -> None:
        """One message: a command if it begins with a slash and a letter, else a question. Errors
        are told and the conversation goes on; in a pipe they end it, with their exit code.
        """
        try:
            if text.startswith("/") and text[1:2].isalpha():
                name, _, argument = text[1:].partition(" ")
                self._command(name, argument.strip())
            else:
                self._answer(text)
        except EdgeError as error:
            if not self.reader.interactive:
                raise
            click.echo(f"error: {printable(str(error), limit=2000)}", err=True)
            if error.next_step:
                click.echo(f"  next: {error.next_step}", err=True)

    def _command(self, name: str, argument: str) -> None:
        if name not in self._commands:
            known = [*self._commands, "exit"]
            raise UsageError(
                f"there is no /{printable(name, 40)}.{did_you_mean(name, known)}",
                next_step="/help lists the commands",
            )
        self._commands[name](argument)

    def _answer(self, text: str) -> None:
        safe = terminal_safe if sys.stdout.isatty() else str
        ended = True
        with Interrupt() as interrupt:
            for event in self._stream(text, interrupt):
                if event.text:
                    write_text(safe(event.text))
                    ended = event.text.endswith("\n")
        answer = self.session.last_answer
        if not ended or (answer is not None and not answer.n_out):
            write_text("\n")
        if self.timed is not None:
            self.timed.save()
            self._tell_outcome(self.timed.session.last_outcome)
        if answer is None:
            return
        if answer.finish_reason == "aborted":
            self.say("(stopped)")
        elif answer.finish_reason == "context":
            self.say("(the context is full: the answer was cut)")
        if answer.n_dropped:
            self.say(f"({answer.n_dropped} old messages were forgotten to make room)")

    def _stream(self, text: str, interrupt: Callable[[], bool]) -> Iterator[TokenEvent]:
        if self.timed is not None and self.budget is not None:
            return self.timed.session.ask_within(text, self.budget, self.config, interrupt)
        return self.session.ask(text, self.config, interrupt)

    def _tell_outcome(self, outcome: Outcome | None) -> None:
        """What was done to keep the budget, and whether it was kept; silent when nothing was."""
        if outcome is None:
            return
        for adjustment in outcome.adjustments:
            if adjustment.kind != "reused":
                self.say(f"({adjustment})")
        if outcome.shortened or not outcome.met:
            self.say(f"({outcome.line()})")

    # ---- commands -----------------------------------------------------------------------------

    def _reset(self, _argument: str) -> None:
        self.session.reset()
        self.say("(conversation forgotten)")

    def _system(self, argument: str) -> None:
        self.session.system = argument or None
        self.say("(system prompt set)" if argument else "(no system prompt)")

    def _save(self, argument: str) -> None:
        path = _file(argument, "/save")
        self.session.save(path, state=True)
        state = state_path(path)
        size = f", state {format_bytes(state.stat().st_size)}" if state.exists() else ""
        self.say(f"({len(self.session.messages)} messages saved{size})")

    def _load(self, argument: str) -> None:
        became = self.session.load(_file(argument, "/load"))
        self.say(f"({len(self.session.messages)} messages loaded; {printable(became)})")

    def _stats(self, _argument: str) -> None:
        lines = stats_lines(self.session)
        if self.timed is not None and (outcome := self.timed.session.last_outcome) is not None:
            lines.append(f"budget   {outcome.line()}")
        self.say("\n".join(lines), always=True)


def stats_lines(session: Session) -> list[str]:
    """What the last answer cost, and what the process holds now."""
    lines = []
    answer = session.last_answer
    if answer is not None:
        used = answer.n_prompt + answer.n_out
        lines += [
            f"prompt   {answer.n_prompt} tokens, {answer.n_reused} of them reused; "
            f"{_rate(answer.prefill_tps)}",
            f"answer   {answer.n_out} tokens, {_rate(answer.decode_tps)}; ended by "
            f"{answer.finish_reason}",
            f"first    {format_seconds(answer.ttft_s)}, whole {format_seconds(answer.total_s)}",
            f"context  {used} of {session.engine.n_ctx} tokens",
        ]
    process = psutil.Process()
    memory = process.memory_info()
    shared = getattr(memory, "shared", None)
    anonymous = None if shared is None else memory.rss - shared
    lines.append(
        f"memory   {format_bytes(memory.rss)} resident, {format_bytes(anonymous)} of it anonymous"
    )
    return lines


def _rate(tps: float | None) -> str:
    return "–" if tps is None else f"{tps:.1f} tokens/s"


def _file(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs a file name", next_step=f"{command} FILE")
    return Path(argument).expanduser()
