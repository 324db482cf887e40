"""Everything but the model that an offline bundle carries, put into its folder or its copy."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.converters.board.engine.build import LICENSE, TOOL_PAIR, build_tools, build_wheel
from boardfit.converters.board.engine.store import make_key
from boardfit.converters.board.engine.variants import ALL_VARIANTS
from boardfit.converters.board.offline import wheelhouse
from boardfit.converters.board.offline.own_wheel import own_wheel
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import Bundle, open_bundle, seal_bundle
from boardfit.edge.disk.atomic import link_or_copy, write_atomic
from boardfit.edge.disk.rooted import check_free, work_beside
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines import ENGINES
from boardfit.edge.errors import UsageError
from boardfit.edge.flash.service_units import SERVICE, service_unit
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.types import Plan

BOARD_FILES = ("install.sh", "install.py")
_LICENSES = "licenses/third-party.txt"
# What add_engine writes; an old one is replaced by the new.
_OURS = ("wheel", "launcher", "unit", "tool")
#: Beside what the engine requires: logits and speed probes need numpy, `edge serve` the rest.
EXTRA_REQUIREMENTS = ("numpy>=1.26", "uvicorn>=0.54,<1", "h11>=0.16,<1")


@dataclass(frozen=True)
class OfflineParts:
    """What was added: role by file name, for `seal_bundle`, and the manifest's entry `board`."""

    roles: dict[str, str]
    manifest: dict[str, Any]


def add_engine(
    directory: Path,
    plan: Plan,
    device: DeviceProfile,
    reporter: Reporter,
    *,
    name: str = "model",
    python: str | None = None,
    variant: str = ALL_VARIANTS,
) -> OfflineParts:
    """Put into the bundle folder `directory` what `device` needs to run `plan` without a network:
    wheels, an installer and a service unit, or static tools for phones. The caller seals it with
    the roles. Raises UsageError for a board that our engines cannot run on, EngineMissingError when
    the cross toolchain, pip or a wheel is missing, EngineError when compiling fails.
    """
    if plan.engine not in ENGINES:
        raise UsageError(f"unknown engine {plan.engine!r}; known: {', '.join(ENGINES)}")
    board = check_board(device, python)
    if board is None:
        return add_tools(directory, plan, reporter)
    wheels = collect_wheels(plan.engine, board, reporter, variant)
    roles: dict[str, str] = {}
    for wheel in wheels:
        # '+' begins a local version and is no letter of a bundle's file names.
        target = f"wheels/{wheel.path.name.replace('+', '_')}"
        roles |= place(directory, target, "wheel", wheel.path)
    for file in BOARD_FILES:
        own = Path(__file__).with_name("board") / file
        roles |= place(directory, f"board/{file}", "launcher", own)
    roles |= place(directory, f"board/{SERVICE}", "unit", service_unit(name, plan))
    roles |= place(directory, _LICENSES, "license", license_table(wheels))
    manifest = {
        "python": f"{board.python[0]}.{board.python[1]}",
        "glibc": f"{board.glibc[0]}.{board.glibc[1]}",
        "machine": "aarch64",
        "engine_variant": variant if plan.engine == "llama_cpp" else None,
        "wheels": {wheel.name: wheel.version for wheel in wheels},
    }
    return OfflineParts(roles, manifest)


def bundle_with_engine(
    path: Path,
    output: Path,
    device: DeviceProfile,
    reporter: Reporter,
    *,
    python: str | None = None,
    variant: str = ALL_VARIANTS,
) -> Bundle:
    """Write the bundle at `path` to `output` with wheels, installer and unit for `device`. The
    model is linked, not copied, where the file system can. An engine that is already in it is
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
            made, source.plan, device, reporter, name=source.name, python=python, variant=variant
        )
        for name in parts.roles:
            hashes.pop(name, None)
        reporter.stage("sealing")
        kept = {k: v for k, v in source.manifest.items() if k not in ("kind", "schema", "files")}
        manifest = {**kept, "board": parts.manifest}
        seal_bundle(made, manifest, {**roles, **parts.roles}, hashes)
        work.publish("bundle")
    return open_bundle(output)


def check_board(device: DeviceProfile, python: str | None = None) -> wheelhouse.BoardPython | None:
    """The Python that wheels for `device` are for; None for phones, which get static tools. Raises
    UsageError for a board that our engines cannot run on.
    """
    if (device.software.libc or "").startswith("bionic"):
        return None
    return wheelhouse.board_python(device, python)


def collect_wheels(
    engine: str, board: wheelhouse.BoardPython, reporter: Reporter, variant: str
) -> list[wheelhouse.Wheel]:
    """All wheels of one engine for one Python, ours included, sorted by file name."""
    own = own_wheel(ENGINES[engine].extra)
    requirements = wheelhouse.select_requirements((*own.requirements, *EXTRA_REQUIREMENTS), board)
    local: list[Path] = []
    if engine == "llama_cpp":
        built = build_wheel(variant, reporter=reporter)
        requirements = [r for r in requirements if not r.startswith("llama-cpp-python")]
        local.append(built.path)
    reporter.stage("collecting the board's wheels")
    pins = wheelhouse.load_pins(board.python)
    if not pins:
        reporter.say("wheels for this Python are not pinned by hash: {}.{}".format(*board.python))
    third_party = wheelhouse.fetch_wheels(requirements, local, board, reporter.stage, pins)
    folder = cache_directory() / "wheelhouse/own" / make_key([own.name, own.data.hex()])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / own.name, own.data)
    return sorted(
        [*third_party, wheelhouse.describe(folder / own.name)], key=lambda wheel: wheel.path.name
    )


def add_tools(directory: Path, plan: Plan, reporter: Reporter) -> OfflineParts:
    """Static llama.cpp programs, for systems without glibc and without Python."""
    if plan.engine != "llama_cpp":
        raise UsageError(
            f"only llama.cpp has static tools for phones; this plan uses {plan.engine}",
            next_step="edge build with a GGUF recipe",
        )
    roles = place(directory, _LICENSES, "license", TOOLS_LICENSE)
    for variant in TOOL_PAIR:
        for path in build_tools(variant, reporter=reporter).paths:
            if path.name == LICENSE:
                roles |= place(directory, f"licenses/{path.name}", "license", path)
                continue
            target = f"tools/{variant}/{path.name}"
            roles |= place(directory, target, "tool", path)
            (directory / target).chmod(0o755)
    return OfflineParts(roles, {"machine": "aarch64", "tools": list(TOOL_PAIR)})


TOOLS_LICENSE = """\
Static programs in tools/: llama.cpp (MIT, see LICENSE.llama.cpp), with GCC's run-time libraries
(GPL-3.0-or-later with the run-time exception) and the GNU C library (LGPL-2.1-or-later) linked in.
`edge engine build --tools` compiles them again from source, with another C library if you wish.
"""


def license_table(wheels: Sequence[wheelhouse.Wheel]) -> str:
    """One line per wheel; the licences' texts are in the wheels themselves."""
    rows = [(wheel.name, wheel.version, wheel.license) for wheel in wheels]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    head = "Software in wheels/, by the licence its metadata declares; texts are in each wheel.\n\n"
    return head + "\n".join(lines) + "\n"


def place(directory: Path, name: str, role: str, content: Path | str) -> dict[str, str]:
    """Put a file, or a text, into the folder; returns its role by its name. An old file may be a
    link to another bundle's: it is replaced, never written into.
    """
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if isinstance(content, str):
        target.write_text(content, encoding="utf-8")
    else:
        shutil.copyfile(content, target)
    return {name: role}
