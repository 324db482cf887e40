"""`edge devices` lists the boards we know; `edge devices show D` explains one, source by source."""

from __future__ import annotations

import json
from typing import Any

import click

from device_profiles.catalog import THIS_MACHINE, all_profiles, find_profile
from device_profiles.profile import DeviceProfile
from edge.units import format_bytes


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per board, one per line.")
@click.pass_context
def devices(ctx: click.Context, as_json: bool) -> None:
    """List the boards that have a profile. `this-machine` is probed when it is named."""
    if ctx.invoked_subcommand is not None:
        return
    profiles = list(all_profiles().values())
    if as_json:
        for profile in profiles:
            click.echo(json.dumps(profile_record(profile)))
        return
    width = max(len(profile.id) for profile in profiles)
    click.echo(f"{'board':<{width}}  {'RAM':>9}  {'free':>9}  {'GB/s':>5}  cores")
    for profile in profiles:
        click.echo(
            f"{profile.id:<{width}}  {format_bytes(profile.ram_bytes):>9}"
            f"  {format_bytes(profile.free_ram_bytes):>9}"
            f"  {_gigabytes(profile.memory.bandwidth_sustained):>5}  {_cores(profile)}"
        )
    click.echo(f"{THIS_MACHINE:<{width}}  probed when it is named")


@devices.command()
@click.argument("device")
@click.option("--json", "as_json", is_flag=True, help="The profile as one JSON object.")
def show(device: str, as_json: bool) -> None:
    """Everything known about DEVICE, and where each figure is from."""
    profile = _find(device)
    if as_json:
        click.echo(json.dumps(profile_record(profile)))
        return
    for line in profile_lines(profile):
        click.echo(line)


def _find(name: str) -> DeviceProfile:
    if name.strip() == THIS_MACHINE:
        from edge.probe.machine import probe_this_machine

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
    for label, bandwidth, fact in (
        ("bandwidth, peak", profile.memory.bandwidth_theoretical, "memory.theoretical_gb_per_s"),
        ("bandwidth, kept", profile.memory.bandwidth_sustained, "memory.sustained_gb_per_s"),
    ):
        rows.append((label, f"{_gigabytes(bandwidth)} GB/s" if bandwidth else "not known", fact))
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
    for engine in profile.engines:
        verdict = "runs" if engine.runs else "does not run"
        note = f": {engine.note}" if engine.note else ""
        lines.append(f"  {engine.engine:<17} {verdict}{note}  [{engine.source}]")
    return lines


def profile_record(profile: DeviceProfile) -> dict[str, Any]:
    """The profile as a JSON-able object, base units in the names."""
    return {
        "id": profile.id,
        "name": profile.name,
        "aliases": list(profile.aliases),
        "soc": profile.soc,
        "basis": profile.basis,
        "ram_bytes": profile.ram_bytes,
        "reserved_bytes": profile.memory.reserved_bytes,
        "free_ram_bytes": profile.free_ram_bytes,
        "bandwidth_theoretical_bytes_per_s": profile.memory.bandwidth_theoretical,
        "bandwidth_sustained_bytes_per_s": profile.memory.bandwidth_sustained,
        "clusters": [
            {
                "core": cluster.core,
                "count": cluster.count,
                "clock_hz": cluster.clock_hz,
                "isa": sorted(cluster.isa),
            }
            for cluster in profile.clusters
        ],
        "accelerator": profile.accelerator.name if profile.accelerator else None,
        "storage_read_bytes_per_s": profile.storage.read,
        "storage_write_bytes_per_s": profile.storage.write,
        "os": profile.software.os,
        "libc": profile.software.libc,
        "python": profile.software.python,
        "sustained_share": profile.sustained_share,
        "idle_w": profile.idle_w,
        "load_w": profile.load_w,
        "engines": [
            {"engine": e.engine, "runs": e.runs, "note": e.note, "source": e.source}
            for e in profile.engines
        ],
        "sources": dict(profile.sources),
    }


def _gigabytes(value: float | None) -> str:
    return f"{value / 1e9:.1f}" if value else "–"


def _cores(profile: DeviceProfile) -> str:
    return " + ".join(f"{cluster.count}x {cluster.core}" for cluster in profile.clusters)
