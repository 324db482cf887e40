"""`edge formats`: what an artifact can be, and which checkpoints become one."""

import json

import click

from boardfit.converters.families.registry import FAMILIES
from boardfit.converters.formats.base import FORMATS
from boardfit.converters.formats.upstream.tree import NOT_YET, known_architectures
from boardfit.edge.terminal.output import echo


@click.command(name="formats")
@click.option("--families", is_flag=True, help="List the model families that can be built.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def formats_command(families: bool, as_json: bool) -> None:
    """List the formats of an artifact, or the families of checkpoints that become one."""
    if as_json:
        echo(json.dumps(list_families() if families else list_formats()))
        return
    echo("\n".join(family_lines() if families else format_lines()))


def list_formats() -> dict[str, object]:
    rows = FORMATS.values()
    return {r.id: {"about": r.about, "recipes": r.load().list_recipes()} for r in rows}


def format_lines() -> list[str]:
    rows = FORMATS.values()
    return [f"{r.id:9} {r.about}\n{'':9} {', '.join(r.load().list_recipes())}" for r in rows]


def list_families() -> dict[str, object]:
    """`native` by model_type, `upstream` by the architecture in config.json, `none` with the
    reason.
    """
    native = {kind: about for kind, (_, about) in sorted(FAMILIES.items())}
    return {"native": native, "upstream": known_architectures(), "none": NOT_YET}


def family_lines() -> list[str]:
    """The same for a person."""
    return [
        "native (model_type in config.json): no torch, checked byte by byte",
        *(f"  {kind:18} {about}" for kind, (_, about) in sorted(FAMILIES.items())),
        "",
        "by upstream's converter, as GGUF (architectures in config.json), embedding models too",
        *(f"  {name}" for name in known_architectures()),
        "",
        "not at all",
        *(f"  {kind:18} {why}" for kind, why in NOT_YET.items()),
    ]
