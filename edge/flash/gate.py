"""Run the health gate with the engine that the release will use: its own environment, else the
board's own `edge`. For a mounted card it is this machine's engine, which cannot measure the board.
"""

import importlib.util
import re
import shlex
import zipfile
from dataclasses import dataclass, field, replace

from boardfit.edge.bench.store import DIGEST, digest_of
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import DeviceError, EngineError, InputError
from boardfit.edge.flash.answers import parse_program
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.service_units import INSTALL_SCRIPT
from boardfit.edge.flash.session import Done, shell_error
from boardfit.edge.process.child import python_argv, run_child
from boardfit.edge.process.last_words import name_signal
from boardfit.edge.requirements import install_line
from boardfit.edge.slots import layout
from boardfit.edge.slots.health import KIND, MAX_TOKENS, PROMPT, Health, judge, parse_health
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import find_error_line, format_bytes, printable

_INSTALL_S, _TRY_S = 900, 900
# What zipfile raises for a file that is no zip, or a damaged one.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, ValueError)


@dataclass(frozen=True)
class GateVerdict:
    """`failures` keep the release from being used; `notes` list what could not be checked."""

    health: Health | None = None
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next_step: str = "edge rehearse BUNDLE --device BOARD shows the same without the board"


def has_engine(bundle: Bundle) -> bool:
    """Whether the bundle brings its own engine (`edge build --with-engine`)."""
    return any(file.name == INSTALL_SCRIPT for file in bundle.files)


def engine_bytes(bundle: Bundle) -> int:
    """What the bundle's wheels take once they are unpacked. Raises InputError for a broken one."""
    total = 0
    for file in bundle.files:
        if file.role == "wheel":
            try:
                with zipfile.ZipFile(bundle.path / file.name) as wheel:
                    total += sum(entry.file_size for entry in wheel.infolist())
            except _ZIP_ERRORS as error:
                raise InputError(
                    f"{bundle.path}: {file.name} is no wheel: {printable(str(error), 100)}",
                    next_step="build the bundle again",
                ) from None
    return total


def install_engine(board: Board, bundle: Bundle, reporter: Reporter) -> None:
    """Make the release's own environment, unless it is there already. Raises EngineError with the
    installer's last words.
    """
    if not has_engine(bundle) or not board.is_running:
        return
    reporter.stage("installing the engine")
    root = board.files.root
    script = shlex.quote(f"{root}/{layout.bundle_folder(bundle.id)}/{INSTALL_SCRIPT}")
    env = shlex.quote(f"{root}/{layout.env_folder(bundle.id)}")
    done = board.execute(f"sh {script} {env} && sync", timeout_s=_INSTALL_S)
    if done.rc != 0:
        raise EngineError(
            f"{board.place}: the engine does not install there: {last_words(done)}",
            next_step="edge rehearse BUNDLE --device BOARD shows the same without the board",
        )


def try_release(
    board: Board, bundle: Bundle, min_speed: float, max_memory: float, *, quick: bool = False
) -> GateVerdict:
    """Load the release on the board and ask it the fixed question. `quick` goes through `current`,
    with few tokens and without reading every byte again.
    """
    if board.is_running and has_tools(bundle):
        return try_phone(board, bundle, min_speed)
    edge = find_edge(board, bundle)
    if edge is None:
        note = (
            "there is no edge on the board and none in the bundle: hashes were verified, but "
            "nothing was loaded; edge build --with-engine brings an engine along"
        )
        return GateVerdict(notes=[note])
    root = board.files.root
    folder = layout.CURRENT if quick else layout.release_folder(bundle.id)
    if quick and board.files.pointer() != layout.release_folder(bundle.id):
        folder = layout.release_folder(bundle.id)  # a pointer file is no folder
    command = f"cd / && {edge} slots check {shlex.quote(f'{root}/{folder}/bundle')} --json"
    if quick:
        command += " --quick"
    done = board.execute(command, timeout_s=_TRY_S)
    health = read_health(done, board.place)
    if health is None:
        return GateVerdict(failures=[explain_end(done)])
    if not board.is_running:
        return judge_here(bundle, health)
    notes = []
    if bundle.plan.decode_tps is None:
        notes = ["the plan predicts no speed for this board, so that none was asked for"]
    if health.emulator_bytes is not None:
        notes.append(
            f"an emulator plays this board: its own {format_bytes(health.emulator_bytes)} are not "
            "counted, and its speed is not the board's"
        )
    failures = judge(health, bundle.plan, min_speed=min_speed, max_memory=max_memory)
    return GateVerdict(health, failures, notes)


