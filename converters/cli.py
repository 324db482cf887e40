"""Commands that the host side adds to `edge`: a table, read through the `edge.commands` group."""

from __future__ import annotations

from edge.cli import Command

COMMANDS: dict[str, Command] = {
    "plan": Command(
        "converters.plan_command:plan",
        "Show what fits a board, how fast, how good, and why.",
        "convert",
    ),
    "build": Command(
        "converters.build_command:build_command",
        "Build a 4-bit artifact sized to a board, in a bundle.",
        "host",
    ),
    "race": Command(
        "converters.race_command:race_command",
        "Find the fastest engine on this machine.",
        "host",
    ),
    "imatrix": Command(
        "converters.imatrix_command:imatrix", "Measure a model's activations over a text.", "host"
    ),
    "engine": Command(
        "converters.board_engine.command:engine", "Compile engines for boards.", "host"
    ),
    "push": Command(
        "converters.oci.command:push_command", "Push a bundle to an OCI registry.", "host"
    ),
    "pull": Command(
        "converters.oci.command:pull_command", "Pull a bundle from an OCI registry.", "host"
    ),
    "rehearse": Command(
        "converters.rehearse.command:rehearse_command",
        "Install and run a bundle under emulation of its board.",
        "host",
    ),
}
