"""The governor of threads, on a simulated machine: cores, neighbours, a quota, a clock."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.engines.threads import ThreadGovernor, idle_core_seconds, involuntary_switches


@dataclasses.dataclass
class Machine:
    """`cores` shared with `busy` others that always compute; `quota` limits us to so many cores."""

    cores: int
    busy: float = 0.0
    quota: float | None = None
    sees_idle: bool = True
    now_s: float = 0.0
    cpu_s: float = 0.0
    idle_s: float = 0.0
    n_switches: int = 0

    def governor(self, most: int) -> ThreadGovernor:
        return ThreadGovernor(
            most,
            clock=lambda: self.now_s,
            cpu=lambda: self.cpu_s,
            switches=lambda: self.n_switches,
            idle=lambda: self.idle_s if self.sees_idle else None,
        )

    def step(self, governor: ThreadGovernor, work_s: float = 0.02) -> float:
        """A step of `work_s` core seconds; returns what it took. A step whose threads do not all
        have a core takes several times as long: they wait for each other.
        """
        n = governor.now
        governor.before_step(n)
        free = self.cores - self.busy
        got = min(n, max(free, n * free / self.cores), self.quota or n)
        took_s = work_s / n if got >= n else 3 * work_s / got
        self.pass_time(took_s, ours=got)
        self.cpu_s += took_s * got
        self.n_switches += got < n
        governor.after_step()
        return took_s

    def pass_time(self, seconds: float, ours: float = 0.0) -> None:
        self.now_s += seconds
        self.idle_s += seconds * max(0.0, self.cores - self.busy - ours)


def run(machine: Machine, governor: ThreadGovernor, seconds: float) -> list[int]:
    seen, end_s = [], machine.now_s + seconds
    while machine.now_s < end_s:
        seen.append(governor.now)
        machine.step(governor)
    return seen


def test_a_quiet_machine_keeps_all_threads() -> None:
    machine = Machine(cores=4)
    assert set(run(machine, machine.governor(4), 5)) == {4}


def test_a_neighbour_takes_a_thread_and_gives_it_back() -> None:
    machine = Machine(cores=2)
    governor = machine.governor(2)
    run(machine, governor, 1)
    machine.busy = 1
    assert set(run(machine, governor, 5)[3:]) == {1}, "one core is left: never two threads"
    machine.busy = 0
    seen = run(machine, governor, 5)
    assert seen[-1] == 2
    assert 2 in seen[: len(seen) // 2]


def test_a_quota_that_idle_cores_do_not_show_is_tried_ever_more_rarely() -> None:
    machine = Machine(cores=4, quota=1.0)
    governor = machine.governor(4)
    seen = run(machine, governor, 30)
    late = seen[len(seen) // 2 :]
    assert late.count(1) > 0.9 * len(late)
    machine.quota = None
    assert run(machine, governor, 40)[-1] == 4, "and found again when it is gone"


def test_where_idle_time_is_hidden_trying_is_all_there_is() -> None:
    machine = Machine(cores=2, busy=1, sees_idle=False)
    governor = machine.governor(2)
    seen = run(machine, governor, 20)
    assert seen.count(1) > 0.85 * len(seen)
    machine.busy = 0
    assert run(machine, governor, 20)[-1] == 2


def test_waiting_for_storage_is_no_crowd() -> None:
    machine = Machine(cores=2)
    governor = machine.governor(2)
    for _ in range(100):
        governor.before_step(2)
        machine.pass_time(0.05, ours=0.2)  # pages come in: little CPU, no involuntary switch
        machine.cpu_s += 0.01
        assert governor.after_step() == 2


def test_a_new_stream_looks_at_what_happened_since_the_last() -> None:
    machine = Machine(cores=4)
    governor = machine.governor(4)
    run(machine, governor, 0.5)
    governor.after_stream()
    machine.busy = 3
    machine.pass_time(1.0)
    assert governor.before_stream() == 1, "before the first step, not after a slow one"
    governor.after_stream()
    machine.busy = 0
    machine.pass_time(1.0)
    assert governor.before_stream() == 4


@given(
    cores=st.integers(1, 8),
    most=st.integers(1, 8),
    loads=st.lists(st.tuples(st.floats(0, 8), st.floats(0.01, 2)), min_size=1, max_size=8),
)
def test_there_is_always_a_thread_and_never_too_many(
    cores: int, most: int, loads: list[tuple[float, float]]
) -> None:
    machine = Machine(cores=cores)
    governor = machine.governor(most)
    for busy, seconds in loads:
        machine.busy = min(busy, cores - 0.01)
        for n in run(machine, governor, seconds):
            assert 1 <= n <= most


def test_this_machine_can_be_looked_at() -> None:
    switches, idle = involuntary_switches(), idle_core_seconds()
    assert switches is None or switches >= 0
    assert idle is None or idle > 0


@pytest.mark.parametrize("most", [1, 2])
def test_one_thread_is_never_taken_away(most: int) -> None:
    machine = Machine(cores=1, busy=0.9)
    governor = machine.governor(most)
    assert run(machine, governor, 3)[-1] == 1


def stuck_step(
    machine: Machine, governor: ThreadGovernor, n_tokens: int = 1, cores: float = 1
) -> float | None:
    """A step of 20 ms per token, alone; with both threads on one core it would take seconds.
    It gets the time of so many `cores`. Returns when it was given up, None if it was not.
    """
    governor.before_step(governor.now, n_tokens)
    began_s = machine.now_s
    while machine.now_s < began_s + 5:
        machine.now_s += 0.01
        machine.cpu_s += 0.01 * cores
        machine.n_switches += 2
        if governor.is_stuck():
            assert governor.gave_up() < 2
            return machine.now_s - began_s
    governor.after_step()
    return None


def test_a_stuck_step_is_given_up_for_one_with_fewer_threads() -> None:
    machine = Machine(cores=2)
    governor = machine.governor(2)
    assert stuck_step(machine, governor) is None, "nothing is known yet of how long a step takes"
    machine = Machine(cores=2)
    governor = machine.governor(2)
    run(machine, governor, 0.5)
    given_up_s = stuck_step(machine, governor)
    assert given_up_s is not None
    assert given_up_s < 0.1
    assert governor.now == 1
    assert stuck_step(machine, governor) is None, "one thread has nobody to wait for"


def prefills(machine: Machine, governor: ThreadGovernor) -> None:
    """Steps of 10 ms a token, with a core for each thread."""
    for _ in range(3):
        governor.before_step(2, 100)
        machine.pass_time(1.0, ours=2)
        machine.cpu_s += 2.0
        machine.n_switches += 1
        assert not governor.is_stuck(), "all of its processor time was had"
        governor.after_step()


def test_a_long_prefill_is_no_stuck_token() -> None:
    machine = Machine(cores=2)
    governor = machine.governor(2)
    run(machine, governor, 0.5)
    prefills(machine, governor)
    given_up_s = stuck_step(machine, governor, 20)
    assert given_up_s is not None
    assert 0.25 <= given_up_s <= 0.28, "1.25 times the 10 ms a token that it took before"


def test_a_core_shared_with_a_neighbour_is_given_more_time() -> None:
    machine = Machine(cores=2)
    governor = machine.governor(2)
    prefills(machine, governor)
    given_up_s = stuck_step(machine, governor, 20, cores=1.5)
    assert given_up_s is not None
    assert 0.5 <= given_up_s <= 0.53, "it may be done in twice the time, as by one thread"


def test_waiting_for_storage_is_not_given_up() -> None:
    machine = Machine(cores=2)
    governor = machine.governor(2)
    run(machine, governor, 0.5)
    governor.before_step(2)
    machine.pass_time(2.0, ours=0.1)
    assert not governor.is_stuck(), "it was not made to give up a core"


def test_between_steps_nothing_is_stuck() -> None:
    machine = Machine(cores=2)
    governor = machine.governor(2)
    run(machine, governor, 0.5)
    machine.pass_time(10.0)
    machine.n_switches += 100
    assert not governor.is_stuck()
