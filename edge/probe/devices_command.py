"""`edge devices` lists the known boards; `edge devices show D` shows one with its sources."""

import json
from collections.abc import Callable, Sequence

import click

from boardfit.device_profiles.catalog import THIS_MACHINE, all_profiles, find_profile
from boardfit.device_profiles.engine_rules import engine_verdicts
from boardfit.device_profiles.profile import ISA_FLAGS, DeviceProfile
from boardfit.device_profiles.text import profile_record
from boardfit.edge.errors import UsageError
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import did_you_mean, format_bytes, parse_bytes


@click.group(invoke_without_command=True)
@click.option(
    "--like", metavar="TEXT", help="Only boards with TEXT in their id, name, SoC or cores."
)
@click.option(
    "--min-ram", metavar="SIZE", help="Only boards with at least this much RAM: 4G, 512MiB, …"
)
@click.option("--isa", multiple=True, metavar="FLAG", help="Only boards whose cores all have FLAG.")
@click.option("--runs", metavar="ENGINE", help="Only boards on which ENGINE is known to run.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per board, one per line."
)
@click.pass_context
def devices(
    ctx: click.Context,
    like: str | None,
    min_ram: str | None,
    isa: tuple[str, ...],
    runs: str | None,
    as_json: bool,
) -> None:
    """List the boards with a profile. `this-machine` is probed only if you name it."""
    if ctx.invoked_subcommand is not None:
        return
    try:
        least = parse_bytes(min_ram) if min_ram else 0
    except ValueError as error:
        raise UsageError(str(error)) from None
    for flag in isa:
        if flag not in ISA_FLAGS:
            raise UsageError(f"unknown ISA flag {flag!r}.{did_you_mean(flag, ISA_FLAGS)}")
    profiles = [
        profile
        for profile in all_profiles().values()
        if profile.ram_bytes >= least
        and profile.isa >= set(isa)
        and (like is None or like.lower() in _words(profile))
        and (runs is None or ((e := profile.engine_support(runs)) is not None and e.runs))
    ]
    if as_json:
        for profile in profiles:
            echo(json.dumps(profile_record(profile)))
        return
    if not profiles:
        raise UsageError("no board matches", next_step="edge devices lists all of them")
    width = max(len(profile.id) for profile in profiles)
    echo(f"{'board':<{width}}  {'RAM':>9}  {'free':>9}  {'GB/s':>5}  cores")
    for p in profiles:
        ram, free = format_bytes(p.ram_bytes), format_bytes(p.free_ram_bytes)
        rate = _gigabytes(p.memory.bandwidth_sustained)
        echo(f"{p.id:<{width}}  {ram:>9}  {free:>9}  {rate:>5}  {_cores(p)}")
    echo(f"{THIS_MACHINE:<{width}}  probed when it is named")


def _words(profile: DeviceProfile) -> str:
    """What `--like` looks through."""
    words = (profile.id, profile.name, profile.soc or "", *profile.aliases, _cores(profile))
    return " ".join(words).lower()


@devices.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE DEVICE…")
def compare(names: tuple[str, ...]) -> None:
    """Compare boards side by side, one line per fact."""
    echo("\n".join(compare_lines([_find(name) for name in names])))


def compare_lines(profiles: Sequence[DeviceProfile]) -> list[str]:
    """A table with a column for each board; a dash where unknown."""

    def rate(value: float | None, unit: float, text: str) -> str:
        return "–" if value is None else f"{value / unit:.1f} {text}"

    rows: list[tuple[str, Callable[[DeviceProfile], str]]] = [
        ("", lambda p: p.id),
        ("RAM", lambda p: format_bytes(p.ram_bytes)),
        ("free for a model", lambda p: format_bytes(p.free_ram_bytes)),
        ("bandwidth, peak", lambda p: rate(p.memory.bandwidth_theoretical, 1e9, "GB/s")),
        ("bandwidth, kept", lambda p: rate(p.memory.bandwidth_sustained, 1e9, "GB/s")),
        ("cores", _cores),
        ("instructions", lambda p: " ".join(sorted(p.isa)) or "–"),
        ("accelerator", lambda p: p.accelerator.name if p.accelerator else "–"),
        ("storage reads", lambda p: rate(p.storage.read, 1e6, "MB/s")),
        ("kept under heat", lambda p: f"{p.sustained_share:.0%}" if p.sustained_share else "–"),
        ("busy", lambda p: rate(p.load_w, 1, "W")),
        ("figures", lambda p: p.basis),
    ]
    table = [(label, [show(profile) for profile in profiles]) for label, show in rows]
    widths = [max(len(cells[i]) for _, cells in table) for i in range(len(profiles))]
    lines = []
    for label, cells in table:
        padded = "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True))
        lines.append(f"{label:<17} {padded.rstrip()}")
    return lines


