r"""`edge chat`: chat with a model on a terminal, or through pipes.

    edge chat BUNDLE --system "You are brief."

A line ending with a backslash goes on in the next one; a block between two lines of `\"\"\"` is one
message. Ctrl-C stops the answer; at the prompt, a second Ctrl-C, or Ctrl-D, leaves. Where standard
input is no terminal, every line (or block) is a question and only answers are written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil

from boardfit.edge.chat.interrupt import Interrupt
from boardfit.edge.chat.line_reader import LineReader
from boardfit.edge.chat.model_options import engine_options, generation_options, open_with_progress
from boardfit.edge.chat.session import Session
from boardfit.edge.chat.timed_open import draft_tokens, open_session
from boardfit.edge.deadline.options import budget_options
from boardfit.edge.errors import EdgeError, UsageError
from boardfit.edge.process.live import STATUS, publish_status
from boardfit.edge.tasks.use import TaskUse, task_options, time_text
from boardfit.edge.terminal.option_groups import GroupedCommand
from boardfit.edge.terminal.output import dim, echo, terminal_safe, write_text
from boardfit.edge.types import GenerationConfig
from boardfit.edge.units import did_you_mean, format_bytes, format_seconds, printable

if TYPE_CHECKING:  # a chat without a budget never imports it
    from boardfit.edge.deadline.budget import Budget

_HELP = """\
/help          this text                  /stats         figures of the last answer
/reset         forget the conversation    /system TEXT   set the system prompt (empty: none)
/save FILE     write the conversation     /load FILE     continue a saved one
/exit          leave (or Ctrl-D)          Ctrl-C         stop the answer
End a line with \\ to continue on the next, or write a block between two lines of \"\"\"."""


@click.command(cls=GroupedCommand, short_help="Chat with a bundle, offline.")
@click.argument("bundle", type=click.Path())
@task_options
@budget_options
@generation_options
@engine_options
@click.option("--system", help="System prompt.")
@click.option("--load", "load_path", type=click.Path(), help="Continue a saved conversation.")
@click.option(
    "--session", "kept", type=click.Path(path_type=Path), help="Save the conversation in this file."
)
@publish_status("chat")
def chat(
    bundle: str,
    use: TaskUse | None,
    budget: Budget | None,
    config: GenerationConfig,
    overrides: dict[str, Any],
    system: str | None,
    load_path: str | None,
    kept: Path | None,
) -> None:
    """Chat with BUNDLE (a bundle directory or a .gguf file). Type /help for the commands."""
    n_draft = draft_tokens(budget, use.task if use else None)
    opened = open_with_progress(bundle, overrides, n_draft=n_draft)
    with closing(opened.engine):
        if use is not None:
            task_system, use = use.place_system(opened.engine)
            system = system or task_system
        session = open_session(opened, system=system, timed=budget is not None)
        room = ChatRoom(session, config, LineReader(), budget, use, kept)
        # A model without a chat template, or with one that takes no system prompt, says so now and
        # not after the first question; and what rendering imports is there by then.
        session.check_template()
        room.begin(Path(load_path).expanduser() if load_path else None, system)
        info = opened.engine.describe()
        STATUS.publish_model(opened.name, info)
        room.say(
            f"{printable(opened.name)}: {info.quant}, {info.n_ctx} tokens of context, "
            f"{info.n_threads} threads. /help for help."
        )
        if use is not None:
            limits = (budget.within_s, budget.first_within_s) if budget else (None, None)
            title, about = printable(use.task.title), printable(use.task.about)
            room.say(f"{title}, {time_text(*limits)}. {about}")
        room.talk()


