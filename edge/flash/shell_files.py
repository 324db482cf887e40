"""Access a board's files through a shell on it, which has coreutils (busybox and toybox do) and one
of sha256sum or openssl. Scripts are lists of steps, each of which changes at most one thing, so
that a test can cut the power between any two of them.
"""

import contextlib
import functools
import secrets
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import boardfit.edge.slots.faults as faults
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.disk.rooted import FRESH, MARKER, MARKER_TEXT, fresh_name
from boardfit.edge.errors import DeviceError, DeviceUnreachableError, InputError
from boardfit.edge.flash import answers
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.session import Channel, Done, shell_error
from boardfit.edge.probe.remote import probe_script
from boardfit.edge.probe.system import MAX_DUMP_BYTES, CapturedSystem, parse_dump
from boardfit.edge.process.child import DEVNULL, PIPE, Popen, TimeoutExpired, start_child
from boardfit.edge.process.listener import Listener, stop
from boardfit.edge.slots.faults import fault_point
from boardfit.edge.slots.files import BoardEntry, BoardFiles, lock_error
from boardfit.edge.slots.layout import CURRENT, LOCK
from boardfit.edge.terminal.progress import Advance

#: What dd reads at once. It writes each block as it was read: gathering larger blocks (obs) made it
#: three times slower (measured, coreutils 9.1).
_READ = 1 << 16
#: A transfer that moves nothing for so long has died. A worn card pauses for up to a minute.
STALL_S = 300
_LOOK_S = 0.2
_MAX_WORDS = 1 << 20


def send_stream(channel: Channel, source: Path, target: str, offset: int, progress: Advance) -> int:
    """Write `source` from `offset`, a whole number of MiB, to the same place of `target` there.
    Returns the bytes sent. Raises DoesNotFitError when the disk there is full,
    DeviceUnreachableError when the connection breaks or the transfer stands still, DeviceError when
    the other side prints without end.
    """
    fault_point()
    at, keep = shlex.quote(target), " conv=notrunc" if offset else ""
    script = (
        f"[ ! -L {at} ] || {{ echo {at}: is a link >&2; exit 1; }}; umask 022; LC_ALL=C "
        f"exec dd of={at} bs={_READ} seek={offset // _READ}{keep}"
    )
    with source.open("rb", buffering=0) as file:
        seen = file.seek(offset)
        process = start_child(channel.argv(script), stdin=file, stdout=DEVNULL)
        listener, moved_s = Listener(process, channel.place, _MAX_WORDS), time.monotonic()
        try:
            while process.poll() is None:
                if listener.has_ended:
                    time.sleep(0.01)
                else:
                    listener.step(_LOOK_S)
                if (now := file.tell()) != seen:  # the program reads through the same open file
                    moved_s = time.monotonic()
                elif time.monotonic() - moved_s > STALL_S:
                    raise DeviceUnreachableError(
                        f"{channel.place} has taken no byte for {STALL_S:.0f} s",
                        next_step="check the board and its card, then run the same command to "
                        "resume",
                    )
                progress(now - seen)
                seen = now
            listener.take_rest()
        finally:  # Ctrl-C, too: no other code would end it
            listener.close()
            stop(process)
    size = source.stat().st_size
    progress(size - seen)
    if process.returncode != 0:
        words = listener.err.decode("utf-8", "replace")
        raise channel.explain(Done(process.returncode, b"", words))
    fault_point()
    return size - offset


#: A lock whose owner has sent nothing for so long is given up by the board itself.
LOCK_SILENCE_S, HEARTBEAT_S = 60, 15
_HELD, _BUSY = b"held\n", 75
#: How long the board may take to answer about its lock, and how much it may print meanwhile.
_LOCK_S, _MAX_LOCK_BYTES = 60, 1 << 16
_END_S = 10
_GONE = "No such file or directory"

#: What every script begins with. `sync FILE` flushes one file (coreutils 8.24), elsewhere all; but
#: when a disk refuses the bytes, sync reports it once, and a second one would hide it.
PRELUDE = read_text_beside(__file__, "prelude.sh", marker=MARKER, marker_text=MARKER_TEXT.decode())


