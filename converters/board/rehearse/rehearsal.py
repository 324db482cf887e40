"""Rehearse a bundle's first day on a board: install, load, answer, compare, measure."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from boardfit.converters.board.rehearse.cpu import CpuChoice, choose_cpu, known_models
from boardfit.converters.board.rehearse.limits import EnforcedLimit, memory_limit
from boardfit.converters.board.rehearse.options import Options
from boardfit.converters.board.rehearse.prepare import (
    bundle_python,
    check_bundle,
    copy_bundle,
    list_notes,
    tool_variant,
    weakest_core,
    work_parent,
    write_fakes,
)
from boardfit.converters.board.rehearse.reference import HostReference, host_reference
from boardfit.converters.board.rehearse.result import Problem, Rehearsal
from boardfit.converters.board.rehearse.root import board_root, choose_system
from boardfit.converters.board.rehearse.run import RehearsalRun
from boardfit.converters.board.rehearse.sandbox import (
    BoardSandbox,
    find_qemu,
    open_sandbox,
    qemu_models,
    tool_sandbox,
)
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import Bundle
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
    check_bundle(bundle)
    reporter.stage("preparing the board's system")
    choice = choose_cpu(device, known_models(qemu_models(find_qemu())))
    variant = tool_variant(bundle, choice.cpu)
    root = None
    if variant is None:
        system = choose_system(bundle_python(bundle, device)) if options.root is None else None
        root = board_root(system.suite, say=reporter.stage) if system else options.root
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
            found = begin(bundle, device, choice, sandbox, limit, free)
            run = RehearsalRun(sandbox, limit, release, free, bundle.files, reporter, found)
            found = play(run, variant, reference, options)
    return judge(found, options) if found.ok else found


def play(
    run: RehearsalRun, variant: str | None, reference: HostReference, options: Options
) -> Rehearsal:
    """Install and answer; with static tools there is nothing to install."""
    if variant:
        return run.run_tool(variant, reference, options)
    found = run.install()
    return run.answer(reference, options) if found.ok else found


def begin(
    bundle: Bundle,
    device: DeviceProfile,
    choice: CpuChoice,
    sandbox: BoardSandbox,
    limit: EnforcedLimit,
    free_bytes: int,
) -> Rehearsal:
    """The result before anything has run."""
    return Rehearsal(
        bundle_id=bundle.id,
        device=device.id,
        board_core=weakest_core(device),
        cpu=choice,
        how=sandbox.how,
        limit_how=limit.how,
        limit_bytes=free_bytes,
        planned_bytes=bundle.plan.peak_bytes,
        seconds={},
        notes=list_notes(sandbox, limit),
    )


def judge(found: Rehearsal, options: Options) -> Rehearsal:
    """Everything ran: were the answers right, and did it stay within the memory?"""
    if found.agreement and found.agreement.share < options.min_agreement:
        message = (
            f"of {found.agreement.n} tokens only {found.agreement.share:.0%} are what this machine "
            f"would choose; {options.min_agreement:.0%} is the least"
        )
        return replace(
            found, problem=Problem("wrong-answers", "answering", message, "report this as a bug")
        )
    # The enforced limit has to leave room for the emulator; this is the board's own share of it.
    if found.memory and found.memory.guest_anonymous > found.limit_bytes:
        message = (
            f"it used {format_bytes(found.memory.guest_anonymous)} of anonymous memory, the board "
            f"leaves {format_bytes(found.limit_bytes)} free"
        )
        step = "plan with less memory: a shorter --ctx, or a smaller recipe"
        return replace(found, problem=Problem("out-of-memory", "answering", message, step))
    return found
