"""What `edge build --force` may replace: its own outputs, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bench.network_folder import open_network_folder
from boardfit.edge.bundle.bundle import is_bundle
from boardfit.edge.disk.rooted import check_free, check_parent
from boardfit.edge.errors import EdgeError, UsageError


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
