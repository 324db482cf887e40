"""Serve the flashed release: `edge flash BUNDLE ssh://… --serve`.

A systemd unit and, where avahi is, a file that announces it; then the fixed question over HTTP. If
that gets no answer, the board is as before: the earlier release, the earlier unit or none.
"""

import shlex
from dataclasses import dataclass

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import DeviceError, EngineError, UsageError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.gate import explain_end, find_edge, last_words, read_health
from boardfit.edge.flash.session import Done
from boardfit.edge.serve.unit import KEY_FILE, SERVE_SERVICE, avahi_service, serve_unit
from boardfit.edge.slots import layout
from boardfit.edge.slots.health import judge
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import find_error_line, printable

_UNIT = f"/etc/systemd/system/{SERVE_SERVICE}"
_AVAHI = "/etc/avahi/services"
_START_S, _ASK_S = 960.0, 660.0
#: Becomes root for one command; without a password, because nobody is asked.
_BECOME = 'if [ "$(id -u)" = 0 ]; then r=; else r="sudo -n"; fi; '


@dataclass(frozen=True)
class ServedAt:
    """Where a board answers, and the token that it asks for."""

    port: int
    token: str


def check_can_serve(board: Board, place: str) -> None:
    """Raise UsageError that names what a board lacks to run a service of systemd."""
    if not board.is_running:
        raise UsageError(
            f"--serve starts a service on a running board, and {place} is none",
            next_step="flash it over ssh://, or install what edge serve BUNDLE --unit prints",
        )
    missing = {
        "systemctl": "command -v systemctl",
        "a way to become root (be root, or sudo without a password)": _BECOME + "$r true",
    }
    lacks = [what for what, script in missing.items() if board.execute(script, timeout_s=60).rc]
    if lacks:
        raise UsageError(
            f"--serve needs what {board.place} lacks: {'; '.join(lacks)}",
            next_step="leave --serve out, and start edge serve there by what starts programs",
        )


def serve_release(
    board: Board, slots: Slots, bundle: Bundle, port: int, previous: str | None, reporter: Reporter
) -> ServedAt:
    """Serve the current release, and ask it over HTTP. `previous` is the release to go back to.

    Raises EngineError when it does not answer. The board then serves what it served before.
    """
    reporter.stage("starting the server")
    program = _find_program(board, bundle)
    text = serve_unit(bundle.name, bundle.plan, board.files.root, program=program, port=port)
    # What was there is kept beside until the server answers.
    script = read_text_beside(
        __file__, "serve_install.sh", unit=_UNIT, unit_text=shlex.quote(text), avahi=_AVAHI,
        avahi_text=shlex.quote(avahi_service(bundle.name, port)), key=KEY_FILE,
        key_folder=KEY_FILE.rpartition("/")[0],
    )  # fmt: skip
    done = board.execute(script, timeout_s=60)
    if done.rc:
        why = f"its unit cannot be written: {last_words(done)}"
        raise _unusable(board, bundle, why, _restore(board, slots, bundle, previous))
    failures = _start_and_ask(board, bundle, port)
    if failures:
        read_log = _BECOME + f"$r journalctl -n 3 -o cat -u {SERVE_SERVICE} 2>/dev/null"
        log = board.execute(read_log, timeout_s=60)
        words = find_error_line(log.out.decode("utf-8", "replace"))
        after = _restore(board, slots, bundle, previous)
        why = "; ".join([*failures, *([printable(words, 200)] if words else [])])
        raise _unusable(board, bundle, why, after)
    _must(board, f"$r rm -f {_UNIT}.before {_AVAHI}/boardfit.service.before")
    return ServedAt(port, _read_token(board))


def _find_program(board: Board, bundle: Bundle) -> str:
    """The absolute path of `edge` for the service: the current release's own, or the board's."""
    edge = find_edge(board, bundle)
    if edge is None:
        raise UsageError(
            f"--serve needs an edge on {board.place}, and there is none",
            next_step="edge build … --with-engine brings it along",
        )
    (path,) = shlex.split(edge)
    own = f"{board.files.root}/{layout.env_folder(bundle.id)}"
    path = path.replace(own, f"{board.files.root}/{layout.CURRENT}/env", 1)
    if any(c.isspace() or c in "%\\\"'$;" for c in path + board.files.root):
        raise UsageError(f"a unit cannot name {printable(path)!r}: it has signs of its own meaning")
    return path


def _start_and_ask(board: Board, bundle: Bundle, port: int) -> list[str]:
    """Start the service and ask the fixed question. What went wrong, in sentences."""
    start = f"$r systemctl enable {SERVE_SERVICE} && $r systemctl restart {SERVE_SERVICE}"
    done = board.execute(_BECOME + start, timeout_s=_START_S)
    if done.rc:
        return [f"the service does not start: {last_words(done)}"]
    edge = find_edge(board, bundle)
    folder = shlex.quote(f"{board.files.root}/{layout.bundle_folder(bundle.id)}")
    _read_token(board)  # checked; the board's list of processes does not show it
    ask = (
        f"cd / && BOARDFIT_TOKEN=$($r cat {KEY_FILE}) {edge} slots check {folder} --json "
        f"--url http://127.0.0.1:{port}"
    )
    done = board.execute(_BECOME + ask, timeout_s=_ASK_S)
    health = read_health(done, board.place)
    if health is None:
        return [explain_end(done)]
    return judge(health, bundle.plan, min_speed=0, max_memory=0)


def _restore(board: Board, slots: Slots, bundle: Bundle, previous: str | None) -> str:
    """Point at the earlier release and serve it as before. Return a sentence about that."""
    if previous is not None and previous != bundle.id:
        slots.switch_back(previous)
    script = read_text_beside(
        __file__, "serve_restore.sh", unit=_UNIT, avahi=_AVAHI, service=SERVE_SERVICE
    )
    done = board.execute(script, timeout_s=_START_S)
    if done.rc:
        return f"What was served before does not start again: {last_words(done)}"
    if previous is None or previous == bundle.id:
        return "What was served before still is, if anything"
    return f"Switched back to {previous[:12]}"


def _unusable(board: Board, bundle: Bundle, why: str, after: str) -> EngineError:
    return EngineError(
        f"{board.place}: release {bundle.id[:12]} does not answer over HTTP: {why}. {after}",
        next_step=f"ssh there and run: journalctl -u {SERVE_SERVICE}",
    )


def _read_token(board: Board) -> str:
    token = _must(board, f"$r cat {KEY_FILE}").out.decode("ascii", "replace").strip()
    if len(token) != 64 or set(token) - set("0123456789abcdef"):
        raise DeviceError(
            f"{board.place}: {KEY_FILE} is not a token that boardfit made",
            next_step="remove it there; edge flash --serve makes a new one",
        )
    return token


def _must(board: Board, script: str) -> Done:
    done = board.execute(_BECOME + script, timeout_s=_START_S)
    if done.rc:
        raise DeviceError(
            f"{board.place}: a step of the service failed: {last_words(done)}",
            next_step="look at the board, then run the same command again",
        )
    return done
