"""A bundle's first day on a board, played on the host: install, load, answer, compare, measure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converters.board_engine.build import Reporter
from converters.rehearse.cpu import choose_cpu, known_models
from converters.rehearse.diagnose import diagnose
from converters.rehearse.limits import MemoryLimit, memory_limit
from converters.rehearse.memory import PeakWatcher
from converters.rehearse.prepare import (
    bundle_python,
    check_bundle,
    copy_bundle,
    notes_of,
    weakest_core,
    write_fakes,
)
from converters.rehearse.reference import Reference, compare, host_reference
from converters.rehearse.result import Problem, Rehearsal
from converters.rehearse.root import board_root, choose_system
from converters.rehearse.sandbox import How, Sandbox, find_qemu, open_sandbox, qemu_models
from device_profiles.profile import DeviceProfile
from edge.bundle import Bundle
from edge.units import MIB, format_bytes

PROMPT = "Turn on the light in the kitchen."
#: What qemu itself may use on top of the board's limit: translated code (128 MiB) and its own heap.
EMULATOR_ALLOWANCE = 192 * MIB
INSTALL_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 3600.0
#: Tokens that must agree, near ties included. Not all: rounding differs between kernels.
MIN_AGREEMENT = 0.9


@dataclass(frozen=True)
class Options:
    """How to rehearse. `how` fixes the way to run arm64 programs, `root` a root file system of
    one's own; `free_bytes` replaces what the profile says the board leaves free.
    """

    prompt: str = PROMPT
    n_tokens: int = 16
    how: How | None = None
    root: Path | None = None
    free_bytes: int | None = None
    min_agreement: float = MIN_AGREEMENT


class _Silent:
    def stage(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


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
    options, reporter = options or Options(), reporter or _Silent()
    check_bundle(bundle)
    reporter.stage("preparing the board's system")
    choice = choose_cpu(device, known_models(qemu_models(find_qemu())))
    root = options.root or board_root(
        choose_system(bundle_python(bundle, device)).suite, say=reporter.stage
    )
    free = options.free_bytes or device.free_ram_bytes
    reporter.stage("answering on this machine")
    reference = host_reference(bundle, options.prompt, options.n_tokens, n_threads=1)
    with tempfile.TemporaryDirectory(prefix="edgekit-rehearsal-") as folder:
        work, fakes = Path(folder) / "board", Path(folder) / "fakes"
        release = work / "releases" / bundle.id
        copy_bundle(bundle, release / "bundle", reporter)
        write_fakes(fakes, choice.cpu, device, free)
        sandbox = open_sandbox(root, work, fakes, choice.cpu.name, options.how)
        with memory_limit(free + EMULATOR_ALLOWANCE) as limit:
            found = Rehearsal(
                bundle_id=bundle.id, device=device.id, board_core=weakest_core(device), cpu=choice,
                how=sandbox.how, limit_how=limit.how, limit_bytes=free,
                planned_bytes=bundle.plan.peak_bytes, seconds={}, notes=notes_of(sandbox, limit),
            )  # fmt: skip
            run = Run(sandbox, limit, release, free, reporter, found)
            found = run.install()
            if found.ok:
                found = run.answer(reference, options)
    return judge(found, options) if found.ok else found


def judge(found: Rehearsal, options: Options) -> Rehearsal:
    """Everything ran: were the answers right, and did it stay within the memory?"""
    if found.agreement and found.agreement.share < options.min_agreement:
        message = (
            f"of {found.agreement.n} tokens only {found.agreement.share:.0%} are what this machine "
            f"would say; {options.min_agreement:.0%} is the least"
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


class Run:
    """The stages inside the sandbox; each returns the rehearsal with what it found added."""

    def __init__(
        self,
        sandbox: Sandbox,
        limit: MemoryLimit,
        release: Path,
        free_bytes: int,
        reporter: Reporter,
        found: Rehearsal,
    ) -> None:
        self._sandbox, self._limit, self._release = sandbox, limit, release
        self._free, self._reporter, self._found = free_bytes, reporter, found

    def install(self) -> Rehearsal:
        """Run the bundle's own installer, as a board would."""
        self._reporter.stage("installing as the board would")
        board = self._release / "bundle/board"
        env = self._sandbox.inside(self._release / "env")
        if self._sandbox.can_start_programs:
            argv = ["/bin/sh", self._sandbox.inside(board / "install.sh"), env]
        else:
            argv = ["/usr/bin/python3", "-I", "-B", self._sandbox.inside(board / "install.py"), env]
        self._execute("installing", argv, INSTALL_TIMEOUT_S, lambda line: None)
        return self._found

    def answer(self, reference: Reference, options: Options) -> Rehearsal:
        """Start the installed engine, generate, and take its choice at each token of the host's."""
        self._reporter.stage("answering as the board would")
        home = self._sandbox.work / "home"
        job = {
            "site": self._sandbox.inside(self._release / "env/site"),
            "bundle": self._sandbox.inside(self._release / "bundle"),
            "prompt": options.prompt,
            "n_tokens": options.n_tokens,
            "reference": list(reference.answer),
        }
        (home / "job.json").write_text(json.dumps(job))
        shutil.copyfile(Path(__file__).with_name("guest.py"), home / "guest.py")
        argv = ["/usr/bin/python3", "-s", "-B", self._sandbox.inside(home / "guest.py"),
                self._sandbox.inside(home / "job.json")]  # fmt: skip
        chosen: list[int] = []
        failure: dict[str, Any] = {}

        def listen(line: str) -> None:
            event = read_event(line)
            match event.get("event"):
                case "loaded":
                    features = event.get("details", {}).get("cpu_features") or ()
                    self._add(engine=f"{event.get('engine')} {event.get('version')}",
                              kernels=tuple(map(str, features)))  # fmt: skip
                case "prompt" if tuple(event["ids"]) != reference.prompt:
                    self._fail("wrong-answers", "the board turns the prompt into other tokens")
                case "answer":
                    self._add(text=event["text"])
                case "token":
                    chosen.append(int(event["id"]))
                    self._reporter.progress(len(chosen), len(reference.answer))
                case "failed":
                    failure.update(event)

        self._execute("answering", argv, ANSWER_TIMEOUT_S, listen, failure)
        if self._found.ok:
            self._add(agreement=compare(reference, chosen))
        return self._found

    def _execute(
        self,
        stage: str,
        argv: Sequence[str],
        timeout_s: float,
        listen: Callable[[str], None],
        failure: dict[str, Any] | None = None,
    ) -> None:
        started = time.monotonic()
        command = [*self._limit.wrap, *self._sandbox.command(argv)]
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(
                command, env=self._sandbox.environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace",
                start_new_session=True,
            )  # fmt: skip
            assert process.stdout
            killer = Deadline(process, timeout_s)
            tail: list[str] = []
            with killer, PeakWatcher(process.pid) as watcher:
                for line in process.stdout:
                    tail = [*tail[-20:], line]
                    listen(line)
                code = process.wait()
            errors.seek(0)
            output = "".join(tail) + errors.read()[-8000:]
        seconds = {**self._found.seconds, stage: time.monotonic() - started}
        self._add(seconds=seconds, memory=watcher.peak if watcher.peak.guest else None)
        if killer.expired:
            self._fail("timeout", f"not finished after {timeout_s:.0f} s of emulation", stage)
        elif code:
            if failure:  # our own error, with its own next step
                output = f"error: {failure['message']}"
                code = int(failure["exit_code"])
            self._add(
                problem=diagnose(
                    stage, code, output, oom_kills=self._limit.oom_kills(),
                    limit_bytes=self._free, cpu=self._found.cpu.cpu.name,
                )
            )  # fmt: skip

    def _add(self, **fields: Any) -> None:
        self._found = replace(self._found, **fields)

    def _fail(self, kind: Any, message: str, stage: str = "answering") -> None:
        self._add(problem=Problem(kind, stage, message, "report this as a bug"))


class Deadline:
    """Kills a process group that does not end in time."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self.expired = False
        self._process = process
        self._timer = threading.Timer(seconds, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._process.poll() is None:
            self._kill()
            self._process.wait()


def read_event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
