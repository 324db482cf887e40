"""`edge watch`: live tokens/s, memory by kind, heat, clock and throttling of what runs here."""

import json
import sys
import time
from contextlib import closing, suppress
from datetime import datetime, timezone

import click

from boardfit.edge.probe.remote import parse_target
from boardfit.edge.terminal.output import write_text
from boardfit.edge.watch.draw import ProcessHistory, screen_lines
from boardfit.edge.watch.look import Here, Look, WatchedBoard, to_record
from boardfit.edge.watch.screen import Screen

# A pipe has no width.
WIDE, TALL = 200, 10_000


@click.command()
@click.argument("target", required=False)
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True,
    help="Seconds between updates.",
)  # fmt: skip
@click.option("-n", "--looks", type=click.IntRange(min=1), help="Exit after this many updates.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line per update.")
def watch(target: str | None, interval: float, looks: int | None, as_json: bool) -> None:
    """Show live tokens/s, memory, temperature, clock, power and throttling of this board or TARGET.

    TARGET is ssh://user@host or adb://serial. The view covers every process of `edge chat`, `edge
    run` or `edge bench`. You may start `edge watch` before them. Press q or Ctrl-C to exit.
    """
    source: Here | WatchedBoard = WatchedBoard(parse_target(target), interval) if target else Here()
    title = f"edge watch {target}" if target else "edge watch"
    with closing(source), suppress(KeyboardInterrupt):  # Ctrl-C is the way to leave
        if as_json or not sys.stdout.isatty():
            print_looks(source, interval, looks, as_json=as_json, title=title)
        else:
            show_looks(source, interval, looks, title)


Histories = dict[int, ProcessHistory]


def add_look(look: Look, past: Histories) -> Histories:
    """The histories of a look's processes; ended ones are forgotten."""
    now_s, histories = time.monotonic(), Histories()
    for page, _ in look.processes:
        histories[page.pid] = past.get(page.pid, ProcessHistory())
        histories[page.pid].add(page, now_s)
    return histories


def print_looks(
    source: Here | WatchedBoard, interval: float, looks: int | None, *, as_json: bool, title: str
) -> None:
    """Lines for pipes and files: a JSON object, or the screen's text, per look."""
    histories, done = Histories(), 0
    while True:
        due = time.monotonic() + interval
        look = source.read()
        histories, stamp = add_look(look, histories), datetime.now(timezone.utc).isoformat()
        if as_json:
            record = to_record(look, {pid: past.rate for pid, past in histories.items()})
            write_text(json.dumps({**record, "time": stamp}) + "\n")
        else:
            head = f"{stamp[:19]}  {title}"
            lines = screen_lines(look, histories, width=WIDE, height=TALL, title=head)
            write_text("\n".join(line.text for line in lines) + "\n\n")
        done += 1
        if done == looks:
            return
        time.sleep(max(0.0, due - time.monotonic()))


def show_looks(source: Here | WatchedBoard, interval: float, looks: int | None, title: str) -> None:
    """The terminal's second screen, redrawn at every look and when the window changes."""
    histories, done = Histories(), 0
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    look = source.read()  # before Screen, which would hide a missing board's error
    with Screen() as screen:
        while True:
            due = time.monotonic() + interval
            histories = add_look(look, histories)
            done += 1
            while True:
                width, height = screen.size
                screen.draw(
                    screen_lines(
                        look, histories, width=width, height=height, title=title,
                        keys=f"every {interval:g} s, q leaves", ascii_only=ascii_only,
                    )
                )  # fmt: skip
                if done == looks or screen.wait(due - time.monotonic()) in ("q", "Q"):
                    return
                if time.monotonic() >= due:
                    break
            look = source.read()
