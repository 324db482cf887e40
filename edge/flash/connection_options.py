"""Options of the connection that `edge flash`, `edge rollback` and `edge slots` share."""

from __future__ import annotations

from pathlib import Path

import click

ssh_config_option = click.option(
    "--ssh-config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Use this file instead of ~/.ssh/config (as ssh -F does).",
)
wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    help="Seconds to wait for another flash of the same board.",
)
