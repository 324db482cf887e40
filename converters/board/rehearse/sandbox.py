"""A Debian root for arm64, three ways to run its programs, and the choice of a working one.

binfmt   as root, where the kernel starts qemu for arm64 programs by itself: chroot in a mount
         namespace of its own
proot    as any user: path translation by ptrace, no rights needed
qemu     the emulator named explicitly: no rights, no ptrace, but no child programs either

mmdebstrap unpacks the packages of <cache>/roots/<suite>-arm64-<key>/ without running any of their
scripts, so making a root needs no emulation, takes seconds, and needs the network this once.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boardfit.converters.board.engine.store import building, make_key
from boardfit.converters.board.offline.wheelhouse import BoardPython
from boardfit.edge.disk.atomic import fsync_directory
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.process.child import SubprocessError, decode_output, find_program, run_child
from boardfit.edge.terminal.progress import Say

#: What a minimal board image has; the engine must need nothing else.
PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "findutils", "grep",
    "gzip", "libc-bin", "libstdc++6", "procps", "python3", "sed", "tar", "util-linux",
)  # fmt: skip
_MERGED_USR = Path("/usr/share/mmdebstrap/hooks/merged-usr")
_MADE = ".boardfit-root"
How = Literal["binfmt", "proot", "qemu"]

QEMU_NAMES = ("qemu-aarch64-static", "qemu-aarch64")
BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
#: Where the work folder appears inside the chroot.
GUEST_HOME = "/opt/boardfit"
#: Enters the root: a mount namespace of its own.
_ENTER = Path(__file__).with_name("enter.sh")


@dataclass(frozen=True)
class BoardSandbox:
    """A prepared way in. `root`: the Debian root; `work`: a folder of ours that is visible inside
    and writable; `fakes`: cpuinfo, meminfo and sys of the board; `cpu`: what qemu plays.
    """

    how: How
    qemu: str
    root: Path
    work: Path
    fakes: Path
    cpu: str

    @property
    def is_for_tools(self) -> bool:
        """Whether there is no system inside, only static programs."""
        return not (self.root / "usr").exists()

    @property
    def can_start_programs(self) -> bool:
        """Whether what runs inside may start other programs."""
        return self.how != "qemu"

    def inside(self, path: Path) -> str:
        """How a path below `work` is called inside."""
        if self.how == "binfmt":
            relative = path.relative_to(self.work).as_posix()
            return GUEST_HOME if relative == "." else f"{GUEST_HOME}/{relative}"
        return str(path)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` inside. `argv[0]` is an absolute path in the root."""
        if self.how == "binfmt":
            places = (str(self.root), str(self.work), str(self.fakes))
            # No network either: nothing that an offline board needs may come from one.
            spaces = ["--mount", "--net", "--ipc", "--uts"]
            return ["unshare", *spaces, "/bin/sh", str(_ENTER), *places, *argv]
        if self.how == "proot":
            binds = ["-b", "/dev", "-b", "/proc", "-b", f"{self.fakes / 'cpuinfo'}:/proc/cpuinfo",
                     "-b", f"{self.fakes / 'meminfo'}:/proc/meminfo", "-b",
                     f"{self.fakes / 'sys'}:/sys",
                     # Under its own name: newer system calls (faccessat2) pass by the translation.
                     "-b", f"{self.work}:{self.work}"]  # fmt: skip
            return ["proot", "-q", self.qemu, "-r", str(self.root), *binds, "-w", "/", *argv]
        view = make_view(self.root, self.fakes)
        own = Path(argv[0]).is_relative_to(self.work)
        program = argv[0] if own else str(view / argv[0].lstrip("/"))
        return [self.qemu, "-L", str(view), program, *argv[1:]]

    def environment(self) -> dict[str, str]:
        """The whole environment inside: nothing of the host's reaches the rehearsal."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": self.inside(self.work / "home"),
            "TMPDIR": self.inside(self.work / "tmp"),
            "BOARDFIT_CACHE": self.inside(self.work / "home/cache"),
            "LC_ALL": "C.UTF-8",
            "QEMU_CPU": self.cpu,
            "PROOT_TMP_DIR": str(self.work / "tmp"),
        }


def make_view(root: Path, fakes: Path) -> Path:
    """Make a folder for `qemu -L`, which looks every path up below it first. It has links to the
    root's entries, and the board's own /proc and /sys files.
    """
    view = fakes / "view"
    if not view.is_dir():
        view.mkdir()
        # Not the root's home, mnt and so on: our own files may lie below those names on the host.
        for entry in root.iterdir():
            if entry.name in ("bin", "sbin", "lib", "lib64", "usr", "etc"):
                (view / entry.name).symlink_to(entry)
        (view / "proc").mkdir()
        for name in ("cpuinfo", "meminfo"):
            (view / "proc" / name).symlink_to(fakes / name)
        (view / "sys").symlink_to(fakes / "sys")
    return view


def find_qemu() -> str:
    """The path of qemu-user for arm64. Raises EngineMissingError when there is none."""
    for name in QEMU_NAMES:
        if path := find_program(name):
            return path
    raise EngineMissingError(
        "rehearsing needs qemu-user to play the board's CPU",
        next_step="sudo apt-get install -y qemu-user-static proot mmdebstrap",
    )


def qemu_models(qemu: str) -> str:
    """qemu's own list of CPUs."""
    return decode_output(run_child([qemu, "-cpu", "help"]).stdout)


