"""Commands that the host side adds to `edge`: a table, read through the `edge.commands` group."""

from __future__ import annotations

from edge.cli import Command

COMMANDS: dict[str, Command] = {
    "plan": Command(
        "converters.plan_command:plan", "What fits a board, how fast, how good, and why.", "convert"
    ),
    "build": Command(
        "converters.build_command:build_command",
        "A 4-bit artifact sized to a board, in a bundle.",
        "host",
    ),
    "race": Command(
        "converters.race_command:race_command",
        "Which engine wins on this machine, and when.",
        "host",
    ),
    "imatrix": Command(
        "converters.imatrix_command:imatrix", "Weigh a model's activations over a text.", "host"
    ),
    "engine": Command(
        "converters.board_engine.command:engine", "Engines compiled for boards.", "host"
    ),
    "push": Command(
        "converters.oci.command:push_command", "Put a bundle into an OCI registry.", "host"
    ),
    "pull": Command(
        "converters.oci.command:pull_command", "Get a bundle from an OCI registry.", "host"
    ),
    "rehearse": Command(
        "converters.rehearse.command:rehearse_command",
        "Install and run a bundle as its board would, emulated.",
        "host",
    ),
}
