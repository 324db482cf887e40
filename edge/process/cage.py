"""The cage of a command that reads what a stranger made: no network, nothing to write, no secrets.

The restrictions are those of the services on boards. Bubblewrap needs no rights; systemd-run
restricts system calls as well. Homes, /run and the temporary folders are hidden; `shown` names what
of them the command needs, read-only. What it writes is gone afterwards.
"""

import os
import pkgutil
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.process.child import decode_output, find_program, run_child
from boardfit.edge.units import find_error_line, printable

#: Restrictions of a unit of systemd, shared by all our services.
SYSTEMD = (pkgutil.get_data(__package__, "sandbox.conf") or b"").decode("ascii")
#: The only folder of the cage that can be written; it is empty and in memory.
SCRATCH = "/tmp"
_HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp")
_TRY_S = 20


@dataclass(frozen=True)
class Caged:
    """A command in a cage, and the command that stops the service that runs it, if there is one."""

    argv: list[str]
    stop: list[str] | None = None


def hidden_folders() -> list[Path]:
    home = Path(os.path.realpath(os.path.expanduser("~")))
    found = [Path(name) for name in _HIDDEN]
    if home.is_absolute() and len(home.parts) > 1 and not any(map(home.is_relative_to, found)):
        found.append(home)
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


def cage_command(
    argv: Sequence[str],
    shown: Sequence[Path],
    cwd: Path,
    env: Mapping[str, str],
    *,
    writable: Path | None = None,
) -> Caged:
    """The command that runs `argv` in a cage, in the folder `cwd`, with `env` alone. Only
    bubblewrap can give a `writable` folder. Raises EngineMissingError where neither of the two
    works.
    """
    shown = sorted({path.absolute() for path in shown})
    problems = []
    if bwrap := find_program("bwrap"):
        probe = run_child([*_bubblewrap(bwrap, [], Path("/")), "true"], timeout_s=_TRY_S)
        if probe.returncode == 0:
            return Caged([*_bubblewrap(bwrap, shown, cwd, writable), *argv])
        why = find_error_line(decode_output(probe.stderr))
        problems.append(f"bwrap fails: {printable(why, 100) or probe.returncode}")
    else:
        problems.append("bwrap is not installed")
    systemd_run = find_program("systemd-run")
    if systemd_run and os.path.isdir("/run/systemd/system") and writable is None:
        return _systemd(systemd_run, argv, shown, cwd, env)
    if writable is None:
        problems.append(
            "systemd does not run here" if systemd_run else "systemd-run is not installed"
        )
    raise EngineMissingError(
        "--sandbox needs bubblewrap or systemd: " + "; ".join(problems),
        next_step="sudo apt-get install -y bubblewrap, or leave --sandbox out in a container",
    )


def _bubblewrap(
    program: str, shown: Sequence[Path], cwd: Path, writable: Path | None = None
) -> list[str]:
    words = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for folder in hidden_folders():
        words += ["--tmpfs", str(folder)]
    if _is_hidden(cwd):
        words += ["--dir", str(cwd)]
    for path in shown:
        if _is_hidden(path):
            words += ["--ro-bind", str(path), str(path)]
    if writable is not None:
        words += ["--bind", str(writable), str(writable)]
    return [*words, "--chdir", str(cwd), "--"]


def _systemd(
    program: str, argv: Sequence[str], shown: Sequence[Path], cwd: Path, env: Mapping[str, str]
) -> Caged:
    scope = [] if os.geteuid() == 0 else ["--user"]
    unit = f"boardfit-sandbox-{os.getpid()}.service"
    lines = [line for line in SYSTEMD.splitlines() if not line.startswith("ProtectHome=")]
    # A user's own manager can restrict only what lies in a namespace of users.
    lines += ["DynamicUser=yes"] if not scope else ["PrivateUsers=yes"]
    hidden = [str(folder) for folder in hidden_folders() if str(folder) not in ("/tmp", "/var/tmp")]
    visible = [path for path in shown if _is_hidden(path)]
    if _is_hidden(cwd) and not any(map(cwd.is_relative_to, visible)):
        hidden.append(str(cwd))
    lines += [f"TemporaryFileSystem={_quote(name)}:ro" for name in hidden]
    lines += [f"BindReadOnlyPaths={_quote(str(path))}" for path in visible]
    words = [program, *scope, f"--unit={unit}", "--pipe", "--wait", "--collect", "--quiet"]
    words += [f"--working-directory={cwd}", *(f"--property={line}" for line in lines)]
    words += [f"--setenv={name}={value}" for name, value in sorted(env.items())]
    systemctl = program.removesuffix("systemd-run") + "systemctl"
    return Caged([*words, "--", *argv], [systemctl, *scope, "stop", unit])


def _is_hidden(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in hidden_folders())


def _quote(path: str) -> str:
    """A path as a list of paths of systemd has it: `:` and white space mean something there."""
    return shlex.quote(path.replace(":", "\\:"))
