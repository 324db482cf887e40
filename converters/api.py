"""What `import boardfit` offers on a host beside `boardfit.edge.api`: `plan` and `build`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boardfit.converters.build.build import BuildRequest
from boardfit.converters.build.build import build as build_all
from boardfit.converters.formats.base import GGUF, parse_formats
from boardfit.converters.formats.upstream.convert import open_any_model
from boardfit.converters.plan.catalogue import open_to_plan
from boardfit.converters.plan.command import load_devices
from boardfit.converters.plan.learned import read_learned
from boardfit.converters.plan.make import plan_any
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.quality.building import QualityOptions
from boardfit.converters.source.resolve import Mtp
from boardfit.device_profiles.catalog import THIS_MACHINE
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import UsageError
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.types import Plan, Thinking

__all__ = ["build", "plan"]


def plan(
    model: str | Path,
    device: str = THIS_MACHINE,
    *,
    format: str = GGUF,
    options: PlanOptions | None = None,
) -> Plan:
    """What of a model fits a board: recipe, context, memory, speed, and why. `model` is a Hugging
    Face directory, a hub id (owner/name), a .gguf file, or "sample". Of a model on the hub, no
    weights are downloaded. Raises DoesNotFitError when nothing fits.
    """
    (profile,) = load_devices([device])
    planned = open_to_plan(str(model))
    chosen = planned.options(options or PlanOptions())
    return plan_any(planned.spec, profile, one_format(format), chosen, read_learned())


def build(
    model: str | Path,
    device: str,
    output: str | Path,
    *,
    format: str = GGUF,
    options: PlanOptions | None = None,
    with_engine: bool = False,
    quality: QualityOptions | None = None,
    overwrite: bool = False,
    mtp: Mtp | None = None,
    thinking: Thinking = "auto",
    template_variables: Mapping[str, Any] | None = None,
) -> Bundle:
    """Make a 4-bit artifact of a model sized to a board, in a verified bundle at `output`.
    `with_engine` adds the engine, compiled for the board, and all it needs to run there offline.
    `mtp` keeps or drops a checkpoint's head that guesses tokens ahead. `thinking` and
    `template_variables` are how its chat template is rendered, unless a user overrides them.
    """
    request = BuildRequest(
        spec=open_any_model(str(model), mtp=mtp),
        devices=tuple(load_devices([device])),
        output=Path(output),
        options=options or PlanOptions(),
        overwrite=overwrite,
        with_engine=with_engine,
        quality=quality or QualityOptions(),
        formats=(one_format(format),),
        thinking=thinking,
        template_variables=template_variables or {},
    )
    (built,) = build_all(request, Reporter())
    return built.bundle


def one_format(name: str) -> str:
    formats = parse_formats(name)
    if len(formats) != 1:
        raise UsageError(f"one format at a time, got {name!r}", next_step='for example "auto"')
    return formats[0]
