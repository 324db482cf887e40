"""Unpacks a bundle's wheels on the board; started by install.sh. Standard library only.

    ENV_DIR/site/            the wheels, unpacked
    ENV_DIR/bin/edge         the program
    ENV_DIR/installed.json   which wheels these are, by sha256

Everything is made in ENV_DIR.partial, tried there, and renamed: ENV_DIR is whole or absent. Needs
no child programs, so that it also runs under an emulator that cannot start any.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

#: Marks a folder that was made here and may be removed here: boardfit.edge.disk.rooted.MARKER.
OWNED = ".boardfit-owned"
KEEP_FREE = 16 << 20  # bytes left on the disk beside what is unpacked
EXIT_INPUT, EXIT_SPACE, EXIT_ENGINE, EXIT_INTEGRITY = 3, 4, 5, 7

LAUNCHER = """#!/bin/sh
# Made by install.sh: boardfit from this folder alone, even if another is installed.
env=$(PATH=/usr/bin:/bin readlink -f "$0")
env=${{env%/bin/edge}}
exec {python} -I "$env/main.py" "$@"
"""
MAIN = '''"""Made by install.sh: what bin/edge runs."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "site"))
from boardfit.edge.supervisor import main

main()
'''


class InstallError(Exception):
    def __init__(self, code: int, message: str, next_step: str) -> None:
        super().__init__(message)
        self.code, self.next_step = code, next_step


def main(bundle: Path, env: Path) -> None:
    sums = read_sums(bundle / "SHA256SUMS")
    wheels = {name: digest for name, digest in sums.items() if name.startswith("wheels/")}
    if not wheels:
        raise InstallError(
            EXIT_INPUT, f"{bundle} carries no wheels", "build it with: edge build … --with-engine"
        )
    check_machine()
    check_versions((read_json(bundle / "manifest.json") or {}).get("board") or {})
    check_digests(bundle, {n: d for n, d in sums.items() if n.startswith(("wheels/", "board/"))})
    made = {"wheels": wheels, "python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    if read_json(env / "installed.json") == made and os.access(env / "bin/edge", os.X_OK):
        print(f"already installed: {env}")
        return
    partial, old = env.with_name(env.name + ".partial"), env.with_name(env.name + ".old")
    for folder in (partial, env, old):
        check_ours(folder)
    remove(partial)
    check_place(env.parent, [bundle / name for name in wheels])
    partial.mkdir(parents=True)
    (partial / OWNED).touch()
    try:
        for name in sorted(wheels):
            unpack(bundle / name, partial / "site")
        write(partial / "main.py", MAIN, 0o644)
        (partial / "bin").mkdir()
        write(partial / "bin/edge", LAUNCHER.format(python=shlex.quote(sys.executable)), 0o755)
        try_engine(partial / "site", bundle)
        write(partial / "installed.json", json.dumps(made, indent=1, sort_keys=True), 0o644)
        os.sync()
    except BaseException:
        remove(partial)
        raise
    remove(old)
    if env.exists():
        env.rename(old)
    partial.rename(env)
    os.sync()
    remove(old)
    print(f"installed: {env}/bin/edge")


def check_ours(folder: Path) -> None:
    """Raise InstallError for anything but a free name, an empty folder, and what was made here."""
    is_folder = folder.is_dir() and not folder.is_symlink()
    empty_or_ours = is_folder and (not os.listdir(folder) or (folder / OWNED).is_file())
    if os.path.lexists(folder) and not empty_or_ours:
        raise InstallError(
            EXIT_INPUT,
            f"{folder} was not made by this installer: it stays unchanged",
            "look at it and move it away, or give another folder",
        )


def remove(folder: Path) -> None:
    """Remove a folder that was made here; its marker last, so that a half is still known."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != OWNED:
            path.unlink()
    shutil.rmtree(folder)


# ---- checks -------------------------------------------------------------------------------------


def check_machine() -> None:
    """Require a 64-bit Arm userland on glibc. Raises InstallError for anything else."""
    bits, machine = struct.calcsize("P") * 8, platform.machine()
    if bits != 64:
        raise InstallError(
            EXIT_ENGINE,
            f"this Python is a {bits}-bit program (on a {machine} kernel): the userland is 32-bit",
            "use the 64-bit image of the system; a 64-bit kernel alone does not run 64-bit engines",
        )
    if machine not in ("aarch64", "arm64"):
        raise InstallError(
            EXIT_ENGINE, f"the bundle is for arm64, this machine is {machine}",
            "build a bundle for this board: edge build MODEL --device BOARD --with-engine",
        )  # fmt: skip
    if glibc() is None:
        raise InstallError(
            EXIT_ENGINE,
            "this system's C library is not glibc (musl or another): the wheels cannot load",
            "use a system with glibc: Debian, Ubuntu, Raspberry Pi OS",
        )


def glibc() -> tuple[int, ...] | None:
    """(2, 36), or None where the C library is another."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError, AttributeError):
        return None
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else None


def check_versions(wanted: dict[str, str]) -> None:
    """Check that this board has the Python and the glibc that the wheels were chosen for."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if wanted.get("python", here) != here:
        raise InstallError(
            EXIT_ENGINE,
            f"the wheels are for Python {wanted['python']}, this board has {here}",
            f"build the bundle with --python {here}",
        )
    least = tuple(int(part) for part in wanted.get("glibc", "2.17").split("."))
    if (found := glibc() or ()) < least:
        raise InstallError(
            EXIT_ENGINE,
            f"the wheels need glibc {wanted.get('glibc')}, this board has "
            f"{'.'.join(map(str, found))}",
            "build the bundle for this board, or use a newer image (Debian 12, Ubuntu 22.04)",
        )


def check_place(parent: Path, wheels: list[Path]) -> None:
    """Room for what is unpacked, on a file system from which code may be loaded."""
    parent.mkdir(parents=True, exist_ok=True)
    if os.statvfs(parent).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise InstallError(
            EXIT_ENGINE,
            f"{parent} is on a file system mounted noexec: no library can be loaded from there",
            "flash to another path, or remount it: mount -o remount,exec …",
        )
    needed = KEEP_FREE
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            needed += sum(entry.file_size for entry in archive.infolist())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise InstallError(
            EXIT_SPACE,
            f"{parent} has {free >> 20} MiB free, installing needs {needed >> 20} MiB",
            "make room, or flash to another path",
        )


def read_sums(path: Path) -> dict[str, str]:
    """SHA256SUMS as name → digest; only plain relative names."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InstallError(EXIT_INTEGRITY, str(error), "copy the bundle again") from None
    sums = {}
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9._/-]*)", line)
        if not match or ".." in match[2]:
            raise InstallError(EXIT_INTEGRITY, f"bad line in {path}", "copy the bundle again")
        sums[match[2]] = match[1]
    return sums


def check_digests(bundle: Path, sums: dict[str, str]) -> None:
    for name, expected in sums.items():
        digest = hashlib.sha256()
        try:
            with (bundle / name).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise InstallError(EXIT_INTEGRITY, str(error), "copy the bundle again") from None
        if digest.hexdigest() != expected:
            raise InstallError(
                EXIT_INTEGRITY, f"{name} is damaged: its sha256 is not the one in SHA256SUMS",
                "copy the bundle again",
            )  # fmt: skip


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


# ---- work ---------------------------------------------------------------------------------------


def unpack(wheel: Path, site: Path) -> None:
    """Unpack one wheel. Its `.data/purelib` and `platlib` belong into `site`, the rest of `.data`
    (scripts, headers) is not for us. No path may leave `site`.
    """
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            parts = Path(entry.filename).parts
            if parts and parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            if not parts or entry.is_dir():
                continue
            if ".." in parts or Path(*parts).is_absolute():
                raise InstallError(
                    EXIT_INTEGRITY, f"{wheel.name} holds the path {entry.filename!r}",
                    "do not use this bundle",
                )  # fmt: skip
            target = site.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)


def write(path: Path, text: str, mode: int) -> None:
    path.write_text(text)
    path.chmod(mode)


def try_engine(site: Path, bundle: Path) -> None:
    """Prove the engine in a process of its own. It imports what the first answer imports. So a
    missing library, or a kernel that this core cannot run, is found now. Python's bytecode and the
    proof's stamp get written where they may be.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = EXIT_ENGINE
        try:
            sys.path.insert(0, str(site))
            sys.dont_write_bytecode = False
            load_engine(bundle, read_json(bundle / "manifest.json"))
            code = 0
        except BaseException as error:
            print(f"error: the engine does not load on this board: {error}", file=sys.stderr)
            if step := getattr(error, "next_step", None):
                print(f"  ({step})", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        why = "it was built for a newer core" if name == "SIGILL" else "it crashed"
        raise InstallError(
            EXIT_ENGINE, f"loading the engine ended with {name}: {why}",
            "build the bundle again with the engine variant `all`",
        )  # fmt: skip
    if os.WEXITSTATUS(status):  # the child has printed why
        print(
            "  next: edge rehearse BUNDLE --device BOARD on the host shows the same without the "
            "board", file=sys.stderr,
        )  # fmt: skip
        raise SystemExit(EXIT_ENGINE)


def load_engine(bundle: Path, manifest: Any) -> None:
    """Import the engine of the bundle's model. Raises what `edge` would, with its next step."""
    import importlib
    from importlib.util import find_spec

    importlib.import_module("boardfit.edge.cli")
    importlib.import_module("boardfit.edge.chat.run_command")
    engines = importlib.import_module("boardfit.edge.engines")
    name = manifest["plan"]["engine"]
    importlib.import_module(engines.ENGINES[name].target.split(":")[0])
    if name == "llama_cpp":
        importlib.import_module("jinja2.sandbox")
        library = importlib.import_module("boardfit.edge.engines.llama.library")
        library.load_library()
        model = next(name for name, f in manifest["files"].items() if f["role"] == "model")
        header = importlib.import_module("boardfit.edge.files.gguf").read_header(bundle / model)
        plan = importlib.import_module("boardfit.edge.types").Plan.from_dict(manifest["plan"])
        library.choose_buffers(header, engines.EngineSettings.from_plan(plan))
        return
    if not engines.is_installed(name):
        raise ImportError(
            f"none of {', '.join(engines.ENGINES[name].packages)} is among the wheels"
        )
    importlib.import_module(next(p for p in engines.ENGINES[name].packages if find_spec(p)))


if __name__ == "__main__":
    try:
        main(Path(os.path.abspath(__file__)).parent.parent, Path(os.path.abspath(sys.argv[1])))
    except InstallError as error:
        print(f"error: {error}\n  next: {error.next_step}", file=sys.stderr)
        sys.exit(error.code)
    except PermissionError as error:
        print(f"error: {error}\n  next: choose a folder you may write to", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_SPACE if error.errno == 28 else EXIT_INPUT)
