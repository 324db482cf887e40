"""Check that a board is the planned one and can run the engine in the bundle.

Another board than planned is refused unless it is forced. A bundle whose engine cannot load there
is always refused.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boardfit.device_profiles.catalog import THIS_MACHINE, find_profile
from boardfit.device_profiles.profile import DeviceProfile, ProfileError
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import InputError
from boardfit.edge.flash.board import Board
from boardfit.edge.probe.machine import ProbeReport, read_report
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes, printable


@dataclass(frozen=True)
class BoardFacts:
    """What decides whether an engine loads; None if the board did not report it."""

    machine: str | None = None
    bits: int | None = None
    glibc: tuple[int, int] | None = None
    musl: bool = False
    python: tuple[int, int] | None = None
    can_execute: bool | None = None


def facts_script(root: str) -> str:
    return read_text_beside(__file__, "facts.sh", root=shlex.quote(root))


def parse_facts(text: str) -> BoardFacts:
    lines = dict(line.partition(" ")[::2] for line in text.splitlines())
    return BoardFacts(
        machine=lines.get("machine") or None,
        bits=int(lines["bits"]) if lines.get("bits") in ("32", "64") else None,
        glibc=_version(lines.get("glibc")),
        musl="musl" in lines,
        python=_version(lines.get("python")),
        can_execute={"yes": True, "no": False}.get(lines.get("exec", "")),
    )


def _version(text: Any) -> tuple[int, int] | None:
    found = re.search(r"(\d{1,3})\.(\d{1,3})", str(text or ""))
    return (int(found[1]), int(found[2])) if found else None


def check_board(board: Board, bundle: Bundle, *, force: bool) -> list[str]:
    """Notes for the report; none for a mounted card. Raises InputError for another board than
    planned unless `force`, and when the bundle's engine cannot run there.
    """
    system = board.capture()
    if system is None:
        return []
    script = facts_script(board.files.root)
    facts = parse_facts(board.execute(script, timeout_s=60).out.decode("utf-8", "replace"))
    wanted = bundle.manifest.get("board")
    problems = engine_problems(facts, wanted) if isinstance(wanted, dict) else []
    if problems:
        raise InputError(
            f"{board.place} cannot run the engine in this bundle: " + "; ".join(problems),
            next_step="edge build --with-engine for this board, or without it for a board that "
            "has an edge of its own",
        )
    report = read_report(system)
    differences = plan_differences(report, bundle.plan, known_profile(bundle.plan.device))
    if differences and not force:
        matched = report.matched if report else None
        device = matched or "THE-BOARD (edge probe makes a profile of it)"
        raise InputError(
            f"{board.place} is not the {bundle.plan.device} that this bundle was planned for: "
            + "; ".join(differences),
            next_step=f"edge build MODEL --device {device}, or flash it anyway with --force",
        )
    return [f"forced: {difference}" for difference in differences]


def known_profile(device: str) -> DeviceProfile | None:
    """The profile that a plan was made for; None for `this-machine` and for boards of others."""
    if device == THIS_MACHINE:
        return None
    try:
        return find_profile(device)
    except ProfileError:
        return None


def plan_differences(
    report: ProbeReport | None, plan: Plan, planned: DeviceProfile | None
) -> list[str]:
    """In what the board that was probed is not the one planned for. Pure."""
    if report is None:
        return ["it shows neither cores nor memory under /proc"]
    seen, differences = report.profile, []
    if planned is not None and report.possible and planned.id not in report.possible:
        differences.append(f"it is a {' or a '.join(report.possible)}")
    elif planned is not None and report.matched is None:
        cores = {cluster.core.lower() for cluster in planned.clusters}
        if not cores & {cluster.core.lower() for cluster in seen.clusters}:
            has = " and ".join(sorted(printable(c.core, 60) for c in seen.clusters))
            differences.append(f"its cores are {has}, not {' and '.join(sorted(cores))}")
    if planned is not None and (missing := planned.isa - seen.isa):
        differences.append(f"its cores lack {', '.join(sorted(missing))}")
    if seen.ram_bytes < plan.peak_bytes:
        differences.append(
            f"it has {format_bytes(seen.ram_bytes)} of memory and the plan takes "
            f"{format_bytes(plan.peak_bytes)}"
        )
    return differences


def engine_problems(facts: BoardFacts, wanted: Mapping[str, Any]) -> list[str]:
    """Why the engine that a bundle brings (its manifest's entry `board`) cannot load. Pure."""
    problems = []
    machine = str(wanted.get("machine", ""))
    arm64 = ("aarch64", "arm64")
    same = facts.machine == machine or (facts.machine in arm64 and machine in arm64)
    if facts.machine and not same:
        problems.append(f"its processor is {printable(facts.machine, 40)}, the engine {machine}")
    elif facts.bits == 32 and machine in arm64:
        problems.append("its userland is 32-bit (the kernel is not): it needs a 64-bit system")
    if facts.can_execute is False:
        problems.append("programs cannot be run in that folder (mounted noexec): choose another")
    if "python" not in wanted:
        return problems  # static programs need nothing more
    if facts.musl and facts.glibc is None:
        problems.append("its C library is musl, the engine needs glibc")
    glibc, least = facts.glibc, _version(wanted.get("glibc"))
    if glibc and least and glibc < least:
        problems.append("its glibc is {}.{}, the engine needs {}.{}".format(*glibc, *least))
    python = _version(wanted.get("python"))
    if facts.python is None:
        problems.append("it has no Python: apt install python3 python3-venv")
    elif python and facts.python != python:
        problems.append(
            f"its Python is {facts.python[0]}.{facts.python[1]}, the wheels are for "
            f"{python[0]}.{python[1]} (edge build --with-engine --python "
            f"{facts.python[0]}.{facts.python[1]})"
        )
    return problems