class ChatRoom:
    """The loop: read a message, obey or answer it."""

    def __init__(
        self,
        session: Session,
        config: GenerationConfig,
        reader: LineReader,
        budget: Budget | None = None,
        use: TaskUse | None = None,
        kept: Path | None = None,
    ) -> None:
        """With a task in `use`, every message is done to; `kept` is the conversation's file."""
        self.session, self.config, self.reader = session, config, reader
        self.budget, self.use = budget, use
        self.kept = kept.expanduser() if kept else None
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self.say(_HELP, always=True),
            "reset": self._reset,
            "save": self._save,
            "load": self._load,
            "stats": self._stats,
            "system": self._system,
        }

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a note that is no answer; a pipe gets answers only."""
        if always or self.reader.interactive:
            echo(text)

    def begin(self, load_path: Path | None, system: str | None) -> None:
        """Take up what was saved: a conversation, else the state of the system prompt."""
        if self.kept is not None and load_path is None and self.kept.exists():
            load_path = self.kept
        if load_path is not None:
            self._load_file(load_path)
            self.session.system = system or self.session.system
        elif (restored := self.session.prepare()).n_tokens:
            took = format_seconds(restored.seconds)
            self.say(f"({restored.n_tokens} tokens of the system prompt restored in {took})")
        if self.kept is not None:
            self.session.save(self.kept)  # report an unwritable place now
        self._report_problems()

    def talk(self) -> None:
        """Until /exit, the end of input, or a second Ctrl-C; then the conversation is kept."""
        try:
            self._talk()
        finally:
            if self.kept is not None:
                self.session.save(self.kept, state=True)

    def _talk(self) -> None:
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
        """A command if it begins with a slash and a letter, else a question. In a pipe errors
        raise.
        """
        try:
            if text.startswith("/") and text[1:2].isalpha():
                name, _, argument = text[1:].partition(" ")
                self._command(name, argument.strip())
            else:
                self._answer(text)
                self._keep()
        except EdgeError as error:
            if not self.reader.interactive:
                raise
            echo(f"error: {printable(str(error), limit=2000)}", err=True)
            if error.next_step:
                echo(f"  next: {error.next_step}", err=True)

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
        ended, thinks = True, False
        if self.use is not None:
            text, note = self.use.fit_text(
                text, self.session.engine, self.session.system, self.config.max_tokens
            )
            if note:
                self.say(f"({note})")
            if not self.use.task.conversation:
                self.session.messages = []  # the KV cache keeps what both have in common
        with Interrupt() as interrupt:
            for event in self.session.ask(text, self.config, interrupt, budget=self.budget):
                if event.thought and sys.stdout.isatty():
                    thinks = True
                    write_text(dim(safe(event.thought)))
                if event.text:
                    if thinks:
                        thinks = False
                        write_text("\n\n")
                    write_text(safe(event.text))
                    ended = event.text.endswith("\n")
        answer, outcome = self.session.last_answer, self.session.last_outcome
        if not ended or thinks or (answer is not None and not answer.n_out):
            write_text("\n")
        if outcome is not None:
            for adjustment in outcome.adjustments:
                if adjustment.kind != "reused":
                    self.say(f"({adjustment})")
            if outcome.shortened or not outcome.met:
                self.say(f"({outcome.line()})")
        if answer is None:
            return
        if answer.finish_reason == "aborted":
            self.say("(stopped)")
        elif answer.finish_reason == "context":
            self.say("(the context is full: the answer was cut)")
        if answer.only_thought:
            self.say("(the model thought and gave no answer; --thinking off makes it answer)")
        if answer.n_dropped:
            self.say(f"({answer.n_dropped} old messages were forgotten to make room)")

    def _keep(self) -> None:
        """After an answer, when no one waits for it: keep what was learned and computed."""
        self._report_problems()
        self.session.keep()
        if self.kept is not None:
            self.session.save(self.kept)

    def _report_problems(self) -> None:
        for problem in self.session.problems:
            echo(f"note: {printable(problem, limit=400)}", err=True)
        self.session.problems.clear()

    # ---- commands -----------------------------------------------------------------------------

    def _reset(self, _argument: str) -> None:
        self.session.reset()
        self.say("(conversation forgotten)")

    def _system(self, argument: str) -> None:
        self.session.system = argument or None
        self.say("(system prompt set)" if argument else "(no system prompt)")

    def _save(self, argument: str) -> None:
        state = self.session.save(_file(argument, "/save"), state=True)
        size = f", state {format_bytes(state.stat().st_size)}" if state else ""
        self.say(f"({len(self.session.messages)} messages saved{size})")

    def _load(self, argument: str) -> None:
        self._load_file(_file(argument, "/load"))
        self._report_problems()

    def _load_file(self, path: Path) -> None:
        became = self.session.load(path)
        self.say(f"({len(self.session.messages)} messages loaded; {printable(became)})")

    def _stats(self, _argument: str) -> None:
        """What the last answer cost, and what the process holds now."""
        lines = []
        if (answer := self.session.last_answer) is not None:
            prefill, decode = (
                "–" if tps is None else f"{tps:.1f} tokens/s"
                for tps in (answer.prefill_tps, answer.decode_tps)
            )
            used = answer.n_prompt + answer.n_out
            lines = [
                f"prompt   {answer.n_prompt} tokens, {answer.n_reused} of them reused; {prefill}",
                f"answer   {answer.n_out} tokens, {decode}; ended by {answer.finish_reason}",
                f"first    {format_seconds(answer.ttft_s)}, whole {format_seconds(answer.total_s)}",
                f"context  {used} of {self.session.engine.n_ctx} tokens",
            ]
        memory = psutil.Process().memory_info()
        shared = getattr(memory, "shared", None)
        anonymous = format_bytes(None if shared is None else memory.rss - shared)
        lines.append(f"memory   {format_bytes(memory.rss)} resident, {anonymous} of it anonymous")
        if (outcome := self.session.last_outcome) is not None:
            lines.append(f"budget   {outcome.line()}")
        self.say("\n".join(lines), always=True)


def _file(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs a file name", next_step=f"{command} FILE")
    return Path(argument).expanduser()
