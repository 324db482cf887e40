"""Run the command line in a child, so that the death of native code ends in a sentence.

A missing instruction, a segmentation fault, an assertion or the kernel's out-of-memory killer ends
a process before Python can print anything. The small parent reports how the child died.
"""

import os
import signal
import sys

from boardfit.edge.process import last_words


def main() -> None:
    """Entry point of the `edge` command. Ctrl-C ends the process at once while modules are
    imported.
    """
    open_closed_streams()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.name == "posix" and not {"-h", "--help", "--version"} & set(sys.argv[1:2]):
        supervise()
    from boardfit.edge.cli import main as run

    try:
        signal.signal(signal.SIGINT, before)
        run()
    except KeyboardInterrupt:  # before the command line could take it
        os._exit(130)


def open_closed_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr the null device there:
    else the first files that it opens would get what is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def supervise() -> None:
    """Fork. The child returns from here; the parent waits for it and leaves as it did."""
    waited = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    words, write_fd = os.pipe()
    oom_kills = count_oom_kills()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(words)
        last_words.set_pipe(write_fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        die_with(parent)
        return
    os.close(write_fd)
    status = wait_for(child, waited)
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    report_death(number, words, count_oom_kills() > oom_kills)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # a signal that does not kill by default


def wait_for(child: int, waited: set[signal.Signals]) -> int:
    """The child's wait status. A signal that another process sent us is handed on."""
    while True:
        if hasattr(signal, "sigwaitinfo"):
            info = signal.sigwaitinfo(waited)
            number, is_sent = info.si_signo, info.si_code <= 0  # SI_USER, SI_QUEUE, SI_TKILL
        else:  # macOS does not report where a signal came from
            number = signal.sigwait(waited)
            is_sent = number in (signal.SIGTERM, signal.SIGHUP)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
        elif is_sent:
            os.kill(child, number)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before that call
            os._exit(1)


def count_oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory; 0 where it does not count."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return int(dict(line.split() for line in file).get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def report_death(number: int, words: int, was_out_of_memory: bool) -> None:
    """Print what native code died of, and exit. Return after a signal from another process."""
    if number == signal.SIGKILL and not was_out_of_memory:
        return
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    who = f"edge {command}"
    if not (error := last_words.explain_death(who, -number)):
        return
    from boardfit.edge.cli import print_error

    message = str(error)
    if last_text := os.read(words, last_words.MAX_BYTES).decode("utf-8", "replace").strip():
        message = f"{who}: a check of the engine's own failed: {last_text}"
    print_error(type(error).__name__, message, error.next_step, as_json="--json" in sys.argv)
    sys.stdout.flush()
    os._exit(error.exit_code)
