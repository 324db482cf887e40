"""Commands that the host side adds to `edge`: a table, read through the `edge.commands` group."""

from __future__ import annotations

from boardfit.edge.cli import Command

COMMANDS: dict[str, Command] = {
    "plan": Command(
        "boardfit.converters.plan_command:plan",
        "Show what fits a board, how fast, how good, and why.",
        "convert",
    ),
    "build": Command(
        "boardfit.converters.build_command:build_command",
        "Build a 4-bit artifact sized to a board, in a bundle.",
        "host",
    ),
    "race": Command(
        "boardfit.converters.race_command:race_command",
        "Find the fastest engine on this machine.",
        "host",
    ),
    "imatrix": Command(
        "boardfit.converters.imatrix_command:imatrix",
        "Measure a model's activations over a text.",
        "host",
    ),
    "engine": Command(
        "boardfit.converters.board_engine.command:engine", "Compile engines for boards.", "host"
    ),
    "push": Command(
        "boardfit.converters.oci.command:push_command", "Push a bundle to an OCI registry.", "host"
    ),
    "pull": Command(
        "boardfit.converters.oci.command:pull_command",
        "Pull a bundle from an OCI registry.",
        "host",
    ),
    "rehearse": Command(
        "boardfit.converters.rehearse.command:rehearse_command",
        "Install and run a bundle under emulation of its board.",
        "host",
    ),
}
