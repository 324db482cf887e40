"""`edge probe`: identify and measure a board, and store a profile that `--device` finds."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click

from boardfit.device_profiles.catalog import THIS_MACHINE, shipped_profiles, user_boards_directory
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.text import profile_record, profile_text
from boardfit.device_profiles.toml import BOARD_ID
from boardfit.edge import __version__
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.probe.machine import (
    ProbeReport,
    describe_userland,
    profile_name,
    read_report,
    report_this_machine,
)
from boardfit.edge.probe.measure import Measurements, measure_machine, measured_profile
from boardfit.edge.probe.remote import capture, parse_target
from boardfit.edge.probe.remote_measure import measure_remote
from boardfit.edge.probe.sensors import describe_throttled
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import ProgressLine
from boardfit.edge.units import format_bytes, printable

# What the JSON has of a report as it is.
_PLAIN_FACTS = ("matched", "userland_bits", "hostname", "n_cores_present", "n_cores_online",
                "throttled")  # fmt: skip


@click.command()
@click.argument("target", required=False, metavar="[ssh://USER@HOST | adb://SERIAL]")
@click.option("-n", "--name", help="Id of the profile. [default: the board's host name]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
    help="File for the profile. [default: the folder that --device searches]",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Measure for about 5 seconds instead of 25.")
@click.option("--no-measure", is_flag=True, help="Read the hardware only; measure nothing.")
@click.option("--no-write", is_flag=True, help="Show the result only; write no profile.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def probe(
    target: str | None,
    name: str | None,
    output: Path | None,
    quick: bool,
    no_measure: bool,
    no_write: bool,
    as_json: bool,
) -> None:
    """Identify and measure this board, or one over ssh or adb, and store its profile.

    Over ssh or adb, a small shell script reads the board. Over ssh, a board with Python is measured
    too. The measuring code is copied to the board and removed afterwards. `edge probe` never asks
    for a password.
    """
    found: Measurements | None = None
    if target is None:
        report, measure = report_this_machine(), measure_machine
    else:
        place = parse_target(target)
        remote = read_report(capture(place))
        if remote is None:
            raise InputError(
                f"{place} shows neither cores nor memory under /proc; is it Linux or Android?"
            )
        report, measure = remote, partial(measure_remote, place)
    profile = report.profile
    if not no_measure:
        with closing(ProgressLine("measuring there" if target else "measuring")) as line:
            found = measure(profile, quick=quick, progress=line)
        profile = measured_profile(profile, found)
    profile = replace(profile, id=board_id(name, output, report), aliases=())
    path = None if no_write else output or user_boards_directory() / f"{profile.id}.toml"
    measured = found is not None and (found.method is not None or found.storage_read is not None)
    if path is not None:
        write_profile(path, profile, measured=measured, matched=report.matched)
    if as_json:
        echo(json.dumps(report_record(report, profile, found, path)))
        return
    for text in report_lines(report, profile, found):
        echo(text)
    if path is not None:
        echo(f"  kept as {path}")
        if output is None:
            echo(f"  next: edge plan MODEL --device {profile.id}")


def board_id(name: str | None, output: Path | None, report: ProbeReport) -> str:
    """The profile's id: what the user wrote, else the output file's name, else the host's. Raises
    UsageError for an id that a file cannot have or that a shipped board has.
    """
    wanted = name or (output.stem if output else profile_name(report))
    if not BOARD_ID.match(wanted) or wanted == THIS_MACHINE:
        raise UsageError(
            f"{printable(wanted)!r} is not a board id: lower-case words with hyphens",
            next_step="choose one with --name, for example --name kitchen-pi",
        )
    taken = {n: p.id for p in shipped_profiles().values() for n in (p.id, *p.aliases)}
    if wanted in taken and output is None:
        raise UsageError(
            f"{wanted!r} is the name of a shipped board ({taken[wanted]})",
            next_step=f"choose another with --name, for example --name my-{wanted}",
        )
    return wanted


def write_profile(
    path: Path, profile: DeviceProfile, *, measured: bool, matched: str | None = None
) -> None:
    """The profile as a board file. `matched` is the shipped board that it took the rest from."""
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    tool = f"boardfit {__version__}, edge probe"
    marks = {"date": today, "tool": tool} if measured else None
    path.parent.mkdir(parents=True, exist_ok=True)
    borrowed = f"boardfit's profile of {matched}" if matched else None
    text = profile_text(profile, source=f"{tool}, {today}", borrowed=borrowed, measured=marks)
    write_atomic(path, text.encode())


def report_lines(
    report: ProbeReport, profile: DeviceProfile, found: Measurements | None
) -> list[str]:
    """What was found, for people. A sensor that is not there is a dash."""
    lines = [f"{printable(profile.name)} ({profile.id})"]
    rows: list[tuple[str, str]] = []
    if report.matched:
        others = report.possible[1:]
        doubt = f" (or {', '.join(others)}: this board shows no difference)" if others else ""
        rows.append(("known board", report.matched + doubt))
    if (warning := describe_userland(report.userland_bits, profile)) is not None:
        rows.append(("system", warning))
    if profile.software.libc == "musl":
        rows.append(("system", "musl, not glibc: the engines' Python wheels do not load there"))
    for cluster in profile.clusters:
        clock = f" at {cluster.clock_hz / 1e9:.2f} GHz" if cluster.clock_hz else ""
        flags = " ".join(sorted(cluster.isa)) or "no known flags"
        rows.append(("cores", f"{cluster.count}x {printable(cluster.core)}{clock}: {flags}"))
    if report.n_cores_offline:
        rows.append(("  offline", f"{report.n_cores_offline} of {report.n_cores_present}"))
    free = format_bytes(profile.free_ram_bytes)
    rows.append(("RAM", f"{format_bytes(profile.ram_bytes)}, {free} free for a model now"))
    if report.limit_bytes is not None and report.limit_bytes <= profile.ram_bytes:
        rows.append(("  limit", f"a cgroup allows {format_bytes(report.limit_bytes)}"))
    speed = profile.storage.read
    read = f"reads {speed / 1e6:.0f} MB/s" if speed is not None else "speed not known"
    rows.append(("storage", f"{profile.storage.medium or 'unknown medium'}, {read}"))
    temps = [s for s in report.heat if s.temp_c is not None]
    heat = ", ".join(f"{printable(s.name)} {s.temp_c:.1f} °C" for s in temps[:4])
    rows.append(("heat", heat or "–"))
    bits = ", ".join(describe_throttled(report.throttled)) or "none"
    rows.append(("throttling", "–" if report.throttled is None else bits))
    power = [
        f"{printable(s.name)} ({s.kind}) {'–' if s.power_w is None else f'{s.power_w:.2f} W'}"
        for s in report.power
    ]
    rows.append(("power", ", ".join(power) or "–"))
    if found is not None:
        rows += measured_rows(found)
    elif profile.memory.bandwidth_sustained:
        rate = profile.memory.bandwidth_sustained / 1e9
        rows.append(("bandwidth", f"{rate:.1f} GB/s, {profile.basis}"))
    return lines + [f"  {label:<12} {value}" for label, value in rows]


def measured_rows(found: Measurements) -> list[tuple[str, str]]:
    """Bandwidth by threads, kernels and notes."""
    how = "copies of memory, a stand-in for what decode reads"
    how = "4-bit decode of the engine" if found.method == "engine" else how
    rates = [f"{n}: {rate / 1e9:.1f}" for n, rate in sorted(found.bandwidth_by_threads.items())]
    rows = [("bandwidth", f"{', '.join(rates)} GB/s by threads ({how})")] if rates else []
    for kernel in found.kernels:
        layout = "repacked" if kernel.repacked else "as stored"
        plural = "" if kernel.threads == 1 else "s"
        rate = f"{kernel.macs_per_s / 1e9:.1f} G products/s on {kernel.threads} thread{plural}"
        rows.append(("prefill", f"{kernel.ggml_type} {layout}: {rate}"))
    return rows + [("note", note) for note in found.notes]


def report_record(
    report: ProbeReport, profile: DeviceProfile, found: Measurements | None, path: Path | None
) -> dict[str, Any]:
    """Everything as one JSON-able object, base units in the names, null where nothing answers."""
    return {
        "profile": profile_record(profile),
        "path": str(path) if path else None,
        **{name: getattr(report, name) for name in _PLAIN_FACTS},
        "possible": list(report.possible),
        "cgroup_limit_bytes": report.limit_bytes,
        "heat": [vars(sensor) for sensor in report.heat],
        "throttled_means": describe_throttled(report.throttled),
        "power": [vars(sensor) for sensor in report.power],
        "android": None if report.android is None else vars(report.android),
        "engine_isa": sorted(found.engine_isa) if found and found.engine_isa is not None else None,
        "bandwidth_method": found.method if found else None,
        "notes": found.notes if found else [],
    }
