"""`image:FILE[#PARTITION]`: put a bundle into a disk image, without root and without mounting.

Everything happens to a working copy beside the result: unpacked, its root partition and file system
made larger where needed, the release written in the layout of `boardfit.edge.slots`, the file
system checked, every file read back. Then one rename. A power cut at any moment leaves what was
there before. All other partitions keep their bytes, which is checked too, and so do the table's
identifiers, by which a kernel finds its root.
"""

import contextlib
import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.rooted import work_beside
from boardfit.edge.errors import DoesNotFitError, InputError, IntegrityError, UsageError
from boardfit.edge.flash.flash import FlashReport
from boardfit.edge.flash.gate import has_engine
from boardfit.edge.flash.media.ext4 import Ext4Files, Volume
from boardfit.edge.flash.media.first_boot import (
    BootFiles,
    FirstUser,
    boot_partition,
    plan_first_user,
    strange_units,
    write_boot_files,
)
from boardfit.edge.flash.media.partitions import SECTOR, Partition, PartitionTable, grow, read_table
from boardfit.edge.flash.media.release import ROOT, ReleaseWriter
from boardfit.edge.flash.media.root import open_root
from boardfit.edge.flash.media.source import (
    chunks,
    detect_packing,
    locked_image,
    materialize,
    refuse_in_use,
    require_room,
)
from boardfit.edge.flash.service_units import INSTALL_SCRIPT
from boardfit.edge.flash.trust import SignaturePolicy
from boardfit.edge.slots import layout
from boardfit.edge.slots.faults import fault_point
from boardfit.edge.slots.files import explain_errors
from boardfit.edge.slots.health import Health
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import MIB, format_bytes, printable

#: The working copy, in the folder `OUT.partial/`.
_WORKING = "image"
_SUFFIXES = (".xz", ".gz", ".zst", ".img")


@dataclass(frozen=True)
class ImageTarget:
    """An image and, if named, which of its partitions is the root."""

    path: Path
    partition: int | None = None


@dataclass(frozen=True)
class ImageOptions:
    """`output` None: beside the image. `owner` None: the image's user 1000, else root. `health` is
    what this machine's engine gave, kept with the release.
    """

    output: Path | None = None
    in_place: bool = False
    overwrite: bool = False
    owner: tuple[int, int] | None = None
    first_boot: bool = False
    boot: BootFiles = field(default_factory=BootFiles)
    health: Health | None = None
    signature: SignaturePolicy = field(default_factory=SignaturePolicy)


def flash_image(
    bundle: Bundle, target: ImageTarget, options: ImageOptions, reporter: Reporter
) -> FlashReport:
    """Put an opened and verified bundle into an image and make it current there.

    Raises InputError for what is no image of a system with an ext4 root, DoesNotFitError when this
    disk or the image's table has too little room, UsageError when the image is in use or the result
    exists. Then nothing has changed.
    """
    started_s = time.monotonic()
    output = check_target(target.path, options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explain_errors(str(output.absolute().parent)))
        stack.enter_context(locked_image(target.path, writing=options.in_place))
        refuse_in_use(output)
        folder = stack.enter_context(work_beside(output, "flash"))
        work = stack.enter_context(folder.root.create(_WORKING))
        _take_mode(work, target.path.stat())
        beside = folder.path / _WORKING
        reporter.stage(
            f"{'copying' if detect_packing(target.path) is None else 'unpacking'} the image"
        )
        materialize(target.path, work, beside.parent, reporter.progress)
        work.flush()
        fault_point()
        report = _change(work, beside, bundle, target, options, reporter)
        fault_point()
        folder.publish(_WORKING, replace_file=True)
        fault_point()
    number = report.target.rpartition("#")[2]
    report.target = f"image:{output}#{number}"
    report.total_s = time.monotonic() - started_s
    return report


