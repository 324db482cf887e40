"""Rehearse a bundle's first day on a board: install, load, answer, compare, measure."""

import os
import tempfile
from pathlib import Path

from boardfit.converters.board.engine.build import TOOL_PAIR
from boardfit.converters.board.offline.wheelhouse import board_python
from boardfit.converters.board.rehearse.cpu import choose_cpu, known_models, write_fakes
from boardfit.converters.board.rehearse.limits import EnforcedLimit, memory_limit
from boardfit.converters.board.rehearse.result import LESS_MEMORY, Options, Rehearsal
from boardfit.converters.board.rehearse.run import RehearsalRun, host_reference
from boardfit.converters.board.rehearse.sandbox import (
    BoardSandbox,
    board_root,
    choose_system,
    find_qemu,
    open_sandbox,
    qemu_models,
    tool_sandbox,
)
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.atomic import link_or_copy
from boardfit.edge.errors import UsageError
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import MIB, format_bytes

#: What qemu itself may use on top of the board's limit: translated code (128 MiB) and its own heap.
EMULATOR_ALLOWANCE = 192 * MIB


def rehearse(
    bundle: Bundle,
    device: DeviceProfile,
    options: Options | None = None,
    reporter: Reporter | None = None,
) -> Rehearsal:
    """Install and run `bundle` as `device` would, under its core type and within its free memory.
    What goes wrong with the bundle is in the result's `problem`. Raises UsageError for a bundle
    without an engine in it or a board that is not rehearsed, EngineMissingError when this machine
    cannot emulate (no qemu, no way to make the root, no engine of its own to compare with).
    """
    options, reporter = options or Options(), reporter or Reporter()
    roles = {file.role for file in bundle.files}
    if not roles & {"launcher", "tool"}:
        raise UsageError(
            f"there is no engine in {bundle.path}: nothing to install on a board",
            next_step=f"edge engine add {bundle.path} -o OUT, or edge build … --with-engine",
        )
    reporter.stage("preparing the board's system")
    choice = choose_cpu(device, known_models(qemu_models(find_qemu())))
    # Which static tools of its bundle a phone would choose; a bundle of wheels has none.
    variant = None if "launcher" in roles else TOOL_PAIR["dotprod" in choice.cpu.isa]
    root = find_root(bundle, device, options, reporter) if variant is None else None
    reporter.stage("answering on this machine")
    reference = host_reference(bundle, options.prompt, options.n_tokens, n_threads=1)
    free = options.free_bytes or device.free_ram_bytes
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=work_parent(bundle)) as folder:
        work, fakes = Path(folder) / "board", Path(folder) / "fakes"
        release = work / "releases" / bundle.id
        copy_bundle(bundle, release / "bundle")
        write_fakes(fakes, choice.cpu, device, free)
        sandbox = (
            open_sandbox(root, work, fakes, choice.cpu.name, options.how)
            if root
            else tool_sandbox(work, fakes, choice.cpu.name)
        )
        with memory_limit(free + EMULATOR_ALLOWANCE) as limit:
            found = Rehearsal(
                bundle_id=bundle.id,
                device=device.id,
                board_core=min(device.clusters, key=lambda cluster: len(cluster.isa)).core,
                cpu=choice,
                how=sandbox.how,
                limit_how=limit.how,
                limit_bytes=free,
                planned_bytes=bundle.plan.peak_bytes,
                notes=list_notes(sandbox, limit),
            )
            run = RehearsalRun(sandbox, limit, release, bundle.files, reporter, found)
            if variant:
                run.run_tool(variant, reference, options)
            else:
                run.install()
                if found.ok:
                    run.answer(reference, options)
    if found.ok:
        judge(found, options)
    return found


def find_root(bundle: Bundle, device: DeviceProfile, options: Options, reporter: Reporter) -> Path:
    """The user's own root, or Debian's with the Python that the bundle's wheels are for."""
    if options.root is not None:
        return options.root
    entry = bundle.manifest.get("board")
    python = entry.get("python") if isinstance(entry, dict) else None
    system = choose_system(board_python(device, python if isinstance(python, str) else None))
    return board_root(system, say=reporter.stage)


def work_parent(bundle: Bundle) -> Path | None:
    """A work folder beside the bundle, so that a big model is linked and not copied; None where
    none can be made there: no right to write, a card mounted noexec, a colon in the path (proot).
    """
    parent = bundle.path.absolute().parent
    noexec = os.statvfs(parent).f_flag & getattr(os, "ST_NOEXEC", 0)
    fits = os.access(parent, os.W_OK) and not noexec and ":" not in str(parent)
    return parent if fits else None


def copy_bundle(bundle: Bundle, target: Path) -> None:
    """The bundle as the board receives it. Big files are linked where the file system can."""
    for file in bundle.files:
        link_or_copy(bundle.path / file.name, target / file.name)
    for name, text in bundle.texts.items():  # its signature, too: keys may be pinned here
        (target / name).write_bytes(text)
    if hasattr(os, "posix_fadvise"):
        # Pages that this machine has read already are not charged; the board has none yet.
        for file in bundle.files:
            with (target / file.name).open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def list_notes(sandbox: BoardSandbox, limit: EnforcedLimit) -> tuple[str, ...]:
    """What this machine could not do."""
    notes = []
    if sandbox.is_for_tools:
        notes.append("a static program prints its text only: tokens were not compared one by one")
    elif not sandbox.can_start_programs:
        notes.append("install.sh itself was not run, only what it starts: no proot, no binfmt")
    if limit.how == "none":
        notes.append("the memory limit was not enforced (no rights for a cgroup), only compared")
    return tuple(notes)


def judge(found: Rehearsal, options: Options) -> None:
    """Everything ran: were the answers right, and did it stay within the memory?"""
    if found.agreement and found.agreement.share < options.min_agreement:
        found.fail(
            "wrong-answers",
            f"of {found.agreement.n} tokens only {found.agreement.share:.0%} are what this machine "
            f"would choose; {options.min_agreement:.0%} is the least",
        )
    # The enforced limit has to leave room for the emulator; this is the board's own share of it.
    elif found.memory and found.memory.guest_anonymous > found.limit_bytes:
        found.fail(
            "out-of-memory",
            f"it used {format_bytes(found.memory.guest_anonymous)} of anonymous memory, the board "
            f"leaves {format_bytes(found.limit_bytes)} free",
            next_step=LESS_MEMORY,
        )
