"""Make the jobs of a build: one per board and format, each with its plan and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boardfit.converters.formats.base import AUTO, FormatRow, format_of_engine
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.make import PlanOptions, plan_any
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import UsageError
from boardfit.edge.types import Plan


@dataclass(frozen=True)
class BuildJob:
    """One bundle to make. `name` is its folder below the output, empty where it is the output."""

    name: str
    device: DeviceProfile
    target: FormatRow
    plan: Plan

    @property
    def is_converted(self) -> bool:
        """Whether a converter in its own environment makes it; a GGUF is quantized here."""
        return not self.target.is_streamed

    @property
    def key(self) -> str:
        """What its bytes depend on beside the source: jobs of one key share an artifact."""
        return self.target.load().name_artifact(self.plan, self.device)


def make_jobs(
    spec: ModelSpec,
    devices: Sequence[DeviceProfile],
    formats: Sequence[str],
    options: PlanOptions,
    learned: Learned,
) -> list[BuildJob]:
    """Plans for every board and format. With several of both, folders are called board-format.

    Raises what planning raises, UsageError for a recipe beside several formats.
    """
    if options.recipe and (len(formats) > 1 or AUTO in formats):
        raise UsageError(
            "--recipe names a recipe of one format; several formats are asked for",
            next_step="build them one by one, or leave --recipe out",
        )
    jobs = []
    for device in devices:
        for name in formats:
            plan = plan_any(spec, device, name, options, learned)
            folder = job_name(device.id, name, len(devices), len(formats))
            jobs.append(BuildJob(folder, device, format_of_engine(plan.engine), plan))
    return jobs


def job_name(device: str, format_id: str, n_devices: int, n_formats: int) -> str:
    parts = ([device] if n_devices > 1 else []) + ([format_id] if n_formats > 1 else [])
    return "-".join(parts)
