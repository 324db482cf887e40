"""Rehearse a bundle's first day on a board: install, load, answer, compare, measure.

The board is compared token by token, not text by text. Kernels of different cores round
differently, so a near tie may fall either way, and the texts part from there. Therefore the board
is shown the host's own tokens and asked for the next one each time ("teacher forcing"), and a token
that the host thought almost as good counts as the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boardfit.converters.board.engine.build import TOOL_PAIR
from boardfit.converters.board.offline.wheelhouse import board_python
from boardfit.converters.board.rehearse import result
from boardfit.converters.board.rehearse.cpu import choose_cpu, known_models, write_fakes
from boardfit.converters.board.rehearse.limits import EnforcedLimit, PeakWatcher, memory_limit
from boardfit.converters.board.rehearse.result import LESS_MEMORY, Options, Rehearsal
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
from boardfit.edge.bundle.bundle import Bundle, BundleFile
from boardfit.edge.disk.atomic import link_or_copy
from boardfit.edge.engines import open_engine
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import UsageError
from boardfit.edge.process.child import decode_output, start_child
from boardfit.edge.terminal.progress import Reporter, Say
from boardfit.edge.types import GenerationConfig, LogitsEngine, Message
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


INSTALL_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 3600.0
#: Logits apart: closer than this, two tokens count as equally good (e^0.5 = 1.6 times as likely).
NEAR_TIE = 0.5


@dataclass(frozen=True)
class HostReference:
    """The host's greedy answer, to compare with. It has the token ids of the prompt and of the
    answer. `logits` [n_answer, n_vocab] are the host's before each answer token, None if the engine
    does not give them.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    has_template: bool
    logits: Any | None


def host_reference(bundle: Bundle, text: str, n_tokens: int, n_threads: int) -> HostReference:
    """Answer `text` on this machine. Raises EngineMissingError without the bundle's engine."""
    settings = replace(EngineSettings.from_plan(bundle.plan), n_threads=n_threads)
    engine = open_engine(bundle.plan.engine, bundle.model, settings)
    try:
        prompt = (
            engine.render([Message("user", text)]) if engine.has_template else engine.prompt(text)
        )
        config = GenerationConfig(max_tokens=n_tokens, ignore_eos=True)
        events = list(engine.stream(prompt, config))
        answer = tuple(event.token_id for event in events if event.token_id is not None)
        logits = None
        if isinstance(engine, LogitsEngine):
            logits = engine.logits([*prompt, *answer])[len(prompt) - 1 : -1]
        shown = "".join(event.text for event in events)
        return HostReference(tuple(prompt), answer, shown, engine.has_template, logits)
    finally:
        engine.close()


def compare(reference: HostReference, chosen: Sequence[int]) -> result.TokenAgreement:
    """How far the board's choices are the host's; tokens that it never reached are not."""
    equal = near = 0
    for i, (expected, got) in enumerate(zip(reference.answer, chosen, strict=False)):
        if got == expected:
            equal += 1
        elif reference.logits is not None:
            row = reference.logits[i]
            near += bool(0 <= got < len(row) and row[expected] - row[got] <= NEAR_TIE)
    return result.TokenAgreement(len(reference.answer), equal, near)