@devices.command()
@click.argument("device")
@click.option("--json", "as_json", is_flag=True, help="Print the profile as one JSON object.")
def show(device: str, as_json: bool) -> None:
    """Show every known fact about DEVICE, with its source."""
    profile = _find(device)
    if as_json:
        echo(json.dumps(profile_record(profile)))
        return
    echo("\n".join(profile_lines(profile)))


def _find(name: str) -> DeviceProfile:
    if name.strip() == THIS_MACHINE:
        from boardfit.edge.probe.machine import probe_this_machine

        return probe_this_machine()
    return find_profile(name)


def profile_lines(profile: DeviceProfile) -> list[str]:
    """The profile for people: facts on the left, sources in brackets."""
    sources = profile.sources
    rows: list[tuple[str, str, str | None]] = [
        ("RAM", format_bytes(profile.ram_bytes), "memory.ram_mib"),
        ("system keeps", format_bytes(profile.memory.reserved_bytes), "memory.reserved_mib"),
        ("free for a model", format_bytes(profile.free_ram_bytes), None),
    ]
    for label, name in (("bandwidth, peak", "theoretical"), ("bandwidth, kept", "sustained")):
        bandwidth = getattr(profile.memory, f"bandwidth_{name}")
        text = f"{_gigabytes(bandwidth)} GB/s" if bandwidth else "not known"
        rows.append((label, text, f"memory.{name}_gb_per_s"))
    if pairs := profile.memory.bandwidth_by_threads:
        text = ", ".join(f"{n}: {rate / 1e9:.1f}" for n, rate in pairs)
        rows.append(("  by threads", f"{text} GB/s", None))
    for i, cluster in enumerate(profile.clusters):
        clock = f" at {cluster.clock_hz / 1e9:.2f} GHz" if cluster.clock_hz else ""
        rows.append(("cores", f"{cluster.count}x {cluster.core}{clock}", f"cpu.{i}.core"))
        flags = " ".join(sorted(cluster.isa)) or "none known"
        rows.append(("  instructions", flags, f"cpu.{i}.isa"))
    if profile.accelerator:
        rows.append(("accelerator", profile.accelerator.name, "accelerator.name"))
    storage = profile.storage
    if storage.read is not None:
        speed = f"{storage.medium}, reads {storage.read / 1e6:.0f} MB/s"
        rows.append(("storage", speed, "storage.read_mb_per_s"))
    if profile.software.os:
        python = profile.software.python or "not known"
        system = f"{profile.software.os}, {profile.software.libc}, Python {python}"
        rows.append(("system", system, "software.os"))
    if profile.sustained_share is not None:
        rows.append(("kept under heat", f"{profile.sustained_share:.0%}", "heat.sustained_share"))
    if profile.idle_w is not None and profile.load_w is not None:
        power = f"{profile.idle_w:g} W idle, {profile.load_w:g} W busy"
        rows.append(("power", power, "power.idle_w"))
    lines = [f"{profile.name} ({profile.id})"]
    if profile.aliases:
        lines.append(f"  also: {', '.join(profile.aliases)}")
    for label, value, key in rows:
        source = f"  [{sources[key]}]" if key in sources else ""
        lines.append(f"  {label:<17} {value}{source}")
    for engine in engine_verdicts(profile):
        by_rule = engine.source.startswith("rule")
        verdict = ("should run" if by_rule else "runs") if engine.runs else "does not run"
        note = f": {engine.note}" if engine.note else ""
        lines.append(f"  {engine.engine:<17} {verdict}{note}  [{engine.source}]")
    return lines


def _gigabytes(value: float | None) -> str:
    return f"{value / 1e9:.1f}" if value else "–"


def _cores(profile: DeviceProfile) -> str:
    return " + ".join(f"{cluster.count}x {cluster.core}" for cluster in profile.clusters)