def try_here(bundle: Bundle) -> GateVerdict:
    """Ask a bundle the fixed question with this machine's engine, in a process of its own."""
    path = str(bundle.path.absolute())
    done = Done.from_process(run_child(python_argv("boardfit", "slots", "check", path, "--json")))
    if (health := read_health(done, "this machine")) is None:
        return GateVerdict(failures=[explain_end(done)])
    return judge_here(bundle, health)


def judge_here(bundle: Bundle, health: Health) -> GateVerdict:
    """Judge what this machine's engine gave. The board's speed and memory may differ."""
    if health.error_kind == "EngineMissingError":
        return GateVerdict(notes=["hashes were verified; this machine has no engine to load it"])
    health = replace(health, decode_tps=None, peak_rss_bytes=None)
    note = "tried with this machine's engine: the board's speed and memory may differ"
    return GateVerdict(health, judge(health, bundle.plan, min_speed=0, max_memory=0), [note])


def try_phone(board: Board, bundle: Bundle, min_speed: float) -> GateVerdict:
    folder = f"{board.files.root}/{layout.bundle_folder(bundle.id)}"
    done = board.execute(tool_script(bundle, folder), timeout_s=_TRY_S)
    if (health := read_answer(done)) is None:
        return GateVerdict(failures=[explain_end(done)])
    notes = ["a static program does not report its memory, so it was not judged"]
    return GateVerdict(health, judge(health, bundle.plan, min_speed=min_speed), notes)


def find_edge(board: Board, bundle: Bundle) -> str | None:
    """The command that runs boardfit for this release, quoted for sh; None where there is none."""
    if not board.is_running:
        return shlex.join(python_argv("boardfit"))
    env = layout.env_folder(bundle.id)
    if "edge" in board.files.entries(f"{env}/bin"):
        return shlex.quote(f"{board.files.root}/{env}/bin/edge")
    done = board.execute(
        'e=$(command -v edge); case $e in /*) echo "$e" ;; *) echo - ;; esac', timeout_s=60
    )
    if done.rc != 0:
        raise shell_error(board.place, done.err, done.rc)
    path = parse_program(done.text, board.place)
    return shlex.quote(path) if path else None


def read_health(done: Done, place: str) -> Health | None:
    """The health report that a check printed as its last line; None when the check ended without
    one. Raises DeviceError for a report that is none, or that contradicts the exit code.
    """
    document, health, why = done.last_record(), None, "its end is missing"
    if document.get("kind") == KIND:
        try:
            health = parse_health(document)
        except InputError as error:
            why = str(error)
        if document.get(DIGEST, digest_of(document)) != digest_of(document):
            health, why = None, "its digest is that of another report"
    is_whole = health is not None and done.out.endswith(b"\n")
    if is_whole is not (done.rc == 0):
        raise DeviceError(
            f"{place} sends a broken report: {why}, exit code {done.rc}",
            next_step="check that its login prints nothing of its own, then flash again",
        )
    return health


def explain_end(done: Done) -> str:
    if name := name_signal(done.rc):
        what = {
            "SIGILL": "its engine uses instructions that this processor lacks",
            "SIGKILL": "killed, most likely for lack of memory",
            "SIGSEGV": "its engine crashed",
        }.get(name, "it was killed")
        return f"the engine died of {name}: {what}"
    return f"the check left with {done.rc}: {last_words(done)}"


def last_words(done: Done) -> str:
    line = find_error_line(done.err or done.text)
    return printable(line) or f"no message, exit code {done.rc}"


