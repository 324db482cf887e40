"""Make the jobs of a build: one per board and format, each with its plan and its folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.formats.base import AUTO, FormatRow, format_of_engine
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.make import plan_any
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bench.network_folder import open_network_folder
from boardfit.edge.bundle.bundle import is_bundle
from boardfit.edge.disk.rooted import check_free, check_parent
from boardfit.edge.errors import EdgeError, UsageError
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


def check_devices(devices: Sequence[DeviceProfile]) -> None:
    """Raise UsageError for a device that is named twice."""
    ids = [device.id for device in devices]
    if len(set(ids)) != len(ids):
        raise UsageError(f"a device is named twice: {', '.join(ids)}")


def check_output(output: Path, overwrite: bool) -> None:
    """Raise UsageError for an output that exists, or that a file above it makes impossible. With
    `overwrite` an earlier output of a build may be replaced.
    """
    if os.path.lexists(output) and not overwrite:
        raise UsageError(
            f"{output} exists", next_step="choose another -o, or replace it with --force"
        )
    check_free(output, is_output)
    check_parent(output)


def is_output(path: Path) -> bool:
    """Whether a folder is what a build makes: one result, or nothing but results."""
    inside = list(path.iterdir())
    return _is_result(path) or (bool(inside) and all(map(_is_result, inside)))


def _is_result(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        return is_bundle(path) or bool(open_network_folder(path))
    except (OSError, EdgeError):
        return False