def check_target(path: Path, options: ImageOptions) -> Path:
    """Where the result goes. Raises InputError when there is no image, UsageError when options
    contradict each other or the result exists.
    """
    if not path.is_file():
        hint = "; after # goes a partition's number" if "#" in path.name else ""
        raise InputError(
            f"{path} is no file{hint}" if path.exists() else f"there is no image {path}{hint}",
            next_step="image:FILE[#PARTITION]; a card in a reader is card:/dev/sdX",
        )
    packing = detect_packing(path)
    if options.in_place:
        if options.output is not None:
            raise UsageError("--in-place and --output exclude each other")
        if packing is not None:
            raise UsageError(
                f"{path} is packed ({packing}); it cannot be changed in place",
                next_step="leave --in-place out: the result is written beside it, unpacked",
            )
        return path
    output = options.output or default_output(path)
    if output.resolve() == path.resolve():
        raise UsageError(f"the result would replace {path}", next_step="use --in-place for that")
    if not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder {output.absolute().parent}")
    if os.path.lexists(output) and (not options.overwrite or not output.is_file()):
        raise UsageError(
            f"{output} exists already",
            next_step="--overwrite replaces it; --output FILE writes elsewhere; "
            f"`edge flash BUNDLE image:{output} --in-place` puts the bundle into it",
        )
    return output


def default_output(path: Path) -> Path:
    """`raspios.img.xz` → `raspios-boardfit.img`, in the same folder."""
    stem = path.name
    while Path(stem).suffix.lower() in _SUFFIXES and Path(stem).stem:
        stem = Path(stem).stem
    return path.with_name(f"{stem}-boardfit.img")


def _take_mode(file: BinaryIO, like: os.stat_result) -> None:
    if like.st_uid == os.geteuid():
        os.fchmod(file.fileno(), like.st_mode & 0o777)


def _change(
    work: BinaryIO, path: Path, bundle: Bundle, target: ImageTarget, options: ImageOptions,
    reporter: Reporter,
) -> FlashReport:  # fmt: skip
    """Everything between unpacking and the rename, on the working file."""
    try:
        table, partition = open_root(path, target.partition)
    except InputError as error:
        shown = str(error).replace(str(path), str(target.path))
        raise InputError(shown, next_step=error.next_step) from None
    boot = boot_partition(path, table) if options.boot else None
    first_user: FirstUser | None = None
    before = other_bytes(work, table, partition, boot)
    place = f"image:{target.path}#{partition.number}"
    report = FlashReport(place, bundle.id, bundle.name, n_bytes=bundle.n_bytes)
    report.health = options.health
    with contextlib.closing(Volume(path, partition)) as volume:
        reporter.stage("checking its file system")
        volume.repair()
        if options.boot:
            first_user = plan_first_user(volume, boot, options.boot, place)
        writer = ReleaseWriter(volume, bundle, options.owner, place)
        writer.plan(options.first_boot, options.signature)
        report.previous = writer.current
        table = make_room(work, table, volume, writer.needed_bytes(), writer.n_inodes, reporter)
        fault_point()
        reporter.stage(f"writing {format_bytes(writer.n_new_bytes)}")
        began_s = time.monotonic()
        health = {"health": options.health.to_dict()} if options.health is not None else {}
        writer.write(health)
        fault_point()
        if boot is not None and first_user is not None:
            write_boot_files(volume.work, boot, first_user.contents)
        report.send_s = time.monotonic() - began_s
        report.n_sent = writer.n_new_bytes
        report.n_reused = bundle.n_bytes - min(bundle.n_bytes, writer.n_new_bytes)
        report.signed_by = writer.admission.signed_by
        report.pinned = [key.fingerprint for key in writer.admission.to_pin]
        report.notes += writer.admission.notes
        report.how, report.switched = writer.how, writer.current != bundle.id
        verify(work, volume, writer, bundle, reporter)
        report.notes += _notes(bundle, options, writer)
    after = read_table(path)
    if after != table or other_bytes(work, after, volume.partition, boot) != before:
        raise IntegrityError(
            "bytes outside the root partition have changed; the image is unchanged",
            next_step="this is a bug of boardfit: please report it",
        )
    if first_user is not None:
        names = " and ".join(first_user.contents)
        report.notes.append(f"at its first start {first_user.reader} reads {names}")
    return report


