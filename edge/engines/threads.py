"""Choose the number of threads: the requested number, fewer while others hold the cores.

Threads of one step wait for each other at every node of the graph, spinning: with fewer free cores
than threads a step takes many times as long. The measure is the share of its threads' time that a
step got from the CPU, together with involuntary context switches (storage is waited for
voluntarily). Mostly the next step then takes fewer threads. A step whose spinning threads share one
core takes a second or more: it is given up and done again by fewer.
"""

import os
import time
from collections.abc import Callable

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Steps are looked at together until they have taken this long.
_WINDOW_S = 0.025
# Below this share a thread is missing its core; at it, nothing is wrong.
_CROWDED_SHARE = 0.80
# After stepping down, more threads are tried again this much later; twice as late each time that
# they had to be taken back at once.
_RETRY_FIRST_S, _RETRY_LAST_S = 0.25, 8.0
# A number of threads that was kept this long was right.
_SETTLED_S = 2.0
# Cores that must have been idle lately for one more thread to be tried.
_FREE_CORES = 0.7
# The machine is looked at over at least this long: the kernel counts idle time in ticks of 10 ms.
_LOOK_S = 0.1
# Older looks say nothing of now.
_STALE_S = 5.0
# A step is stuck if it takes this multiple of the time of a similar step, and this long at least.
# Fewer threads take at most twice as long, so that giving up later would cost more than it saves.
_STUCK_TIMES, _STUCK_LEAST_S = 2.5, 0.05
# n threads on n cores, two of them on one core: the step gets n − 1 cores' time. One of them shares
# its core with another process: n − ½. Below n − ¾ (nearer to the first case), the step is stuck
# as soon as it takes _SURELY_STUCK_TIMES its usual time.
_SURELY_STUCK_TIMES, _ONE_CORE = 1.25, 0.75
# How fast it is forgotten what steps took, and the tokens that show how long a prefill takes.
_USUAL_STEP, _PREFILL_LEAST = 0.2, 8


def involuntary_switches() -> int | None:
    """How often the system took a core from this process; None without a counter."""
    if resource is None:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


def idle_core_seconds() -> float | None:
    """Idle seconds of this machine's cores, all together; None where they are not reported."""
    try:
        with open("/proc/stat", "rb") as file:
            fields = file.readline().split()
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


