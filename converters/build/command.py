"""`edge build`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from boardfit.converters.build import network
from boardfit.converters.build.build import BuildRequest, Built, build
from boardfit.converters.formats.base import FORMATS, GGUF, parse_formats
from boardfit.converters.formats.gguf.recipe import AS_IS, list_recipes
from boardfit.converters.formats.network.quantize import is_network_file
from boardfit.converters.formats.upstream.convert import open_any_model
from boardfit.converters.plan.command import load_devices
from boardfit.converters.plan.options import PREFERENCES, PlanOptions, Prefer
from boardfit.converters.quality.building import QualityOptions
from boardfit.converters.source.checkpoint import AdapterRequest
from boardfit.converters.source.resolve import Mtp
from boardfit.edge.bench.network_inputs import parse_shapes
from boardfit.edge.bundle.quality_text import (
    note_lines,
    quality_lines,
    tokenizer_lines,
    tool_lines,
)
from boardfit.edge.errors import UsageError
from boardfit.edge.template.options import TEMPLATE_OPTIONS, parse_variables
from boardfit.edge.terminal.option_groups import GroupedCommand
from boardfit.edge.terminal.options import add_options
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import TerminalReporter
from boardfit.edge.trust.signing import signing_key
from boardfit.edge.types import Thinking
from boardfit.edge.units import format_bytes, printable

RECIPES = tuple(recipe.id for recipe in list_recipes())


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
@click.option("--recipe", help=f"Use this recipe: {', '.join(RECIPES)}, or as-is.")
@click.option("--ctx", "n_ctx", type=int, help="Context length, in tokens.")
@click.option("--kv-type", help="Type of the KV cache: f16, q8_0, …")
@click.option(
    "--prefer", type=click.Choice(PREFERENCES), default="balanced", show_default=True,
    help="What to optimize where several recipes fit.",
)  # fmt: skip
@click.option(
    "--mtp", type=click.Choice(("keep", "drop")),
    help="Keep a checkpoint's head that guesses tokens ahead, or drop it.  [default: drop]",
)  # fmt: skip
@click.option(
    "--imatrix", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Importance matrix: an upstream file, or a text to compute one from.",
)  # fmt: skip
@click.option(
    "--lora", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of an adapter (LoRA, DoRA) to merge into MODEL.",
)  # fmt: skip
@click.option(
    "--lora-scale", type=float, metavar="X", help="Multiply the adapter's strength.  [default: 1]"
)
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
    "--accept-tokenizer", is_flag=True,
    help="Go on where the engine does not normalize text as the checkpoint does.",
)  # fmt: skip
@click.option(
    "--quality-text", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text for the quality measurement. [default: a text that ships with the kit]",
)  # fmt: skip
@click.option(
    "--warm", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text of a system prompt, or a .json request with tools; its state goes into the bundle.",
)  # fmt: skip
@click.option(
    "--check-tools", is_flag=True,
    help="Ask the finished model for calls of tools, and print how many were right.",
)  # fmt: skip
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
    help="Shape of a network's input with open dimensions, used to compare its outputs.",
)  # fmt: skip
@add_options(*TEMPLATE_OPTIONS)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line per bundle on stdout.")
def build_command(**options: Any) -> None:
    """Build a 4-bit artifact of MODEL sized to a board, in a verified bundle.

    MODEL is a Hugging Face directory, a hub repo id (owner/name), a .gguf file, or `sample`. Any
    other network (an .onnx or .tflite file: vision, speech) gets 8-bit weights, or 4-bit ones with
    --recipe int4.
    """
    typed = BuildOptions(**options)
    build_kind = build_networks if is_network_file(Path(typed.model)) else build_language_model
    for record, text in build_kind(typed):
        echo(json.dumps(record) if typed.as_json else text)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of `edge build`, as typed."""

    model: str
    devices: tuple[str, ...]
    output: Path
    formats: str
    recipe: str | None
    n_ctx: int | None
    kv_type: str | None
    prefer: Prefer
    mtp: Mtp | None
    imatrix: Path | None
    lora: Path | None
    lora_scale: float | None
    threads: int | None
    with_engine: bool
    python: str | None
    sign: Path | None
    no_quality: bool
    accept_quality: bool
    accept_tokenizer: bool
    quality_text: Path | None
    warm: tuple[Path, ...]
    check_tools: bool
    shapes: tuple[str, ...]
    thinking: Thinking | None
    template_vars: tuple[str, ...]
    force: bool
    as_json: bool


