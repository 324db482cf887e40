"""An ext4 file system inside an image file, read and changed without root and without mounting.

e2fsprogs do the work: e2fsck and debugfs take `FILE?offset=BYTES`. Traps that this file keeps from
its callers: resize2fs takes it too, but writes a byte at, and cuts the file off at, the new size
*without* the offset, which destroys what lies before and behind (seen with 1.47.0); debugfs reports
errors on stderr only and leaves with 0; its `mkdir` of a folder that exists damages the file
system; its `ln` and `unlink` do not count links; `?` begins an option, in file names too.
"""

import contextlib
import hashlib
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from boardfit.edge.errors import EdgeError, EngineError, InputError
from boardfit.edge.flash.media import partitions
from boardfit.edge.flash.media.partitions import Partition
from boardfit.edge.flash.media.source import chunks, write_changes, write_sparse
from boardfit.edge.process import child
from boardfit.edge.slots.files import BoardEntry, BoardFiles
from boardfit.edge.units import printable

PROGRAMS = ("debugfs", "e2fsck", "resize2fs")
_MAX_LISTING = 16 * 1024 * 1024
_MAX_DEPTH = 20
#: Target names are ours; this keeps them from meaning anything to debugfs.
_PLAIN = re.compile(r"[A-Za-z0-9._/@-]+")
_LISTED = re.compile(rb"/(\d+)/([0-7]{6})/(\d+)/(\d+)/(.*)/(\d*)/")


@dataclass(frozen=True)
class Node:
    """One name in a folder: `mode` with the kind in it, as `stat` has it."""

    inode: int
    mode: int
    uid: int
    gid: int
    n_bytes: int

    @property
    def entry(self) -> BoardEntry:
        return BoardEntry.from_mode(self.mode, self.n_bytes)


@dataclass(frozen=True)
class Superblock:
    """What matters of an ext superblock; sizes in bytes. `n_free_bytes` leaves out what only the
    administrator may use.
    """

    block_bytes: int
    n_bytes: int
    n_free_bytes: int
    n_free_inodes: int


def find_program(name: str) -> str:
    return partitions.find_program(name, "e2fsprogs")


