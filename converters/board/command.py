"""`edge engine`: compile engines for boards, list them, add them to a bundle."""

import json
from pathlib import Path

import click

from boardfit.converters.board.engine.build import build_tools, build_wheel
from boardfit.converters.board.engine.store import BuiltEngine, find_engines
from boardfit.converters.board.engine.variants import ALL_VARIANTS, SINGLE_VARIANTS
from boardfit.converters.board.offline.parts import bundle_with_engine
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.errors import UsageError
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import TerminalReporter
from boardfit.edge.units import format_bytes, format_seconds

VARIANT = click.option(
    "--variant", default=ALL_VARIANTS, show_default=True, metavar="NAME",
    help=f"{ALL_VARIANTS}: the board chooses at run time. Or one of {', '.join(SINGLE_VARIANTS)}.",
)  # fmt: skip
TOOLS = click.option(
    "--tools", is_flag=True, help="Use static llama-bench and llama-completion instead, for phones."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON line on stdout.")


@click.group(name="engine")
def engine() -> None:
    """Compile engines for arm64 boards on this machine. Boards then need no compiler."""


@engine.command()
@VARIANT
@TOOLS
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Number of compiler processes; default: all cores."
)
@JSON
def build(variant: str, tools: bool, jobs: int | None, as_json: bool) -> None:
    """Compile an engine, or find a compiled one, and print its path.

    Compiling takes about five minutes on two cores, once per version and compiler.
    """
    if tools and variant == ALL_VARIANTS:
        raise UsageError(
            "a static program cannot choose its kernels on the board: name one variant",
            next_step="edge engine build --tools --variant armv8.0",
        )
    with TerminalReporter(quiet=as_json) as reporter:
        make = build_tools if tools else build_wheel
        built = make(variant, jobs=jobs, reporter=reporter)
    show(built, as_json)


@engine.command(name="list")
@JSON
def list_engines(as_json: bool) -> None:
    """List the compiled engines in the cache folder."""
    engines = find_engines()
    for built in engines:
        show(built, as_json)
    if not engines and not as_json:
        echo("nothing is compiled yet; next: edge engine build")


@engine.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle to write."
)
@click.option("-d", "--device", metavar="BOARD", help="Board id.  [default: the board of the plan]")
@click.option(
    "--python", metavar="3.X", help="Python version of the board.  [default: the profile's]"
)
@VARIANT
@JSON
def add(
    bundle: Path, output: Path, device: str | None, python: str | None, variant: str, as_json: bool
) -> None:
    """Write a copy of BUNDLE with the wheels, installer and service unit for its board."""
    with TerminalReporter(quiet=as_json) as reporter:
        reporter.stage("checking the bundle")
        profile = find_profile(device or open_bundle(bundle).plan.device)
        made = bundle_with_engine(bundle, output, profile, reporter, python=python, variant=variant)
    if as_json:
        echo(json.dumps({"bundle": str(made.path), "id": made.id, "n_bytes": made.n_bytes}))
        return
    engine_bytes = sum(file.n_bytes for file in made.files if file.role in ("wheel", "tool"))
    echo(
        f"{made.path}  {format_bytes(made.n_bytes)}, of which {format_bytes(engine_bytes)} engine "
        f"for {profile.name}\n  next: edge rehearse {made.path} --device {profile.id}"
    )


def show(built: BuiltEngine, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(built.to_dict()))
        return
    for path in built.paths:
        echo(path)
    glibc = f"glibc {built.glibc} or later" if built.glibc else "static"
    echo(
        f"  {built.kind} {built.version}, {built.variant}: {', '.join(built.kernels)}\n"
        f"  {format_bytes(built.n_bytes)}, {glibc}, compiled in {format_seconds(built.seconds)} "
        f"by {built.compiler}"
    )
