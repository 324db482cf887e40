"""`edge build`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from boardfit.converters.build.build import BuildRequest, Built, build
from boardfit.converters.build.network import (
    build_network,
    check_format,
    network_record,
    network_summary,
    refuse_language_options,
)
from boardfit.converters.formats.gguf.recipe import list_recipes
from boardfit.converters.formats.network.quantize import is_network_file
from boardfit.converters.formats.table import FORMATS, GGUF, parse_formats
from boardfit.converters.plan.command import load_devices
from boardfit.converters.plan.make import PREFERENCES, PlanOptions
from boardfit.converters.progress import TerminalReporter
from boardfit.converters.quality.building import QualityOptions
from boardfit.converters.source.resolve import open_model
from boardfit.edge.bench.network_inputs import parse_shapes
from boardfit.edge.bundle.quality_text import quality_lines
from boardfit.edge.errors import UsageError
from boardfit.edge.option_groups import GroupedCommand
from boardfit.edge.trust.key_argument import signing_key
from boardfit.edge.units import format_bytes, printable


@click.command(name="build", cls=GroupedCommand)
@click.argument("model")
@click.option(
    "-d", "--device", "devices", multiple=True, required=True, metavar="BOARD[,BOARD…]",
    help="Board id (see `edge devices`), or this-machine. Several share one reading of MODEL.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path),
    help="Bundle to write. With several boards, the folder for one bundle per board.",
)  # fmt: skip
@click.option(
    "--format", "formats", default=GGUF, show_default=True, metavar="FORMAT[,FORMAT…]",
    help=f"{', '.join(FORMATS)}, or auto: fastest answer at similar quality.",
)  # fmt: skip
@click.option("--recipe", help=f"Use this recipe: {', '.join(r.id for r in list_recipes())}.")
@click.option("--ctx", "n_ctx", type=int, help="Context length, in tokens.")
@click.option("--kv-type", help="Type of the KV cache: f16, q8_0, …")
@click.option(
    "--prefer", type=click.Choice(PREFERENCES), default="balanced", show_default=True,
    help="What to optimize where several recipes fit.",
)  # fmt: skip
@click.option(
    "--imatrix", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Importance matrix: an upstream file, or a text to compute one from.",
)  # fmt: skip
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Number of converting threads; default: all cores.",
)
@click.option(
    "--with-engine", is_flag=True,
    help="Add the engine for the board and everything it needs to run there offline.",
)  # fmt: skip
@click.option(
    "--python", metavar="3.X", help="Python version of the board.  [default: the profile's]"
)
@click.option(
    "--sign", type=click.Path(path_type=Path, dir_okay=False),
    help="Sign the bundle with this private key (see `edge key new`).",
)  # fmt: skip
@click.option(
    "--no-quality", is_flag=True, help="Skip measuring the distance from the source model."
)
@click.option(
    "--accept-quality", is_flag=True, help="Keep the artifact even if it exceeds the quality bound."
)
@click.option(
    "--quality-text", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text for the quality measurement. [default: a text that ships with the kit]",
)  # fmt: skip
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
    help="Shape of a network's input with open dimensions, used to compare its outputs.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line per bundle on stdout.")
def build_command(
    model: str,
    devices: tuple[str, ...],
    output: Path,
    formats: str,
    recipe: str | None,
    n_ctx: int | None,
    kv_type: str | None,
    prefer: str,
    imatrix: Path | None,
    threads: int | None,
    with_engine: bool,
    python: str | None,
    sign: Path | None,
    no_quality: bool,
    accept_quality: bool,
    quality_text: Path | None,
    shapes: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Build a 4-bit artifact of MODEL sized to a board, in a verified bundle.

    MODEL is a Hugging Face directory, a hub repo id (owner/name), a .gguf file, or `sample`. Any
    other network (an .onnx or .tflite file: vision, speech) gets 8-bit weights, or 4-bit ones with
    --recipe int4.
    """
    if is_network_file(Path(model)):
        refuse_language_options({
            "--ctx": n_ctx, "--kv-type": kv_type, "--imatrix": imatrix, "--python": python,
            "--with-engine": with_engine, "--no-quality": no_quality,
            "--quality-text": quality_text,
        })  # fmt: skip
        check_format(Path(model), formats)
        with TerminalReporter(quiet=as_json) as reporter:
            networks = build_network(
                Path(model), tuple(load_devices(devices)), output, recipe=recipe,
                accept_quality=accept_quality, overwrite=force, shapes=parse_shapes(shapes),
                threads=threads, reporter=reporter,
            )  # fmt: skip
        for network in networks:
            shown = network_record(network) if as_json else network_summary(network)
            click.echo(json.dumps(shown) if as_json else shown)
        return
    if shapes:
        raise UsageError("--shape is for networks other than language models")
    options = PlanOptions(
        recipe=recipe,
        n_ctx=n_ctx,
        kv_type=kv_type,
        prefer=prefer,  # type: ignore[arg-type]  # click checked the choice
        has_imatrix=imatrix is not None,
    )
    # Ask for the passphrase now, not at the end of a long build.
    key = signing_key(sign) if sign else None
    quality = QualityOptions(not no_quality, accept_quality, quality_text)
    with TerminalReporter(quiet=as_json) as reporter:
        reporter.stage(f"reading {printable(model)}")
        profiles = tuple(load_devices(devices))
        spec = open_model(model, progress=reporter.progress)
        request = BuildRequest(
            spec, profiles, output, options, imatrix, force, threads, with_engine, python,
            quality, parse_formats(formats), key,
        )  # fmt: skip
        built = build(request, reporter)
    for done in built:
        click.echo(json.dumps(as_record(done)) if as_json else summary(done))


def as_record(done: Built) -> dict[str, object]:
    """One bundle as a JSON-able object."""
    bundle, artifact = done.bundle, done.artifact
    return {
        "bundle": str(bundle.path),
        "id": bundle.id,
        "device": bundle.plan.device,
        "engine": bundle.plan.engine,
        "recipe": bundle.plan.recipe,
        "n_bytes": artifact.nbytes,
        "bpw": artifact.bpw,
        "sha256": artifact.sha256,
        "seconds": artifact.seconds,
        "n_ctx": bundle.plan.n_ctx,
        "peak_bytes": bundle.plan.peak_bytes,
        "quality": bundle.manifest["quality"],
    }


def summary(done: Built) -> str:
    """One bundle in four lines for a person."""
    bundle, artifact, plan = done.bundle, done.artifact, done.bundle.plan
    return (
        f"{bundle.path}  {printable(bundle.name)} as {plan.recipe} for {plan.device}: "
        f"{format_bytes(artifact.nbytes)}, {artifact.bpw:.2f} bits per weight\n"
        f"  context {plan.n_ctx}, peak {format_bytes(plan.peak_bytes)} of "
        f"{format_bytes(plan.budget_bytes)}\n"
        f"  quality: {quality_lines(bundle.manifest)[0]}\n"
        f"  next: edge chat {bundle.path}"
    )