class Volume:
    """An ext file system at `partition` of the image file `path`. Close it when done."""

    def __init__(self, path: Path, partition: Partition) -> None:
        self.path, self.partition = path, partition
        for name in PROGRAMS:
            find_program(name)
        self._folder = tempfile.TemporaryDirectory(prefix="boardfit-image-")
        self.work = Path(self._folder.name)
        # Under a name of our own, because a user's may hold what e2fsprogs take for options.
        (self.work / "image").symlink_to(path.absolute())
        self._spec = f"image?offset={partition.start}"

    def close(self) -> None:
        self._folder.cleanup()

    def superblock(self) -> Superblock:
        """Raises InputError when it makes no sense or describes more than the partition holds."""
        out, complaint = self.ask("show_super_stats -h")
        text = out[:_MAX_LISTING].decode("utf-8", "replace")
        counts = dict(re.findall(r"^([A-Z][a-z ]+): +([0-9]{1,19})$", text, re.MULTILINE))
        names = ("Block size", "Block count", "Reserved block count", "Free blocks", "Free inodes")
        block, blocks, reserved, free, free_inodes = (int(counts.get(name, 0)) for name in names)
        if not 0 < block * blocks <= self.partition.n_bytes:
            why = f"its superblock is damaged: {printable(complaint)}"
            raise InputError(
                f"partition {self.partition.number}: "
                f"{'its ext4 file system is larger than the partition' if blocks else why}",
                next_step="the image is damaged or was cut off: get it again; nothing was changed",
            )
        return Superblock(block, blocks * block, max(0, free - reserved) * block, free_inodes)

    def repair(self) -> None:
        """Replay the journal and set right what needs no question. Raises InputError for more
        damage.
        """
        done = self._run("e2fsck", "-fp", self._spec)
        if done.returncode & ~3:
            raise InputError(
                f"partition {self.partition.number}: its ext4 file system is damaged: "
                f"{_last_line(done)}",
                next_step="e2fsck -f on the board, or get the image again; nothing was changed",
            )

    def check(self) -> None:
        """Raise EngineError unless e2fsck finds nothing at all."""
        done = self._run("e2fsck", "-fn", self._spec)
        if done.returncode:
            raise EngineError(
                f"after the change e2fsck finds faults in partition {self.partition.number}: "
                f"{_last_line(done)}; the image is unchanged",
                next_step="this is a bug of boardfit or of e2fsprogs: please report it",
            )

    def resize(self, partition: Partition) -> None:
        """Fill `partition`, which begins where the old one did. Takes room for a second copy of the
        partition's used blocks beside the image.
        """
        block = self.superblock().block_bytes
        apart = self.path.with_name(f"{self.path.name}-root")
        (self.work / "root").symlink_to(apart.absolute())
        with (
            contextlib.ExitStack() as stack,
            apart.open("w+b") as alone,
            self.path.open("r+b") as image,
        ):
            stack.callback(apart.unlink)
            stack.callback((self.work / "root").unlink)
            alone.truncate(partition.n_bytes)
            for offset, chunk in chunks(image, self.partition.start, self.partition.n_bytes):
                write_sparse(alone, offset, chunk)
            alone.flush()
            size = f"{partition.n_bytes // block * block // 1024}K"
            done = self._run("resize2fs", "root", size)
            if done.returncode:
                raise EngineError(
                    f"resize2fs cannot grow partition {partition.number}: {_last_line(done)}",
                    next_step="a newer e2fsprogs may know this file system's features",
                )
            write_changes(alone, image, partition.start, partition.n_bytes)
        self.partition = partition

    def _run(self, program: str, *arguments: str) -> child.CompletedProcess[bytes]:
        return child.run_child(
            [find_program(program), *arguments], cwd=self.work, env=_environment()
        )

    def ask(self, request: str) -> tuple[bytes, str]:
        """One request that changes nothing: (stdout, what it complained of)."""
        done = self._run("debugfs", "-R", request, self._spec)
        return done.stdout, _find_errors(done.stderr)

    def change(self, requests: Sequence[str]) -> None:
        """Requests that change something, in order. Raises EngineError for anything that debugfs
        complains of.
        """
        (self.work / "requests").write_text("\n".join(requests) + "\n")
        done = self._run("debugfs", "-w", "-f", "requests", self._spec)
        if (complaints := _find_errors(done.stderr)) or done.returncode:
            raise EngineError(
                f"debugfs cannot write into partition {self.partition.number}: {complaints}",
                next_step="a newer e2fsprogs may know this file system's features",
            )

    def listing(self, folder: str) -> dict[str, Node] | None:
        """Names in a folder; None when it is missing or no folder (a link is none)."""
        nodes = self._listing(folder)
        return None if nodes is None else {n: e for n, e in nodes.items() if n not in (".", "..")}

    def _listing(self, folder: str) -> dict[str, Node] | None:
        out, complaint = self.ask(f"ls -p {plain(folder)}")
        if "not found" in complaint or "not a directory" in complaint.lower():
            return None
        if complaint:
            raise InputError(
                f"partition {self.partition.number}: its ext4 file system is damaged: "
                + printable(complaint),
                next_step="get the image again; nothing was changed",
            )
        nodes: dict[str, Node] = {}
        for line in out[:_MAX_LISTING].splitlines():
            if (match := _LISTED.fullmatch(line)) and match[1] != b"0":
                nodes[match[5].decode("utf-8", "surrogateescape")] = Node(
                    int(match[1]), int(match[2], 8), int(match[3]), int(match[4]),
                    int(match[6] or 0),
                )  # fmt: skip
        return nodes if "." in nodes else None

    def node(self, path: str) -> Node | None:
        """What one absolute path is, links not followed; None when it is missing."""
        name = PurePosixPath(path)
        if name == PurePosixPath("/"):
            return (self._listing("/") or {}).get(".")
        return (self.listing(str(name.parent)) or {}).get(name.name)

    def read(self, path: str, limit: int) -> bytes | None:
        """A small regular file; None when it is missing, something else, or larger than `limit`."""
        node = self.node(path)
        if node is None or not stat.S_ISREG(node.mode) or node.n_bytes > limit:
            return None
        return self.ask(f"cat {plain(path)}")[0]

    def link_target(self, path: str) -> str | None:
        """Where a symbolic link leads; None when it is none."""
        node = self.node(path)
        if node is None or not stat.S_ISLNK(node.mode):
            return None
        out, _ = self.ask(f"stat {plain(path)}")
        if fast := re.search(rb'Fast link dest: "([^"]*)"', out):
            return fast[1].decode("utf-8", "replace")
        return self.ask(f"cat {plain(path)}")[0].rstrip(b"\0").decode("utf-8", "replace")

    def sha256(self, path: str) -> str | None:
        """Of a regular file, read through the file system's own block lists; None if it is none."""
        node = self.node(path)
        if node is None or not stat.S_ISREG(node.mode):
            return None
        digest, n_read = hashlib.sha256(), 0
        with child.start_child(
            [find_program("debugfs"), "-R", f"cat {plain(path)}", self._spec], cwd=self.work,
            env=_environment(),
        ) as process:  # fmt: skip
            assert process.stdout is not None and process.stderr is not None
            while chunk := process.stdout.read(1 << 20):
                digest.update(chunk)
                n_read += len(chunk)
            complaints = _find_errors(process.stderr.read())
        return None if complaints or n_read != node.n_bytes else digest.hexdigest()