def has_binfmt() -> bool:
    """Whether the kernel starts arm64 programs through qemu, in a chroot too (flag F)."""
    try:
        lines = BINFMT.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return "enabled" in lines and "F" in flags and hasattr(os, "geteuid") and os.geteuid() == 0


def ways_to_run() -> list[How]:
    """Ways that look possible here, the most faithful first."""
    ways: list[How] = []
    if has_binfmt() and find_program("unshare"):
        ways.append("binfmt")
    if find_program("proot"):
        ways.append("proot")
    ways.append("qemu")
    return ways


def open_sandbox(
    root: Path, work: Path, fakes: Path, cpu: str, how: How | None = None
) -> BoardSandbox:
    """A sandbox in which the root's python3 really starts; `how` fixes the way. Raises
    EngineMissingError, with the message of each way, when none works.
    """
    qemu = find_qemu()
    for name in ("home", "tmp"):
        (work / name).mkdir(exist_ok=True)
    problems = []
    for way in [how] if how else ways_to_run():
        sandbox = BoardSandbox(way, qemu, root, work, fakes, cpu)
        problem = try_sandbox(sandbox)
        if problem is None:
            return sandbox
        problems.append(f"{way}: {problem}")
    raise EngineMissingError(
        f"arm64 programs cannot be run here ({'; '.join(problems)})",
        next_step="sudo apt-get install -y qemu-user-static proot, or rehearse on another machine",
    )


def tool_sandbox(work: Path, fakes: Path, cpu: str) -> BoardSandbox:
    """A sandbox without a system, for static programs: the emulator alone."""
    empty = fakes / "empty"
    for folder in (empty, work / "home", work / "tmp"):
        folder.mkdir(exist_ok=True)
    return BoardSandbox("qemu", find_qemu(), empty, work, fakes, cpu)


def try_sandbox(sandbox: BoardSandbox) -> str | None:
    """None if Python starts inside; otherwise the last line that it, or the way in, printed."""
    script = "import platform; print(platform.machine())"
    try:
        command = sandbox.command(["/usr/bin/python3", "-I", "-c", script])
        done = run_child(command, env=sandbox.environment(), timeout_s=120)
    except (OSError, SubprocessError) as error:
        return str(error)
    if decode_output(done.stdout).strip() == "aarch64":
        return None
    return (decode_output(done.stderr).strip().splitlines() or [f"exit code {done.returncode}"])[-1]


#: Debian releases by the Python that they have.
SYSTEMS = {(3, 11): "bookworm", (3, 13): "trixie"}


def choose_system(board: BoardPython) -> str:
    """The release with the board's Python. Raises UsageError where none has it (Ubuntu, Jetson)."""
    if board.python in SYSTEMS:
        return SYSTEMS[board.python]
    known = ", ".join(f"{suite} with Python {a}.{b}" for (a, b), suite in SYSTEMS.items())
    raise UsageError(
        f"no Debian release has Python {board.python[0]}.{board.python[1]}, as the board does "
        f"(known: {known})",
        next_step="unpack the board's own root file system somewhere and name it: --root DIR",
    )


def board_root(suite: str = "bookworm", *, say: Say = lambda text: None) -> Path:
    """The cached root of a Debian release for arm64, made now if it is not there: 10 s and 130 MB
    with a near mirror (BOARDFIT_DEBIAN_MIRROR). It is shared: read only. Raises EngineMissingError
    when mmdebstrap is missing, or the mirror cannot be reached.
    """
    wanted = sorted(PACKAGES)
    mirror = os.environ.get("BOARDFIT_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    key = make_key([suite, wanted, 1])
    root = cache_directory() / "roots" / f"{suite}-arm64-{key}"
    if (root / _MADE).exists():
        return root
    if not find_program("mmdebstrap"):
        raise EngineMissingError(
            "making the board's system needs mmdebstrap",
            next_step="sudo apt-get install -y mmdebstrap qemu-user-static",
        )
    with building(f"root-{key}", say):
        if (root / _MADE).exists():
            return root
        say(f"unpacking Debian {suite} for arm64 (once)")
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = root.with_name(f".{root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = ["mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract",
                   f"--include={','.join(wanted)}"]  # fmt: skip
        if _MERGED_USR.is_dir():  # releases up to 12 leave the merge of /bin and /usr/bin to us
            command.append(f"--hook-dir={_MERGED_USR}")
        done = run_child([*command, suite, str(partial.absolute()), mirror])
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            output = decode_output(done.stderr)
            lines = [line for line in output.splitlines() if line.startswith("E:")]
            raise EngineMissingError(
                f"could not make the board's system: {'; '.join(lines[-3:]) or output[-300:]}",
                next_step="check the network, or name a Debian mirror in BOARDFIT_DEBIAN_MIRROR",
            )
        finish_root(partial)
        shutil.rmtree(root, ignore_errors=True)
        partial.rename(root)
        fsync_directory(root.parent)
    return root


def finish_root(root: Path) -> None:
    """What package scripts would have done and our runs rely on: users, mount points."""
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for name in ("proc", "sys", "dev", "tmp", "run", "root", "opt", "mnt"):
        (root / name).mkdir(exist_ok=True)
    (root / _MADE).touch()