def build_language_model(typed: BuildOptions) -> list[tuple[dict[str, object], str]]:
    """Build the bundles. Returns a record and a text for each."""
    if typed.shapes:
        raise UsageError("--shape is for networks other than language models")
    lora = adapter_request(typed)
    options = PlanOptions(
        recipe=typed.recipe,
        n_ctx=typed.n_ctx,
        kv_type=typed.kv_type,
        prefer=typed.prefer,
        has_imatrix=typed.imatrix is not None,
    )
    if options.recipe == AS_IS and typed.imatrix is not None:
        raise UsageError(
            "--recipe as-is converts nothing, so --imatrix cannot be used with it",
            next_step="leave one of the two out",
        )
    # Ask for the passphrase now, not at the end of a long build.
    key = signing_key(typed.sign) if typed.sign else None
    with TerminalReporter(quiet=typed.as_json) as reporter:
        reporter.stage(f"reading {printable(typed.model)}")
        devices = tuple(load_devices(typed.devices))
        request = BuildRequest(
            spec=open_any_model(
                typed.model, progress=reporter.progress, say=reporter.say, lora=lora, mtp=typed.mtp
            ),
            devices=devices,
            output=typed.output,
            options=options,
            imatrix=typed.imatrix,
            overwrite=typed.force,
            threads=typed.threads,
            with_engine=typed.with_engine,
            python=typed.python,
            quality=QualityOptions(not typed.no_quality, typed.accept_quality, typed.quality_text),
            formats=parse_formats(typed.formats),
            sign=key,
            thinking=typed.thinking or "auto",
            template_variables=parse_variables(typed.template_vars),
            accept_tokenizer=typed.accept_tokenizer,
            warm=typed.warm,
        )
        if typed.check_tools and (request.spec.chat_template is None or request.spec.is_embedder):
            raise UsageError("--check-tools needs a model that chats", next_step="leave it out")
        built = build(request, reporter)
        checks = [ask_for_calls(done, reporter) if typed.check_tools else None for done in built]
    return [
        (as_record(done) | ({"tool_check": check} if check else {}), summary(done, check))
        for done, check in zip(built, checks, strict=True)
    ]


def ask_for_calls(done: Built, reporter: TerminalReporter) -> dict[str, Any]:
    """Ask the model of a bundle for calls."""
    from boardfit.converters.build.tool_check import check_tools

    reporter.stage("asking for calls of tools")
    return check_tools(done.bundle.path, reporter.progress)


def adapter_request(typed: BuildOptions) -> AdapterRequest | None:
    """The adapter to merge. Raises UsageError for a strength of none."""
    if typed.lora is None and typed.lora_scale is not None:
        raise UsageError("--lora-scale is for an adapter", next_step="add --lora DIR")
    scale = 1.0 if typed.lora_scale is None else typed.lora_scale
    return None if typed.lora is None else AdapterRequest(typed.lora, scale)


def build_networks(typed: BuildOptions) -> list[tuple[dict[str, object], str]]:
    """Quantize the network for every board. Returns a record and a text for each."""
    network.refuse_language_options({
        "--ctx": typed.n_ctx, "--kv-type": typed.kv_type, "--imatrix": typed.imatrix,
        "--python": typed.python, "--with-engine": typed.with_engine,
        "--mtp": typed.mtp, "--thinking": typed.thinking, "--template-var": typed.template_vars,
        "--no-quality": typed.no_quality, "--quality-text": typed.quality_text,
        "--lora": typed.lora, "--lora-scale": typed.lora_scale, "--warm": typed.warm,
        "--check-tools": typed.check_tools,
    })  # fmt: skip
    source = Path(typed.model)
    network.check_format(source, typed.formats)
    with TerminalReporter(quiet=typed.as_json) as reporter:
        built = network.build_network(
            source,
            tuple(load_devices(typed.devices)),
            typed.output,
            recipe=typed.recipe,
            accept_quality=typed.accept_quality,
            overwrite=typed.force,
            shapes=parse_shapes(typed.shapes),
            threads=typed.threads,
            reporter=reporter,
        )
    return [(network.network_record(done), network.network_summary(done)) for done in built]


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
        "tools": bundle.manifest.get("tools"),
        "notes": bundle.manifest["model"]["notes"],
    }


def summary(done: Built, tool_check: dict[str, Any] | None = None) -> str:
    """One bundle in a few lines for a person."""
    from boardfit.converters.build.tool_check import check_lines

    calls = [*tool_lines(done.bundle.manifest), *(check_lines(tool_check) if tool_check else [])]
    bundle, artifact, plan = done.bundle, done.artifact, done.bundle.plan
    embeds = "pooling" in bundle.manifest["model"]
    return (
        f"{bundle.path}  {printable(bundle.name)} as {plan.recipe} for {plan.device}: "
        f"{format_bytes(artifact.nbytes)}, {artifact.bpw:.2f} bits per weight\n"
        f"  context {plan.n_ctx}, peak {format_bytes(plan.peak_bytes)} of "
        f"{format_bytes(plan.budget_bytes)}\n"
        + "".join(
            f"  warm: {s['file']}, {s['n_tokens']} tokens\n"
            for s in bundle.manifest.get("warm", [])
        )
        + f"  quality: {quality_lines(bundle.manifest)[0]}\n"
        + "".join(f"  note: {note}\n" for note in note_lines(bundle.manifest))
        + "".join(f"  tools: {line}\n" for line in calls)
        + "".join(f"  tokenizer: {line}\n" for line in tokenizer_lines(bundle.manifest))
        + f"  next: edge {'run' if embeds else 'chat'} {bundle.path}"
        + (" --embed TEXT" if embeds else "")
    )
