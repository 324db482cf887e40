"""Decisions about releases, without a disk."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.slots import layout
from boardfit.edge.slots.layout import (
    SlotState,
    collectable,
    parse_pointer,
    parse_state,
    previous_release,
)

IDS = [f"{i:064x}" for i in range(6)]
some_ids = st.lists(st.sampled_from(IDS), unique=True)


def test_a_state_reads_back_the_same() -> None:
    state = SlotState((IDS[0], IDS[1])).with_release(IDS[1], name="x", health=None)
    assert parse_state(state.to_bytes()) == state


texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)


def state_file(history: object, releases: object) -> bytes:
    document = {"kind": layout.KIND, "history": history, "releases": releases}
    return json.dumps(document).encode()


@given(
    st.binary(max_size=80)
    | st.builds(state_file, values, st.dictionaries(texts | st.sampled_from(IDS), values))
)
def test_no_state_file_crashes_and_no_foreign_id_comes_out_of_one(data: bytes) -> None:
    state = parse_state(data)
    if state is not None:
        assert all(layout.is_release_id(i) for i in (*state.history, *state.releases))


@given(some_ids, st.none() | st.sampled_from(IDS), some_ids)
def test_the_previous_release_is_an_older_one_that_is_there(
    history: list[str], current: str | None, present: list[str]
) -> None:
    previous = previous_release(history, current, present)
    if previous is not None:
        assert previous in present and previous != current and previous in history
        if current in history:
            assert history.index(previous) < history.index(current)


def test_a_release_that_was_left_is_not_gone_back_to() -> None:
    a, b, c = IDS[:3]
    assert previous_release([a, b, c], c, IDS) == b
    assert previous_release([a, b, c], b, IDS) == a  # after a rollback from c
    assert previous_release([a, b], a, IDS) is None  # cut before the switch to b, or rolled back
    assert previous_release([a, b], None, IDS) == b


@given(some_ids, some_ids, some_ids)
def test_what_is_kept_is_never_collected_and_the_newest_goes_last(
    history: list[str], present: list[str], keep: list[str]
) -> None:
    order = collectable(history, present, keep)
    assert set(order) == set(present) - set(keep)
    ages = [history.index(i) if i in history else -1 for i in order]
    assert ages == sorted(ages)


@pytest.mark.parametrize(
    "text",
    [None, "", "releases/../../etc", f"/{IDS[0]}", f"releases/{IDS[0]}/..", f"x/{IDS[0]}",
     f"releases/{IDS[0].upper()}a", "releases/" + "g" * 64],
)  # fmt: skip
def test_a_pointer_to_anything_else_names_nothing(text: str | None) -> None:
    assert parse_pointer(text) is None


def test_pointers_and_paths() -> None:
    assert parse_pointer(f"releases/{IDS[1]}\n") == IDS[1]
    assert layout.incoming_folder(IDS[1]) == f"incoming/{IDS[1]}"
    with pytest.raises(ValueError, match="not a bundle id"):
        layout.release_folder("../x")


def test_activating_again_moves_to_the_end_and_history_stays_short() -> None:
    state = SlotState((IDS[0], IDS[1]))
    assert state.activating(IDS[0]).history == (IDS[1], IDS[0])
    for i in range(300):
        state = state.activating(f"{i:064x}")
    assert len(state.history) == layout.MAX_HISTORY and state.history[-1] == f"{299:064x}"
    assert state.drop_releases([state.history[-1]]).history[-1] == f"{298:064x}"