class ShellFiles(BoardFiles):
    def __init__(self, channel: Channel, root: str) -> None:
        self.channel, self.root = channel, root
        self._holder: Popen[bytes] | None = None

    def _quote(self, path: str) -> str:
        return shlex.quote(f"{self.root}/{path}" if path else self.root)

    def _real(self, *paths: str) -> str:
        """A script line that refuses links among the folders on the way to these paths."""
        parts = [path.split("/") for path in paths]
        above = {"/".join(names[:n]) for names in parts for n in range(len(names))}
        return f"real {' '.join(self._quote(p) for p in sorted({'', *above}))}"

    def do(self, *steps: str, timeout_s: float = 120) -> None:
        """Run steps that change something; each must succeed."""
        self._still_mine()
        script = PRELUDE + "set -e\n" + "\n".join(faults.hook.cut_steps(steps)) + "\n"
        try:
            done = self.channel.run(script, timeout_s=timeout_s)
        finally:
            faults.hook.finish_steps()
        if done.rc != 0 or done.out:
            raise shell_error(self.channel.place, done.err if done.rc else done.text, done.rc)

    def ask(self, script: str, *, timeout_s: float = 120) -> str:
        """Run a script that changes nothing; its output. Raises like `shell_error`."""
        return self._run(script, timeout_s).text

    def _run(self, script: str, timeout_s: float) -> Done:
        done = self.channel.run(PRELUDE + script, timeout_s=timeout_s)
        if done.rc != 0:
            raise shell_error(self.channel.place, done.err, done.rc)
        return done

    def resolve(self) -> None:
        """Make the root absolute: ssh logs in to a home folder that only the board knows."""
        if not self.root.startswith("/"):
            self.root = (
                f"{answers.parse_folder(self.ask('pwd -P'), self.channel.place)}/{self.root}"
            )

    def prepare(self) -> None:
        self.do(f"{self._real('')}; mkdir -p {self._quote('')}")

    def entries(self, folder: str) -> dict[str, BoardEntry]:
        found = self._find(folder, "-maxdepth 1")
        return {name: entry for name, entry in found.items() if "/" not in name}

    def tree(self, folder: str) -> dict[str, BoardEntry]:
        return self._find(folder, "")

    def _find(self, folder: str, depth: str) -> dict[str, BoardEntry]:
        # Absolute names: under an emulator that translates paths, relative ones may go astray.
        top = f"{self.root}/{folder}" if folder else self.root
        at = shlex.quote(top)
        # A name with a line break is never one of ours.
        script = (
            f"{self._real(f'{folder}/x')}\n[ -d {at} ] || {{ echo {answers.END}; exit 0; }}\n"
            f"find {at} {depth} -name '*\n*' -prune -o -exec stat -c '%f %h %s %n' {{}} +\n"
            f"r=$?; echo {answers.END}; exit $r"
        )
        done = self.channel.run(PRELUDE + script, timeout_s=120)
        # What went away between find and stat (another sender's scratch file) is not there.
        lines = [line for line in done.err.splitlines() if line]
        if done.rc != 0 and not (lines and all(_GONE in line for line in lines)):
            raise shell_error(self.channel.place, done.err, done.rc)
        return answers.parse_entries(done.text, top, self.channel.place)

    def read(self, path: str, limit: int) -> bytes | None:
        at = self._quote(path)
        script = (
            f"{self._real(path)}\n[ -f {at} ] && [ ! -L {at} ] || {{ echo -; exit 0; }}\n"
            f"digest {at} && head -c {limit + 1} < {at}"
        )
        for attempt in (1, 2):  # another program may replace it between the two
            data = self._run(script, 60).out
            with contextlib.suppress(*[DeviceError] if attempt == 1 else []):
                return answers.parse_content(data, limit, self.channel.place)
        raise AssertionError("unreachable")

    def write(self, path: str, data: bytes) -> None:
        fresh, at = self._quote(fresh_name()), self._quote(path)
        folders = {self._quote(""), self._quote(path.rpartition("/")[0])}
        self.do(
            f"{self._real(path)}; real {at}",
            # Through cat: the printf of some shells does not report why a disk takes no more.
            f"printf %s {shlex.quote(data.decode())} | cat > {fresh}",
            f"flush {fresh}",
            f"mv -f {fresh} {at}",
            f"flush {' '.join(sorted(folders))}",
        )

    def make_folder(self, path: str) -> None:
        self.do(f"{self._real(f'{path}/x')}; mkdir -p {self._quote(path)}")

    def claim(self, path: str) -> None:
        at = self._quote(path)
        marker = self._quote(f"{path}/{MARKER}")
        self.do(
            f"{self._real(f'{path}/x')}; mkdir -p {at}", f"mark {at}", f"flush {marker}",
            f"flush {at}",
        )  # fmt: skip

    def rename(self, source: str, target: str) -> None:
        folders = {self._quote(p.rpartition("/")[0]) for p in (source, target)}
        at = self._quote(target)
        self.do(
            f"{self._real(source, target)}; real {at}",
            f"[ ! -d {at} ] || foreign {at}",  # mv would put it inside
            f"mv -f {self._quote(source)} {at}",
            f"flush {' '.join(sorted(folders))}",
        )

    def remove(self, paths: Sequence[str]) -> None:
        if paths:
            self.do(self._real(*paths), *map(self._away_command, paths), timeout_s=600)

    def _away_command(self, path: str) -> str:
        names = path.split("/")
        above = ["/".join(names[:n]) for n in range(len(names), 0, -1)]
        return f"away {' '.join(self._quote(p) for p in above)}"

    def sweep(self) -> None:
        root = self._quote("")
        self.do(
            f"for f in {root}/{FRESH}????????????????; do "
            '[ -d "$f" ] && [ ! -L "$f" ] || rm -f -- "$f"; done'
        )

    def link(self, source: str, target: str) -> None:
        a, b = self._quote(source), self._quote(target)
        self.do(
            f"{self._real(source, target)}; real {a}",
            f"rm -f {b}", f"ln {a} {b} 2>/dev/null || cp {a} {b}", f"flush {b}",
            timeout_s=1800,
        )  # fmt: skip

    def copy(self, source: str, target: str) -> None:
        a, b = self._quote(source), self._quote(target)
        self.do(
            f"{self._real(source, target)}; real {a} {b}",
            f"cp --reflink=auto {a} {b} 2>/dev/null || cp {a} {b}",
            timeout_s=3600,
        )

    def sync(self, paths: Sequence[str]) -> None:
        self.do(f"flush {' '.join(self._quote(p) for p in paths)}", timeout_s=1800)

    def digests(self, paths: Sequence[str]) -> dict[str, str | None]:
        script = "\n".join(f"digest {self._quote(path)}" for path in paths)
        text = self.ask(script, timeout_s=3600)
        sums = answers.parse_digests(text, len(paths), self.channel.place)
        return dict(zip(paths, sums, strict=True))

    def settle(self, path: str) -> str | None:
        # Both at once: one waits for the disk, the other computes. Then the cache is let go, so
        # that the health gate reads what the disk has.
        self._still_mine()
        at = self._quote(path)
        script = (
            f"flush {at} & f=$!; digest {at}; wait $f || exit 1\n"
            f"dd if={at} iflag=nocache count=0 2>/dev/null || :"
        )
        faults.fault_point()
        text = self.ask(script, timeout_s=3600)
        return answers.parse_digests(text, 1, self.channel.place)[0]

    def free_bytes(self) -> int:
        root = self._quote("")
        text = self.ask(f"stat -f -c '%a %S' {root} 2>/dev/null || df -Pk {root}")
        return answers.parse_free_bytes(text, self.channel.place)

    def used_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        # One tree per du: a file that two of them share is counted in both.
        script = "\n".join(
            f"n=$(du -sk {self._quote(p)} 2>/dev/null) || n=0; echo ${{n%%[!0-9]*}}" for p in paths
        )
        counts = answers.parse_counts(self.ask(script), len(paths), self.channel.place)
        return {path: n * 1024 for path, n in zip(paths, counts, strict=True)}

    def pointer(self) -> str | None:
        at = self._quote(CURRENT)
        text = self.ask(
            f"if [ -L {at} ]; then readlink {at}\n"
            f"elif [ -f {at} ]; then head -n 1 {at} | head -c 1024; fi\necho {answers.END}"
        )
        return answers.parse_target(text, self.channel.place)

    def point(self, target: str) -> None:
        at, new, root = self._quote(CURRENT), self._quote(fresh_name()), self._quote("")
        text = shlex.quote(target)
        if self._can_switch_links:
            steps = [f"ln -s {text} {new}", f"mv -T -f {new} {at}"]
        else:
            steps = [
                f"[ ! -L {at} ] || {{ echo 'mv here cannot switch a link' >&2; exit 1; }}",
                f"printf '%s\\n' {text} > {new}",
                f"flush {new}",
                f"mv -f {new} {at}",
            ]
        self.do(self._real(CURRENT), *steps, f"flush {root}")

    @functools.cached_property
    def _can_switch_links(self) -> bool:
        """Whether links exist there, and `mv -T` renames one over another. A plain mv moves into
        the folder that the old one names; toybox's -T refuses it (0.8.9).
        """
        scratch = self._quote(fresh_name())
        text = self.ask(
            f"mkdir {scratch} && cd {scratch} && mkdir d && "
            "ln -s d a 2>/dev/null && ln -s d b && mv -T -f b a 2>/dev/null && "
            "[ -L a ] && [ ! -e d/b ] && echo yes || echo no\n"
            f"rm -rf {scratch}"
        )
        return answers.parse_flag(text, self.channel.place)

    @contextlib.contextmanager
    def lock(self, wait_s: float) -> Iterator[None]:
        end_s = time.monotonic() + wait_s
        while (holder := self._try_lock()) is None:
            if time.monotonic() >= end_s:
                raise lock_error(self.channel.place, wait_s)
            time.sleep(0.5)
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(holder, stop), daemon=True)
        beat.start()
        self._holder = holder
        try:
            yield
        finally:
            self._holder = None
            stop.set()
            beat.join()
            _end(holder)

    def _try_lock(self) -> Popen[bytes] | None:
        channel, place = self.channel, self.channel.place
        script = read_text_beside(
            __file__, "lock.sh", root=self._quote(""), lock=LOCK, busy=_BUSY,
            silence_s=LOCK_SILENCE_S,
        )  # fmt: skip
        holder = start_child(channel.argv(script), stdin=PIPE, bufsize=0)
        listener = Listener(holder, place, _MAX_LOCK_BYTES)
        end_s = time.monotonic() + _LOCK_S
        try:
            # The outputs end when it refuses or the connection breaks.
            while _HELD not in listener.out and not listener.has_ended:
                if (left_s := end_s - time.monotonic()) <= 0:
                    raise DeviceUnreachableError(
                        f"{place} did not take its lock within {_LOCK_S} s",
                        next_step="check that the board is on and reachable, then run it again",
                    )
                listener.step(left_s)
            if _HELD in listener.out:
                return holder
            holder.wait(_END_S)
        except TimeoutExpired:
            stop(holder)
        except BaseException:
            stop(holder)
            raise
        finally:
            listener.close()
        stop(holder)
        err = listener.err.decode("utf-8", "replace")
        if holder.returncode == _BUSY:
            return None
        done = Done(holder.returncode, b"", err)
        raise channel.explain(done)

    def _still_mine(self) -> None:
        if self._holder is not None and self._holder.poll() is not None:
            raise DeviceUnreachableError(
                f"the connection to {self.channel.place} was lost; the release that was current "
                "still is",
                next_step="run the same command again to resume",
            )