class ThreadGovernor:
    """Choose the threads of the next step, at most `most`, from every step; one per context.
    `clock` and `cpu` give seconds.
    """

    def __init__(
        self,
        most: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        switches: Callable[[], int | None] = involuntary_switches,
        idle: Callable[[], float | None] = idle_core_seconds,
    ) -> None:
        self.most = self.now = most
        self._clock, self._cpu, self._switches, self._idle = clock, cpu, switches, idle
        self._wall_s = self._cpu_s = self._thread_s = 0.0
        self._n_step, self._n_tokens = most, 1
        self._n_switches = switches() or 0
        # When the running step began, and the processor time by then; None between steps.
        self._before: tuple[float, float] | None = None
        # Seconds per token that steps took lately, by threads and whether it was a single token.
        self._usual: dict[tuple[int, bool], float] = {}
        self._changed_s = clock()
        self._retry_s = _RETRY_FIRST_S
        self._tried = False
        self._last_look = (clock(), idle())
        self._free: float | None = None

    def before_step(self, n_threads: int, n_tokens: int = 1) -> None:
        """A step of `n_tokens` tokens begins that `n_threads` threads compute."""
        self._n_step, self._n_tokens = n_threads, n_tokens
        self._before = (self._clock(), self._cpu())

    def after_step(self) -> int:
        """The step has ended; returns the threads to take for the next one."""
        now_s = self._clock()
        took_s = self._take_in(now_s)
        if self._n_tokens == 1 or self._n_tokens >= _PREFILL_LEAST:
            key = (self._n_step, self._n_tokens == 1)
            each_s = took_s / self._n_tokens
            usual_s = self._usual.get(key, each_s)
            # One that was stuck to its end does not make the next one usual.
            each_s = min(each_s, _STUCK_TIMES * usual_s)
            self._usual[key] = usual_s + _USUAL_STEP * (each_s - usual_s)
        if self._wall_s >= _WINDOW_S:
            self._judge(now_s)
        return self.now

    def is_stuck(self) -> bool:
        """Asked while a step runs, by another thread: whether to abandon it and use fewer."""
        before = self._before
        if before is None or self._n_step < 2:
            return False
        usual_s = self._usual.get((self._n_step, self._n_tokens == 1))
        if usual_s is None:
            return False
        passed_s, expected_s = self._clock() - before[0], usual_s * self._n_tokens
        if passed_s < max(_STUCK_LEAST_S, _SURELY_STUCK_TIMES * expected_s):
            return False
        share = (self._cpu() - before[1]) / (passed_s * self._n_step)
        late = passed_s >= _STUCK_TIMES * expected_s
        least = _CROWDED_SHARE if late else 1 - _ONE_CORE / self._n_step
        return share < least and self._was_pushed()

    def gave_up(self) -> int:
        """The step was given up because it was stuck; returns the threads to do it again with."""
        now_s = self._clock()
        self._take_in(now_s)
        self._step_down(now_s)
        self._forget_window()
        return self.now

    def before_stream(self) -> int:
        """A stream begins, maybe after a pause: what did others use of the cores meanwhile?"""
        now_s = self._clock()
        if self._look(now_s) and self._free is not None:
            self._set(max(1, min(self.most, int(self._free + 1 - _FREE_CORES))), now_s)
        self._forget_window()
        return self.now

    def after_stream(self) -> None:
        """A stream has ended: what is used from now on, others use."""
        self._last_look = (self._clock(), self._idle())

    # ---- inside -------------------------------------------------------------------------------

    def _take_in(self, now_s: float) -> float:
        """Count the step that ends now; returns the seconds that it took."""
        began_s, cpu_s = self._before or (now_s, self._cpu())
        self._before = None
        took_s = now_s - began_s
        self._thread_s += took_s * self._n_step
        self._wall_s += took_s
        self._cpu_s += self._cpu() - cpu_s
        return took_s

    def _was_pushed(self) -> bool:
        """Whether the system took a core since the window began; True without a counter."""
        n_switches = self._switches()
        return n_switches is None or n_switches > self._n_switches

    def _judge(self, now_s: float) -> None:
        share = self._cpu_s / self._thread_s
        held_s = now_s - self._changed_s
        if self.now > 1 and share < _CROWDED_SHARE and self._was_pushed():
            self._step_down(now_s)
        elif self.now < self.most and held_s >= self._retry_s:
            self._look(now_s)
            if self._free is None or self._free >= _FREE_CORES:
                self._tried = True
                self._set(self.now + 1, now_s)
        self._forget_window()

    def _step_down(self, now_s: float) -> None:
        """As many threads as got a core, and at least one less than now."""
        if self._tried and now_s - self._changed_s < _SETTLED_S:
            self._retry_s = min(2 * self._retry_s, _RETRY_LAST_S)
        else:
            self._retry_s = _RETRY_FIRST_S
        self._tried = False
        share = self._cpu_s / self._thread_s if self._thread_s > 0 else 0.0
        self._set(max(1, min(self.now - 1, int(share * self.now + 0.2))), now_s)

    def _look(self, now_s: float) -> bool:
        """Whether enough time has passed for a new look at the machine."""
        then_s, before = self._last_look
        passed_s = now_s - then_s
        if passed_s < _LOOK_S:
            return False
        idle = self._idle()
        self._free = None
        if idle is not None and before is not None and passed_s < _STALE_S:
            self._free = (idle - before) / passed_s
        self._last_look = (now_s, idle)
        return True

    def _set(self, n: int, now_s: float) -> None:
        if n != self.now:
            self.now, self._changed_s = n, now_s

    def _forget_window(self) -> None:
        self._wall_s = self._cpu_s = self._thread_s = 0.0
        self._n_switches = self._switches() or 0