def plain(path: str) -> str:
    """The path, if it means nothing but itself to debugfs. Raises ValueError otherwise."""
    if not _PLAIN.fullmatch(path) or ".." in path.split("/"):
        raise ValueError(f"not a plain path: {path!r}")
    return path


def _environment() -> dict[str, str]:
    # Their messages are read, so they must not be translated; no pager, no questions.
    return child.child_environment(LC_ALL="C", DEBUGFS_PAGER="__none__")


def _find_errors(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").splitlines()
    return "; ".join(s for line in lines if (s := line.strip()) and not s.startswith("debugfs 1."))


def _last_line(done: child.CompletedProcess[bytes]) -> str:
    text = (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")
    lines = [
        line for line in text.splitlines() if line.strip() and not re.match(r"\w+2\w+ 1\.", line)
    ]
    return printable(lines[-1]) if lines else f"exit code {done.returncode}"


class Ext4Files(BoardFiles):
    """The files below the folder `folder` of a volume, for reading."""

    def __init__(self, volume: Volume, folder: str, place: str) -> None:
        self._volume, self._folder, self._place = volume, folder, place
        self.root = f"{place}:{folder}"

    def _join(self, path: str) -> str:
        return f"{self._folder}/{path}".rstrip("/")

    def entries(self, folder: str) -> dict[str, BoardEntry]:
        nodes = self._volume.listing(self._join(folder)) or {}
        return {name: node.entry for name, node in nodes.items()}

    def nodes(self, folder: str, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Node]]:
        for name, node in (self._volume.listing(self._join(folder)) or {}).items():
            yield prefix + name, node
            if stat.S_ISDIR(node.mode) and depth < _MAX_DEPTH and _PLAIN.fullmatch(name):
                yield from self.nodes(f"{folder}/{name}", f"{prefix}{name}/", depth + 1)

    def tree(self, folder: str) -> dict[str, BoardEntry]:
        return {name: node.entry for name, node in self.nodes(folder)}

    def read(self, path: str, limit: int) -> bytes | None:
        return self._volume.read(self._join(path), limit)

    def digests(self, paths: Sequence[str]) -> dict[str, str | None]:
        return {path: self._volume.sha256(self._join(path)) for path in paths}

    def free_bytes(self) -> int:
        return self._volume.superblock().n_free_bytes

    def used_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        return {path: sum(node.n_bytes for _, node in self.nodes(path)) for path in paths}

    def link_target(self, path: str) -> str | None:
        return self._volume.link_target(self._join(path))

    def read_only_error(self) -> EdgeError:
        return InputError(
            f"{self._place}: releases in an image are read-only here",
            next_step="edge flash BUNDLE image:… puts another one in; on the running board "
            "edge rollback and edge slots remove do the rest",
        )
