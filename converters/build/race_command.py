"""`edge race` on a host: build a MODEL in every format, then race as on a board."""

from pathlib import Path
from typing import Any

import click

from boardfit.converters.build.build import BuildRequest, build
from boardfit.converters.formats.base import AUTO, FORMATS, GGUF, parse_formats
from boardfit.converters.formats.upstream.convert import open_any_model
from boardfit.converters.plan.command import load_devices
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.make import plan_any
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.quality.building import QualityOptions
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.catalog import THIS_MACHINE
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import MANIFEST, Bundle, open_bundle
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines import ENGINES, is_installed
from boardfit.edge.errors import EdgeError, IntegrityError, UsageError
from boardfit.edge.race.command import hold_race, race_options
from boardfit.edge.terminal.progress import Reporter, TerminalReporter
from boardfit.edge.trust.pins import key_files
from boardfit.edge.units import printable


@click.command(name="race")
@click.argument("models", nargs=-1, required=True, metavar="BUNDLE… | MODEL")
@click.option(
    "-d", "--device", help="Board to build for, if MODEL is given. Only this-machine can race."
)
@click.option(
    "--format", "formats", default=",".join(FORMATS), show_default=True,
    help="Formats to race, if MODEL is given.",
)  # fmt: skip
@click.option(
    "--recipe", "gguf_recipe", default="q4_0", show_default=True,
    help="Recipe of the GGUF, if MODEL is given. Other formats use their own 4-bit recipe.",
)  # fmt: skip
@click.option("--no-quality", is_flag=True, help="Build without quality cards, if MODEL is given.")
@race_options
def race_command(
    models: tuple[str, ...],
    device: str | None,
    formats: str,
    gguf_recipe: str,
    no_quality: bool,
    **options: Any,
) -> None:
    """Measure bundles of one model in turns, to find the fastest engine and thread count.

    The result also shows for which prompt lengths each engine wins. Given a MODEL (directory, hub
    id, .gguf, `sample`), missing bundles are built once and kept in the cache.

    Each engine runs in its own process. The results are stored, and `edge plan` uses them.
    """
    if device not in (None, THIS_MACHINE):
        raise UsageError(
            f"{device} cannot race here: a race measures the machine that it runs on",
            next_step="build the bundles (edge build --format …), bring them to the board (edge "
            "flash), and run edge race there",
        )
    if all((Path(name) / MANIFEST).is_file() for name in models):
        hold_race([open_bundle(name) for name in models], **options)
        return
    if len(models) > 1:
        raise UsageError("give bundles, or one MODEL", next_step="edge race --help")
    refuse_where_pinned()
    quality = QualityOptions(enabled=not no_quality)
    bundles = build_entrants(models[0], formats, gguf_recipe, quality, quiet=options["as_json"])
    hold_race(bundles, **options)


def refuse_where_pinned() -> None:
    """Raise IntegrityError where keys are pinned: what a race builds is unsigned."""
    if found := key_files(cache_directory() / "race"):
        raise IntegrityError(
            f"a race of a MODEL builds unsigned bundles; {found[0]} accepts only signed ones",
            next_step="edge build MODEL --format FORMAT -o OUT --sign KEY per format, then edge "
            "race OUT OUT",
        )


def build_entrants(
    model: str, formats: str, gguf_recipe: str, quality: QualityOptions, *, quiet: bool
) -> list[Bundle]:
    """One bundle per format that this machine can run, from the cache or built now. Formats that
    cannot be made are named and left out.

    Raises UsageError when nothing is left to race.
    """
    with TerminalReporter(quiet=quiet) as reporter:
        reporter.stage(f"reading {printable(model)}")
        spec = open_any_model(model, progress=reporter.progress, say=reporter.say)
        (device,) = load_devices([THIS_MACHINE])
        bundles = []
        for name in parse_formats(formats):
            if name == AUTO:
                raise UsageError("a race cannot use auto: name the formats")
            options = PlanOptions(recipe={GGUF: gguf_recipe}.get(name))
            engine = FORMATS[name].engine
            try:
                if not is_installed(engine):
                    raise UsageError(f"{engine} is not installed: {ENGINES[engine].pip_line}")
                bundle = entrant_bundle(
                    spec, device, name, options, quality=quality, reporter=reporter
                )
                bundles.append(bundle)
            except EdgeError as error:
                reporter.stage(f"{name} stays out: {error}")
    if not bundles:
        raise UsageError("no format of this model can race here", next_step="edge build --help")
    return bundles


def entrant_bundle(
    spec: ModelSpec,
    device: DeviceProfile,
    format_id: str,
    options: PlanOptions,
    *,
    quality: QualityOptions,
    reporter: Reporter,
) -> Bundle:
    """A bundle for this machine: the one in the cache if it is of this source and recipe."""
    plan = plan_any(spec, device, format_id, options, Learned(()))
    folder = cache_directory() / "race" / spec.source.fingerprint[:16]
    path = folder / f"{format_id}-{plan.recipe}-{plan.n_ctx}"
    try:
        return open_bundle(path)
    except EdgeError:
        folder.mkdir(parents=True, exist_ok=True)
    request = BuildRequest(
        spec=spec,
        devices=(device,),
        output=path,
        options=options,
        overwrite=True,
        quality=quality,
        formats=(format_id,),
    )
    (built,) = build(request, reporter)
    return built.bundle
