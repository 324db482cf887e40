"""Boards played by qemu-user: a Debian arm64 system with a board's core, behind a real sshd and a
real adb of this machine.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.board.rehearse.cpu import choose_cpu, known_models, write_fakes
from boardfit.converters.board.rehearse.sandbox import (
    board_root,
    find_qemu,
    open_sandbox,
    qemu_models,
)
from boardfit.device_profiles.catalog import find_profile
from tests.edge.flash.boards import AdbBoard, SshBoard


@dataclass(frozen=True)
class EmulatedBoard:
    """`runner` are the words before a command that make it run inside; `home` is a folder that both
    sides see under one name; `core` is what qemu plays.
    """

    device: str
    core: str
    runner: list[str]
    home: Path


def emulate(device: str, work: Path) -> EmulatedBoard:
    """A board's system, made ready below the folder `work`."""
    profile = find_profile(device)
    root = board_root()
    cpu = choose_cpu(profile, known_models(qemu_models(find_qemu()))).cpu
    work.mkdir(parents=True)
    write_fakes(work / "fakes", cpu, profile, profile.free_ram_bytes)
    # proot: needs no rights, and nothing else on this machine can take its way away.
    sandbox = open_sandbox(root, work, work / "fakes", cpu.name, "proot")
    words = [f"{k}={v}" for k, v in sandbox.environment().items()]
    # One core: threads that spin wait long for each other where other tests run.
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    runner = [*one_core, "env", "-i", *words, *sandbox.command([])]
    return EmulatedBoard(device, cpu.name, runner, work)


def behind_adb(board: EmulatedBoard, folder: Path) -> AdbBoard:
    return AdbBoard(folder, board.home / "adb böard", runner=board.runner)


def behind_ssh(board: EmulatedBoard, folder: Path) -> SshBoard:
    folder.mkdir(parents=True, exist_ok=True)
    login = folder / "login"
    login.write_text(
        f'#!/bin/sh\nexec {shlex.join(board.runner)} /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    login.chmod(0o755)
    return SshBoard(folder / "ssh", board.home / "ssh böard", cable=False, login=login)