def rehearse(bundle: Bundle, reporter: Reporter) -> str | None:
    """Rehearse a bundle that carries an engine; a note for the report, None when it carries none.
    Raises EngineError with what the rehearsal found. The host's side, which edge never imports,
    runs as a process.
    """
    if not has_engine(bundle):
        return None
    if importlib.util.find_spec("boardfit.converters") is None:  # the host's side rehearses
        return f"not rehearsed: the host's packages are not installed ({install_line('host')})"
    reporter.stage(f"rehearsing on an emulated {bundle.plan.device}")
    path = str(bundle.path.absolute())
    done = Done.from_process(run_child(python_argv("boardfit", "rehearse", path, "--json")))
    if done.rc != 0:
        record = done.last_record()
        message = str(record.get("message") or done.err.strip() or "no message")
        raise EngineError(
            f"the rehearsal of {bundle.path} failed: {printable(message, 600)}",
            next_step=record.get("next_step") or "use --no-rehearse to flash without it",
        )
    return "rehearsed"


#: Weakest first; the second needs `asimddp`.
VARIANTS = ("armv8.0", "armv8.2-dotprod")
PROGRAM, BENCH_PROGRAM = "llama-completion", "llama-bench"
N_PROMPT = 128
_END = "[end of text]"
# common_perf_print (llama.cpp, common/common.cpp): "prompt eval time = …", "eval time = …".
_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)"
_SPEED = re.compile(rf"(?<!prompt )eval time = [^\n]{{0,200}}?{_NUMBER} tokens per second")
_TTFT = re.compile(rf"prompt eval time = {{1,20}}{_NUMBER} ms")
_N_OUT = re.compile(rf"(?<!prompt )eval time = {{1,20}}{_NUMBER} ms / {{1,20}}([0-9]{{1,9}}) runs")


def has_tools(bundle: Bundle) -> bool:
    """Whether the bundle brings static programs instead of wheels."""
    return any(file.name.endswith(f"/{PROGRAM}") for file in bundle.files)


def tool_script(bundle: Bundle, folder: str) -> str:
    """Shell that asks the fixed question; its first line of output is the variant."""
    has_template = any(file.role == "template" for file in bundle.files)
    chat = "-cnv -st --jinja" if has_template else "-no-cnv"
    return _run_tool(bundle, folder, "echo $v\n", PROGRAM, (
        f"-p {shlex.quote(PROMPT)} -n {MAX_TOKENS} --temp 0 -c {_number(bundle.plan.n_ctx)} "
        f"-t {_number(bundle.plan.n_threads)} --no-warmup --no-display-prompt --simple-io {chat}"
    ))  # fmt: skip


def bench_script(bundle: Bundle, folder: str, result: str, repeats: int) -> str:
    """Shell that measures with the bundle's llama-bench, and leaves JSON Lines in `result`."""
    return _run_tool(bundle, folder, "", BENCH_PROGRAM, (
        f"-p {N_PROMPT} -n {MAX_TOKENS} -r {repeats} -t {_number(bundle.plan.n_threads)} "
        f"-o jsonl > {shlex.quote(result)}"
    ))  # fmt: skip


def _run_tool(bundle: Bundle, folder: str, before: str, program: str, arguments: str) -> str:
    # A transfer keeps no modes: a bundle has none.
    return (
        f"cd {shlex.quote(folder)} || exit 70\n"
        f"chmod 755 tools/*/llama-* || exit 71\n"
        f"v={VARIANTS[0]}; grep -qw asimddp /proc/cpuinfo && v={VARIANTS[1]}\n{before}"
        f"exec tools/$v/{program} -m {shlex.quote(bundle.model_file.name)} {arguments} </dev/null"
    )


def _number(value: object) -> str:
    """A number of the plan for a shell line. Raises InputError for anything else."""
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InputError(
            f"the plan has {printable(repr(value), 40)}, expected a whole number",
            next_step="build the bundle again",
        )
    return str(value)


def read_answer(done: Done) -> Health | None:
    """The report in what the program printed; None when it died."""
    if done.rc != 0:
        return None
    variant, _, answer = done.out.decode("utf-8", "replace").partition("\n")
    speed, first, count = (p.search(done.err) for p in (_SPEED, _TTFT, _N_OUT))
    text = answer.replace(_END, "").strip()
    return Health(
        text=text,
        n_out=int(count[2]) if count else len(text.split()),
        ttft_s=float(first[1]) / 1e3 if first else None,
        decode_tps=float(speed[1]) if speed else None,
        engine=f"static llama.cpp, {printable(variant, 40)}",
    )
