"""Copy a finished bundle and add what its board needs to run it offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boardfit.converters.board.engine import ALL_VARIANTS
from boardfit.converters.board.offline.parts import add_engine
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import Bundle, open_bundle, seal_bundle
from boardfit.edge.disk.atomic import link_or_copy
from boardfit.edge.disk.rooted import check_free, work_beside
from boardfit.edge.terminal.progress import Reporter

# What add_engine writes; an old one is replaced by the new.
_OURS = ("wheel", "launcher", "unit", "tool")


def bundle_with_engine(
    path: Path,
    output: Path,
    device: DeviceProfile,
    reporter: Reporter,
    *,
    python: str | None = None,
    variant: str = ALL_VARIANTS,
    jobs: int | None = None,
) -> Bundle:
    """Write the bundle at `path` to `output` with wheels, installer and unit for `device`.

    The model is linked, not copied, where the file system can. An engine that is already in it is
    replaced. Raises UsageError when `output` exists, and as `open_bundle` and `add_engine` do.
    """
    check_free(output)
    source = open_bundle(path)
    with work_beside(output, "bundle") as work:
        made = work.path / "bundle"
        roles, hashes = {}, {}
        for file in source.files:
            if file.role in _OURS:
                continue
            link_or_copy(source.path / file.name, made / file.name)
            roles[file.name], hashes[file.name] = file.role, file.sha256
        parts = add_engine(
            made, source.plan, device, reporter, name=source.name, python=python,
            variant=variant, jobs=jobs,
        )  # fmt: skip
        for name in parts.roles:
            hashes.pop(name, None)
        reporter.stage("sealing")
        kept = {k: v for k, v in source.manifest.items() if k not in ("kind", "schema", "files")}
        manifest: dict[str, Any] = {**kept, "board": parts.manifest}
        seal_bundle(made, manifest, {**roles, **parts.roles}, hashes)
        work.publish("bundle")
    return open_bundle(output)
