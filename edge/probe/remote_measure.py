"""Measure a board behind ssh: our own pure-Python package goes over, runs there, and is removed.
Where the `edge` command is on the PATH, its Python is taken: that one has the engine. What comes
back is a stranger's word and is checked figure by figure.
"""

import contextlib
import io
import json
import math
import secrets
import shlex
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boardfit.device_profiles.profile import ISA_FLAGS, DeviceProfile, KernelSpeed
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.probe.measure import Measurements
from boardfit.edge.probe.remote import Target, shell_command
from boardfit.edge.process.child import DEVNULL, OUR_FOLDER, TimeoutExpired, start_child
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import printable

_TOTAL_S = 60
_CLEANING_S = 5
_MAX_LINE = 65536
_MAX_LINES = 1000
# What the script ends with.
_EXITS = {
    80: "the board has no Python 3.10 or later",
    81: "the board has no room for a temporary file",
}

_FOLDERS = (
    *("", "edge", "edge/process", "edge/disk", "edge/files", "edge/terminal", "edge/probe"),
    *("device_profiles", "device_profiles/cost"),
)
_MAIN = "import sys\nfrom boardfit.edge.probe.measure import main\nmain(sys.argv[1:])\n"


def package_archive() -> bytes:
    """What a probe needs of our package as a zip file that Python runs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", _MAIN)
        for folder in _FOLDERS:
            files = sorted(Path(OUR_FOLDER, "boardfit", folder).iterdir())
            for path in (file for file in files if file.suffix in (".py", ".json", ".toml")):
                archive.write(path, path.relative_to(OUR_FOLDER).as_posix())
    return buffer.getvalue()


def measure_remote(
    target: Target, profile: DeviceProfile, *, quick: bool = False, progress: Progress | None = None
) -> Measurements:
    """Measure the board behind `target`. A board without a usable Python is no error."""
    if target.scheme != "ssh":
        return Measurements(notes=["nothing was measured: a phone's shell has no Python"])
    mark = secrets.token_hex(16)
    clusters = [{**vars(cluster), "isa": sorted(cluster.isa)} for cluster in profile.clusters]
    memory = {"ram_bytes": profile.ram_bytes, "free_bytes": profile.free_ram_bytes}
    asked = shlex.quote(json.dumps({"clusters": clusters, "quick": quick, **memory}))
    script = read_text_beside(__file__, "measure_board.sh", mark=mark, asked=asked)
    command = [*shell_command(target)[:-2], f"sh -c {shlex.quote(script)}"]
    lines: list[str] = []
    with tempfile.TemporaryFile() as archive:
        archive.write(package_archive())
        archive.seek(0)
        process = start_child(command, stdin=archive, stderr=DEVNULL)
        timer = threading.Timer(_TOTAL_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            while len(lines) < _MAX_LINES and (raw := process.stdout.readline(_MAX_LINE)):
                line = raw.decode("utf-8", "replace").rstrip("\n")
                lines.append(line)
                _show(line, mark, progress)
            with contextlib.suppress(TimeoutExpired):
                process.wait(_CLEANING_S)  # the board removes what was sent
        finally:
            timer.cancel()
            process.kill()
            code = process.wait()
    found = next((line for line in lines if line.startswith(f"{mark} found ")), None)
    if found is not None:
        return parse_findings(found.partition(" found ")[2])
    failed = f"measuring on the board failed (exit {code})"
    why = _EXITS.get(code, f"it took more than {_TOTAL_S} s" if code < 0 else failed)
    return Measurements(notes=[f"nothing was measured: {why}"])


def _show(line: str, mark: str, progress: Progress | None) -> None:
    words = line.split()
    if progress is None or words[:2] != [mark, "progress"] or len(words) != 4:
        return
    if all(word.isascii() and word.isdigit() and len(word) < 6 for word in words[2:]):
        progress(int(words[2]), int(words[3]))


def parse_findings(text: str) -> Measurements:
    """Read the board's measurements; leave out implausible figures."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        return Measurements(notes=["nothing was measured: the board's answer is not a JSON object"])
    found = Measurements(method=data["method"] if data.get("method") in _METHODS else None)
    for item in [*_items(data, "bandwidth_by_threads"), *_items(data, "kernels")]:
        match item:
            case [int(n), int() | float() as rate] if _is_rate(rate) and 0 < n <= 1024:
                found.bandwidth_by_threads[n] = float(rate)
            case [str(kind), bool(repacked), int(n), int() | float() as rate] if (
                kind in _KINDS and _is_rate(rate) and 0 < n <= 1024
            ):
                found.kernels.append(KernelSpeed(kind, repacked, n, float(rate)))
    read = data.get("storage_read")
    if isinstance(read, int | float) and _is_rate(read):
        found.storage_read = float(read)
    if isinstance(data.get("engine_isa"), list):
        found.engine_isa = frozenset(f for f in ISA_FLAGS if f in _items(data, "engine_isa"))
    python = data.get("python")
    who = f"Python {printable(python)[:20]}" if isinstance(python, str) else "its Python"
    found.notes.append(f"measured on the board itself, by {who}; nothing was left there")
    found.notes += [printable(n)[:300] for n in _items(data, "notes") if isinstance(n, str)][:20]
    return found


_METHODS = ("engine", "copy")
_KINDS = ("Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K")
_LARGEST_RATE = 1e15


def _items(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    return value[:200] if isinstance(value, list) else []


def _is_rate(value: float) -> bool:
    return not isinstance(value, bool) and math.isfinite(value) and 0 < value < _LARGEST_RATE
