"""The model of the engine's graph allocator, on graphs small enough to follow by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from boardfit.device_profiles.cost.arena import Arena, ComputeGraph

KIB = 1024


def test_a_chain_needs_two_values_at_once() -> None:
    graph = ComputeGraph()
    value = graph.run(KIB)
    for _ in range(5):
        value = graph.run(KIB, value)
    assert graph.measure().reserved == 2 * KIB


def test_in_place_operations_need_one() -> None:
    graph = ComputeGraph()
    value = graph.run(KIB)
    for _ in range(5):
        value = graph.run(KIB, value, in_place=True)
    assert graph.measure().reserved == KIB


def test_a_value_read_later_is_not_taken_over() -> None:
    graph = ComputeGraph()
    kept = graph.run(KIB)
    changed = graph.run(KIB, kept, in_place=True)
    graph.run(KIB, changed, kept)
    assert graph.measure().reserved == 3 * KIB


def test_a_view_keeps_its_owner_alive_and_is_never_taken_over() -> None:
    graph = ComputeGraph()
    owner = graph.run(KIB)
    view = graph.view(owner)
    changed = graph.run(KIB, view, in_place=True)
    graph.run(KIB, changed, in_place=True)
    assert graph.measure().reserved == 2 * KIB


def test_a_hole_too_small_costs_its_size() -> None:
    graph = ComputeGraph()
    small = graph.run(KIB)
    wall = graph.run(KIB, small)  # frees nothing before it: `small` goes after this runs
    large = graph.run(2 * KIB, wall)  # does not fit into the hole that `small` left
    graph.run(KIB, wall, large)
    assert graph.measure().reserved == 4 * KIB


def test_what_is_never_written_is_reserved_only() -> None:
    graph = ComputeGraph()
    graph.input(4 * KIB, written=0)
    graph.run(2 * KIB, written=KIB)
    measured = graph.measure()
    assert (measured.reserved, measured.resident) == (6 * KIB, KIB)


@given(st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=60))
def test_taken_spans_never_overlap_and_all_comes_back(steps: list[tuple[int, bool]]) -> None:
    arena, held = Arena(), list[tuple[int, int]]()
    for size, free_one in steps:
        if free_one and held:
            arena.give_back(*held.pop(size % len(held)))
        offset = arena.take(size)
        assert offset % 64 == 0
        for other, other_size in held:
            assert offset + size <= other or other + other_size <= offset
        held.append((offset, size))
        assert arena.peak >= offset + size
    for span in held:
        arena.give_back(*span)
    peak = arena.peak
    assert peak == 0 or arena.take(peak) == 0  # one hole again, at the start
