"""`edge plan`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from boardfit.converters.formats.base import FORMATS, GGUF, parse_formats
from boardfit.converters.formats.gguf.recipe import AS_IS, is_as_is
from boardfit.converters.plan import compare
from boardfit.converters.plan.catalogue import open_to_plan
from boardfit.converters.plan.choose import choose_candidate
from boardfit.converters.plan.learned import Learned, read_learned
from boardfit.converters.plan.options import PREFERENCES, PlanOptions, make_needs
from boardfit.converters.plan.planner import Planner
from boardfit.converters.plan.text import plan_lines, plan_record
from boardfit.converters.plan.weights import WeighingScale
from boardfit.converters.plan.workload import plan_for_workload
from boardfit.converters.source.checkpoint import AdapterRequest
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.catalog import THIS_MACHINE, all_profiles, find_profile
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DeadlineError, DoesNotFitError, EdgeError, UsageError
from boardfit.edge.terminal.option_groups import GroupedCommand
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import parse_seconds, printable


def load_devices(names: Iterable[str]) -> list[DeviceProfile]:
    """Profiles of ids or aliases, each possibly several joined by commas; `this-machine` is probed.

    Raises ProfileError for an unknown name, UsageError for a board named twice or none at all.
    """
    profiles: dict[str, DeviceProfile] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if not name:
            raise UsageError("empty device name", next_step="edge devices")
        profile = this_machine() if name == THIS_MACHINE else find_profile(name)
        if profile.id in profiles:
            raise UsageError(f"device {profile.id} is named twice")
        profiles[profile.id] = profile
    if not profiles:
        raise UsageError("no device named", next_step="edge devices")
    return list(profiles.values())


def this_machine() -> DeviceProfile:
    """This machine, probed now; a note if the engines cannot run on its system."""
    from boardfit.edge.probe.machine import describe_userland, probe_this_machine, userland_bits
    from boardfit.edge.probe.system import LocalSystem

    profile = probe_this_machine()
    if (warning := describe_userland(userland_bits(LocalSystem()), profile)) is not None:
        echo(f"note: this machine is {warning}", err=True)
    return profile


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """`2s`, `500ms`, `1.5min` on the command line."""
    try:
        return None if value is None else parse_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(name="plan", cls=GroupedCommand)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "-d", "--device", "devices", multiple=True, metavar="BOARD[,BOARD…]",
    help="Board id or alias (see `edge devices`). Default: this-machine.",
)  # fmt: skip
@click.option("--any-device", is_flag=True, help="List all boards that meet the requirements.")
@click.option(
    "--format", "formats", default=GGUF, show_default=True, metavar="FORMAT[,FORMAT…]",
    help=f"{', '.join(FORMATS)}, or auto: compare all.",
)  # fmt: skip
@click.option("--recipe", help="Use this recipe, for example q4_0, q4_k_m or as-is.")
@click.option("--as-is", is_flag=True, help="Run a .gguf file as it is, without conversion.")
@click.option("--ctx", "n_ctx", type=int, help="Context length, in tokens.")
@click.option("--kv-type", help="Type of the KV cache: f16, q8_0, …")
@click.option("--threads", "n_threads", type=int, help="Number of threads.")
@click.option("--ubatch", "n_ubatch", type=int, help="Micro-batch of prefill, in tokens.")
@click.option(
    "--prefer", type=click.Choice(PREFERENCES), default="balanced", show_default=True,
    help="What to optimize where several recipes fit.",
)  # fmt: skip
@click.option("--min-tps", type=float, help="Require at least this decode speed (tokens/s).")
@click.option(
    "--max-ttft", "max_ttft_s", callback=_seconds, metavar="TIME",
    help="Require the first token within this time: 2s, 500ms, …",
)  # fmt: skip
@click.option(
    "--prompt", "n_prompt", type=int, default=256, show_default=True,
    help="Prompt length for --max-ttft, in tokens.",
)  # fmt: skip
@click.option(
    "--for", "n_users", type=int, default=1, metavar="USERS",
    help="Number of concurrent users. [default: 1]",
)  # fmt: skip
@click.option(
    "--serve",
    "n_clients",
    type=click.IntRange(min=1),
    metavar="CLIENTS",
    help="Plan for `edge serve` and this many clients: their contexts and the server.",
)
@click.option(
    "--workload",
    help="Plan for the requests of this task (see `edge tasks`), or mix for all tasks.",
)
@click.option(
    "--within", callback=_seconds, metavar="TIME",
    help="Time limit for a whole answer. [default: the task's]",
)  # fmt: skip
@click.option(
    "--first-within", callback=_seconds, metavar="TIME",
    help="Time limit for the first token of an answer.",
)  # fmt: skip
@click.option(
    "--lora", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of an adapter that the build will merge into MODEL.",
)  # fmt: skip
@click.option("--explain", is_flag=True, help="Show every term of the prediction and its source.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per board, one per line."
)
def plan_command(
    models: tuple[str, ...],
    devices: tuple[str, ...],
    any_device: bool,
    formats: str,
    recipe: str | None,
    as_is: bool,
    n_users: int,
    n_clients: int | None,
    workload: str | None,
    within: float | None,
    first_within: float | None,
    lora: Path | None,
    explain: bool,
    as_json: bool,
    **fixed: Any,
) -> None:
    """Show what fits a board: recipe, context, memory, speed, and why.

    MODEL is a Hugging Face directory, a hub repo id (owner/name), a .gguf file, or `sample`. A
    public model can be named without a download: qwen3-0.6b, llama3.2:1b, or its address.
    Without MODEL, show which model sizes fit the board, and how fast they run. With --workload,
    show which model answers the requests in time, and with which recipe.
    """
    if as_is and recipe and not is_as_is(recipe):
        raise UsageError("--as-is converts nothing, so --recipe cannot be used with it")
    if n_clients and n_users > 1:
        raise UsageError("--serve counts its clients itself, so --for cannot be used with it")
    options = PlanOptions(
        recipe=AS_IS if as_is else recipe, needs=make_needs(workload, within, first_within),
        n_users=n_clients or n_users, is_served=n_clients is not None, **fixed,
    )  # fmt: skip
    if any_device and devices:
        raise UsageError("--any-device covers all boards, so --device cannot be used with it")
    if lora is not None and (options.needs or len(models) != 1):
        raise UsageError("--lora is for the plan of one model, without --workload")
    if options.needs:
        plan_for_workload(
            models, [] if any_device else load_devices(devices or (THIS_MACHINE,)), options,
            parse_formats(formats), _learned(), as_json=as_json,
        )  # fmt: skip
        return
    if len(models) > 1:
        raise UsageError(
            f"{len(models)} models can only be compared with a workload",
            next_step="--workload customer-service --within 2s, or plan them one by one",
        )
    model = models[0] if models else None
    if model is None:
        if any_device or as_is:
            raise UsageError("name a MODEL", next_step="edge plan MODEL --any-device")
        _echo_sizes(load_devices(devices or (THIS_MACHINE,)), options, as_json)
        return
    if any_device:
        spec, options = _open_to_plan(model, options, lora)
        _echo_boards(spec, options, as_json)
        return
    profiles = load_devices(devices or (THIS_MACHINE,))
    spec, options = _open_to_plan(model, options, lora)
    if (wanted := parse_formats(formats)) != (GGUF,):
        compare.echo_format_plans(spec, profiles, wanted, options, _learned(), as_json=as_json)
        return
    _echo_plans(spec, profiles, options, explain=explain, as_json=as_json)


def _open_to_plan(
    model: str, options: PlanOptions, lora: Path | None
) -> tuple[ModelSpec, PlanOptions]:
    """The model, and the options with a recipe that its name asks for."""
    planned = open_to_plan(model, None if lora is None else AdapterRequest(lora))
    if planned.note is not None:
        echo(f"note: {printable(planned.note, 400)}", err=True)
    return planned.spec, planned.options(options)


def _echo_plans(
    spec: ModelSpec,
    profiles: list[DeviceProfile],
    options: PlanOptions,
    *,
    explain: bool,
    as_json: bool,
) -> None:
    """A plan for each board. The refusal of a single one is raised; of several, it is shown."""
    scale, learned = WeighingScale(spec), _learned()
    for note in spec.notes:
        echo(f"note: {printable(note, 300)}", err=True)
    refused: list[EdgeError] = []
    for number, profile in enumerate(profiles):
        planner = Planner(spec, profile, options, scale=scale, learned=learned)
        if not as_json and number:
            echo()
        try:
            chosen = choose_candidate(planner)
        except (DoesNotFitError, DeadlineError) as error:
            refused.append(error)
            if len(profiles) > 1:
                _echo_refusal(spec, profile, error, as_json)
            continue
        if as_json:
            echo(json.dumps(plan_record(planner, chosen)))
        else:
            echo("\n".join(plan_lines(planner, chosen, explain=explain)))
    if len(profiles) == 1 and refused:
        raise refused[0]
    if refused:
        kind = DoesNotFitError if isinstance(refused[0], DoesNotFitError) else DeadlineError
        raise kind(
            f"the model does not fit, or is too slow, on {len(refused)} of {len(profiles)} boards"
        )


def _learned() -> Learned:
    learned = read_learned()
    for note in learned.notes:
        echo(f"note: {printable(note)}", err=True)
    return learned


def _echo_sizes(profiles: list[DeviceProfile], options: PlanOptions, as_json: bool) -> None:
    for number, profile in enumerate(profiles):
        rows = compare.plan_sizes(profile, options)
        if as_json:
            echo(json.dumps(compare.size_record(profile, rows, options)))
            continue
        echo("\n".join(([""] if number else []) + compare.size_lines(profile, rows, options)))


def _echo_boards(spec: ModelSpec, options: PlanOptions, as_json: bool) -> None:
    rows = compare.plan_boards(spec, all_profiles().values(), options, learned=_learned())
    if as_json:
        for row in rows:
            echo(json.dumps(compare.board_record(row, options)))
    else:
        echo("\n".join(compare.board_lines(spec, rows, options)))
    if not any(row.chosen for row in rows):
        raise DoesNotFitError("no known board fits", next_step="relax the requirements")


def _echo_refusal(spec: ModelSpec, profile: DeviceProfile, error: EdgeError, as_json: bool) -> None:
    if not as_json:
        echo(f"{printable(spec.name)} on {profile.name}\n\n  does not fit: {error}")
        if error.next_step:
            echo(f"  {error.next_step}")
        return
    shortfall = getattr(error, "shortfall_bytes", None)
    echo(json.dumps(compare.refusal_record(error, device=profile.id, shortfall_bytes=shortfall)))
