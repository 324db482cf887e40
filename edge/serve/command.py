"""`edge serve`: the bundle's model for other programs, over HTTP.

    edge serve BUNDLE
    edge serve BUNDLE --within 5s            # each answer within five seconds, unless it asks else
    edge serve BUNDLE --lan                  # for the local network, with a token

It speaks OpenAI's chat completions, completions and Responses, Anthropic's Messages, and Ollama's
calls. An embedding model makes vectors.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boardfit.edge.chat.model_options import engine_options, generation_options
from boardfit.edge.deadline.options import budget_options
from boardfit.edge.disk.secret import user_secret
from boardfit.edge.engines.settings import MOST_SLOTS
from boardfit.edge.engines.target import open_model
from boardfit.edge.errors import UsageError
from boardfit.edge.process.live import publish_status
from boardfit.edge.terminal.option_groups import GroupedCommand
from boardfit.edge.terminal.output import echo
from boardfit.edge.types import GenerationConfig
from boardfit.edge.units import parse_seconds

if TYPE_CHECKING:
    from boardfit.edge.deadline.budget import Budget

TOKEN_FILE = "serve.key"


@click.command(cls=GroupedCommand, short_help="Answer other programs over HTTP, within their time.")
@click.argument("bundle", type=click.Path())
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on. 0: any free one.",
)
@click.option("--lan", is_flag=True, help="Listen on every interface, and ask for a token.")
@click.option("--no-token", is_flag=True, help="With --lan: answer everybody on the network.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="Another host name that this server goes by. Repeatable.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin ask, for example http://hass.local:8123. Repeatable.",
)
@click.option(
    "--most", default="10min", show_default=True, help="Longest time that one answer may compute."
)
@click.option(
    "--slots",
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Answers computed at once. auto: several, while that is measured to be quicker.",
)
@click.option(
    "--steady-prefix",
    "is_steady",
    is_flag=True,
    help="Move sentences with the time of day to the end of system prompts.",
)
@budget_options
@generation_options
@engine_options
@click.option("--unit", is_flag=True, help="Print the systemd service for a board, and leave.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON line once it is ready.")
@publish_status("serve")
def serve(
    bundle: str,
    port: int,
    lan: bool,
    no_token: bool,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    most: str,
    slots: str,
    is_steady: bool,
    budget: Budget | None,
    config: GenerationConfig,
    overrides: dict[str, Any],
    unit: bool,
    as_json: bool,
) -> None:
    """Serve BUNDLE (a bundle directory or a model file) on this machine's loopback.

    Ask /v1 as you would ask OpenAI, /api as you would ask Ollama. A request carries its time limit
    in its body ("within": "2s"), its path (/within/2s/v1), a header or the model's name (NAME@2s).
    """  # fmt: skip
    from boardfit.edge.serve.ask import Defaults
    from boardfit.edge.serve.server import Server, make_queue

    if unit:
        print_unit(bundle, port)
        return
    if no_token and not lan:
        raise UsageError("--no-token is for --lan; on loopback no token is asked for")
    most_s, n_slots = parse_most(most), parse_slots(slots)
    if not Path(bundle).exists():
        open_model(bundle)  # raises the usual error, before anything listens

    token = read_token() if lan and not no_token else None
    server = Server(
        make_queue(bundle, overrides, most_s=most_s, is_steady=is_steady, n_slots=n_slots),
        port=port,
        is_public=lan,
        token=token,
        names=names,
        origins=origins,
        defaults=Defaults(config, budget),
    )

    def announce() -> None:
        if as_json:
            record = {"kind": "boardfit-serve", "schema": 1, "url": server.url,
                      "model": server.model}  # fmt: skip
            echo(json.dumps(record))
            return
        echo(f"{server.model} answers on {server.url}")
        echo(f"  OpenAI: {server.url}/v1   Ollama: {server.url}")
        echo(f"  each answer in two seconds: {server.url}/within/2s/v1")
        if token is not None:
            echo(f"  token:  {token}")
        echo("Ctrl-C ends it.", err=True)

    if not as_json:
        echo(f"loading {bundle}; {server.url}/health answers already", err=True)
        if lan and token is None:
            echo("note: everybody on this network may ask, without a token", err=True)
    server.run(announce)


def read_token() -> str:
    """The token that clients have to send: a service's credential, else this user's secret."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (file := Path(folder, TOKEN_FILE)).is_file():
        return file.read_text("ascii").strip()
    return user_secret(TOKEN_FILE).hex()


def print_unit(path: str, port: int) -> None:
    """Print the service that serves the bundle of this name on a board."""
    from boardfit.edge.bundle.bundle import open_bundle
    from boardfit.edge.serve.unit import serve_unit

    bundle, root = open_bundle(path, verify=False), "/opt/boardfit"
    program = f"{root}/current/env/bin/edge"
    text = serve_unit(bundle.name, bundle.plan, root, program=program, port=port)
    echo(text.removesuffix("\n"))


def parse_slots(text: str) -> int | None:
    """The number in --slots; None for auto. Raises UsageError."""
    if text == "auto":
        return None
    if not (text.isdecimal() and 1 <= int(text) <= MOST_SLOTS):
        raise UsageError(
            f"--slots must be auto or 1 to {MOST_SLOTS}, got {text!r}", next_step="--slots auto"
        )
    return int(text)


def parse_most(text: str) -> float:
    """The seconds in --most. Raises UsageError."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise UsageError(f"--most: {error}") from None