def verify(
    work: BinaryIO, volume: Volume, writer: ReleaseWriter, bundle: Bundle, reporter: Reporter
) -> None:
    """Check the written image, as read from the medium: the file system has no fault, every byte of
    the release is as built, owners, modes and `current` are as they should be.
    """
    reporter.stage("reading everything back")
    work.flush()
    os.fsync(work.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(work.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    volume.check()
    files = Ext4Files(volume, ROOT, writer.place)
    slots = Slots(files)
    slots.verify(bundle.id)
    if slots.current() != bundle.id:
        raise IntegrityError(f"{writer.place}: `current` does not name the new release")
    for name, node in files.nodes(layout.release_folder(bundle.id)):
        mode = 0o755 if stat.S_ISDIR(node.mode) else writer.choose_mode(name)
        if (node.uid, node.gid) != writer.owner or stat.S_IMODE(node.mode) != mode:
            raise IntegrityError(f"{writer.place}: {name} has another owner or mode than was set")


def other_bytes(
    file: BinaryIO, table: PartitionTable, root: Partition, boot: Partition | None
) -> dict[str, str]:
    """Hash what must not change: the boot code with the disk's identifier, the gap before the first
    partition, and every partition but the root (and `boot`, which is written to on request).
    """
    first = min(p.start for p in table.partitions)
    loader = SECTOR if table.label == "dos" else 34 * SECTOR
    regions = {"boot code": (0, 446), "loader": (loader, max(loader, first))}
    for partition in table.partitions:
        if partition.number != root.number and (boot is None or partition.number != boot.number):
            regions[f"partition {partition.number}"] = (partition.start, partition.end)
    found = {}
    for name, (start, end) in regions.items():
        digest = hashlib.sha256()
        for _, chunk in chunks(file, start, end - start):
            digest.update(chunk)
        found[name] = digest.hexdigest()
    return found


def _notes(bundle: Bundle, options: ImageOptions, writer: ReleaseWriter) -> list[str]:
    notes = [f"e2fsck finds no fault; every file was read back; owner {writer.owner_text}"]
    if writer.n_grown:
        notes.append(f"the root partition was made {format_bytes(writer.n_grown)} larger")
    if writer.unit_paths:
        notes.append(f"services made and enabled: {', '.join(writer.unit_paths)}")
    if strange := strange_units(bundle):
        names = printable(", ".join(strange), 300)
        notes.append(f"units in the bundle were not installed: {names}")
    if has_engine(bundle) and not options.first_boot:
        notes.append(
            f"on the board: sh {ROOT}/current/bundle/{INSTALL_SCRIPT} {ROOT}/current/env "
            "(or flash with --first-boot)"
        )
    return notes


ALIGNMENT = 4 * MIB
#: Of what a file system is made larger by, this much goes to its own tables and to what only the
#: administrator may use (5 %, and inode tables of 1.6 % with the usual settings).
_OVERHEAD = 1.08
_ROUNDS = 4


def make_room(
    work: BinaryIO, table: PartitionTable, volume: Volume, needed: int, n_inodes: int,
    reporter: Reporter,
) -> PartitionTable:  # fmt: skip
    """Make the file system large enough for `needed` bytes and `n_inodes` files; the table then.
    Raises DoesNotFitError when the table or this disk has no room for that.
    """
    number = volume.partition.number
    require_room(volume.path.parent, needed)  # the image's own free space is mostly holes
    for _ in range(_ROUNDS):
        block = volume.superblock()
        short = needed - block.n_free_bytes
        if short <= 0 and block.n_free_inodes >= n_inodes:
            return table
        if short <= 0:  # a few more block groups bring more inodes
            short = block.n_bytes // 8
        wanted = block.n_bytes + int(short * _OVERHEAD)
        end = -(-(volume.partition.start + wanted) // ALIGNMENT) * ALIGNMENT
        n_bytes = max(end - volume.partition.start, volume.partition.n_bytes)
        reporter.stage(f"growing partition {number} to {format_bytes(n_bytes)}")
        if n_bytes > volume.partition.n_bytes:
            table = _grow(work, volume.path, table, number, n_bytes)
        volume.resize(table.partition(number))
    raise DoesNotFitError(
        f"partition {number} has {format_bytes(volume.superblock().n_free_bytes)} free after it "
        f"was made larger; {format_bytes(needed)} are needed",
        next_step="resize2fs and the file system's own settings may show why",
    )


def _grow(
    work: BinaryIO, path: Path, table: PartitionTable, number: int, n_bytes: int
) -> PartitionTable:
    # Resizing works on a second copy of the partition's blocks.
    require_room(path.parent, os.fstat(work.fileno()).st_blocks * 512)
    after = grow(path, table, number, n_bytes)
    os.fsync(work.fileno())
    return after