class RehearsalRun:
    """The stages inside the sandbox; each adds what it found to the rehearsal."""

    def __init__(
        self,
        sandbox: BoardSandbox,
        limit: EnforcedLimit,
        release: Path,
        files: Sequence[BundleFile],
        reporter: Reporter,
        found: result.Rehearsal,
    ) -> None:
        self._sandbox, self._limit, self._release = sandbox, limit, release
        self._files, self._reporter, self._found = files, reporter, found

    def install(self) -> None:
        """Run the bundle's own installer, as a board would."""
        self._reporter.stage("installing as the board would")
        board = self._release / "bundle/board"
        env = self._sandbox.inside(self._release / "env")
        if self._sandbox.can_start_programs:
            argv = ["/bin/sh", self._sandbox.inside(board / "install.sh"), env]
        else:
            argv = ["/usr/bin/python3", "-I", "-B", self._sandbox.inside(board / "install.py"), env]
        self._execute("installing", argv, INSTALL_TIMEOUT_S, lambda line: None)

    def answer(self, reference: HostReference, options: result.Options) -> None:
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
        argv = ["/usr/bin/python3", "-I", "-B", self._sandbox.inside(home / "guest.py"),
                self._sandbox.inside(home / "job.json")]  # fmt: skip
        chosen: list[int] = []
        failure: dict[str, Any] = {}

        def listen(line: str) -> None:
            event = read_event(line)
            match event.get("event"):
                case "loaded":
                    features = event.get("details", {}).get("cpu_features") or ()
                    self._found.engine = f"{event.get('engine')} {event.get('version')}"
                    self._found.kernels = tuple(map(str, features))
                case "prompt" if event.get("ids") != list(reference.prompt):
                    self._found.fail(
                        "wrong-answers", "the board turns the prompt into other tokens"
                    )
                case "answer":
                    self._found.text = str(event.get("text", ""))
                case "token":
                    token = event.get("id")
                    chosen.append(token if isinstance(token, int) else -1)
                    self._reporter.progress(len(chosen), len(reference.answer))
                case "failed":
                    failure.update(event)

        self._execute("answering", argv, ANSWER_TIMEOUT_S, listen, failure)
        if self._found.ok:
            self._found.agreement = compare(reference, chosen)

    def run_tool(self, variant: str, reference: HostReference, options: result.Options) -> None:
        """Answer with a static program of the bundle: all that a phone gets."""
        self._reporter.stage("answering as the phone would")
        bundle = self._release / "bundle"
        tool = bundle / f"tools/{variant}/llama-completion"
        model = next(file.name for file in self._files if file.role == "model")
        argv = [
            str(tool), "-m", self._sandbox.inside(bundle / model), "-p", options.prompt,
            "-n", str(options.n_tokens), "--temp", "0", "-t", "1", "--no-warmup",
            "--no-display-prompt", "--simple-io",
            *(("-cnv", "-st", "--jinja") if reference.has_template else ("-no-cnv",)),
        ]  # fmt: skip
        pieces: list[str] = []
        self._execute("answering", argv, ANSWER_TIMEOUT_S, pieces.append)
        text = "".join(pieces).replace("[end of text]", "").strip()
        self._found.engine, self._found.text = f"static llama.cpp, {variant}", text
        if self._found.ok and reference.text.strip() and not text:
            message = "the program prints nothing, this machine's engine does"
            self._found.fail("wrong-answers", message)

    def _execute(
        self,
        stage: str,
        argv: Sequence[str],
        timeout_s: float,
        listen: Say,
        failure: dict[str, Any] | None = None,
    ) -> None:
        started = time.monotonic()
        command = [*self._limit.wrap, *self._sandbox.command(argv)]
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = start_child(
                command, env=self._sandbox.environment(), stderr=errors, start_new_session=True
            )
            assert process.stdout
            tail, expired = list[str](), threading.Event()

            def end() -> None:
                expired.set()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

            timer = threading.Timer(timeout_s, end)
            timer.start()
            try:
                with PeakWatcher(process.pid) as watcher:
                    for raw in process.stdout:
                        line = decode_output(raw)
                        tail = [*tail[-20:], line]
                        listen(line)
                    code = process.wait()
            finally:
                timer.cancel()
                if process.poll() is None:
                    end()
                    process.wait()
            errors.seek(0)
            output = "".join(tail) + errors.read()[-8000:]
        found = self._found
        found.seconds[stage] = time.monotonic() - started
        found.memory = watcher.peak if watcher.peak.guest else None
        if expired.is_set():
            found.fail("timeout", f"not finished after {timeout_s:.0f} s of emulation", stage)
        elif code:
            if failure:  # our own error, with its own next step
                output = f"error: {failure['message']}"
                code = int(failure["exit_code"])
            found.problem = result.diagnose(
                stage, code, output, oom_kills=self._limit.oom_kills(),
                limit_bytes=found.limit_bytes, cpu=found.cpu.cpu.name,
            )  # fmt: skip


def read_event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