def _heartbeat(holder: Popen[bytes], stop: threading.Event) -> None:
    assert holder.stdin is not None
    while not stop.wait(HEARTBEAT_S):
        try:
            holder.stdin.write(b"\n")
            holder.stdin.flush()
        except (OSError, ValueError):
            return


def _end(holder: Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if holder.stdin is not None:
            holder.stdin.close()
    with contextlib.suppress(TimeoutExpired):
        holder.wait(_END_S)
    stop(holder)


class ShellBoard(Board):
    """A running board that a channel reaches."""

    is_running = True
    files: ShellFiles

    def __init__(self, channel: Channel, folder: str) -> None:
        self.place, self._channel = channel.place, channel
        self.files = ShellFiles(channel, folder)

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        return send_stream(self._channel, source, f"{self.files.root}/{part}", offset,
                           progress)  # fmt: skip

    def execute(self, script: str, *, timeout_s: float) -> Done:
        return self._channel.run(script, timeout_s=timeout_s)

    def capture(self) -> CapturedSystem:
        mark = secrets.token_hex(16)
        done = self._channel.run(probe_script(mark), timeout_s=120)
        if done.rc != 0:
            raise shell_error(self.place, done.err, done.rc)
        try:
            return parse_dump(done.out[:MAX_DUMP_BYTES].decode("utf-8", "replace"), mark)
        except InputError as error:
            raise DeviceError(f"{self.place}: {error}", next_step=error.next_step) from None
