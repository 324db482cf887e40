"""Types and ranges of a stranger's JSON: the kinds, and the plan, health and state made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.errors import InputError
from boardfit.edge.fields import (
    Flag,
    ListOf,
    OrNull,
    Real,
    TableOf,
    Text,
    Whole,
    Word,
    check_fields,
    is_finite,
    keep_valid,
    shown,
)
from boardfit.edge.flash.service_units import service_unit
from boardfit.edge.slots.health import HEALTH_FIELDS, Health, judge, parse_health
from boardfit.edge.slots.layout import KIND, parse_state
from boardfit.edge.types import PLAN_FIELDS, Plan
from tests.edge.flash.cargo import PLAN

#: One of each JSON type, and those that break arithmetic, shells and terminals.
ODD = [
    None, True, False, -1, 0, 10**400, -(10**400), 1e308, math.nan, math.inf, "", "x", "$(touch x)",
    "a\x1b[2Jb", "a\nb", "x" * 20_000, [], ["x", 1], {}, {"a": "b"}, [[]],
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole(1, 9), [1, 9], [0, 10, 1.0, True, "1", None, 10**400]),
        (Real(0), [0, 1.5, 7], [-1, math.nan, math.inf, 10**400, True, "1"]),
        (Flag(), [True, False], [0, 1, "true", None]),
        (Text(3), ["", "a\nb"], ["abcd", 1, None]),
        (Word(3), ["", "abc"], ["abcd", "a\n", "\x1b", "\u202e", 1]),
        (ListOf(Word(), 2), [[], ["a", "b"]], [["a", 1], ["a", "b", "c"], "ab", {}]),
        (TableOf(Whole(), 1), [{}, {"a": 1}], [{"a": -1}, {"a\n": 1}, {"a": 1, "b": 1}, [1]]),
        (OrNull(Whole()), [None, 1], [-1, "x"]),
    ],
)
def test_kinds(kind: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(kind.accepts(value) for value in good)
    assert not any(kind.accepts(value) for value in bad), kind.expected


def test_a_message_names_entry_value_and_what_is_expected() -> None:
    with pytest.raises(InputError, match=r"plan: n must be a whole number from 0 to 9, got '\$"):
        check_fields({"n": "$(x)\x1b"}, {"n": Whole(0, 9)}, "plan")
    with pytest.raises(InputError, match=r"unknown key 'nn'\. Did you mean 'n'"):
        check_fields({"nn": 1}, {"n": Whole()}, "plan")
    with pytest.raises(InputError, match="entry 'n' is missing"):
        check_fields({}, {"n": Whole()}, "plan", required=frozenset("n"))
    assert keep_valid({"n": -1, "m": 1}, {"n": Whole()}, others=True) == {"m": 1}
    assert keep_valid([], {}) == {} and not is_finite(10**400) and is_finite(-1)
    assert "\x1b" not in shown("\x1b") and "bits" in shown(10**5000)


def test_every_field_of_a_plan_and_a_health_report_has_a_kind() -> None:
    assert set(PLAN_FIELDS) == {f.name for f in dataclasses.fields(Plan)}
    assert set(HEALTH_FIELDS) == {f.name for f in dataclasses.fields(Health)}
    assert Plan.from_dict(PLAN.to_dict()) == PLAN


def use_plan(plan: Plan) -> None:
    """What a flash, a start and a report do with the numbers of a plan."""
    service_unit("x", plan)
    judge(Health(text="fine", n_out=3, decode_tps=1.0, peak_rss_bytes=1), plan)
    json.dumps(plan.to_dict(), allow_nan=False)
    f"{plan.n_ctx:d} {plan.n_threads:d} {plan.peak_bytes * 11 // 10:d} {plan.anonymous_bytes:d}"
    assert (plan.engine + plan.recipe + plan.device + plan.kv_type + plan.basis).isprintable()


@pytest.mark.parametrize("key", list(PLAN_FIELDS))
def test_a_plan_with_an_odd_value_is_refused_or_works(key: str) -> None:
    for value in ODD:
        try:
            plan = Plan.from_dict({**PLAN.to_dict(), key: value})
            use_plan(plan)
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 400


@pytest.mark.parametrize("key", ["n_ctx", "n_threads", "n_batch", "artifact_bytes"])
def test_no_text_in_place_of_a_number_reaches_a_shell(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} must be a whole number"):
        Plan.from_dict({**PLAN.to_dict(), key: "$(touch x)"})


def test_a_bundle_with_a_steering_name_of_a_recipe_is_not_shown() -> None:
    with pytest.raises(InputError, match="recipe must be"):
        Plan.from_dict({**PLAN.to_dict(), "recipe": "q4\x1b]0;x\x07"})


@pytest.mark.parametrize("key", list(HEALTH_FIELDS))
def test_a_health_report_with_an_odd_value_is_refused_or_judged(key: str) -> None:
    good = Health(text="fine, thanks", n_out=5, decode_tps=3.0).to_dict()
    for value in ODD:
        try:
            judge(parse_health({**good, key: value}), PLAN)
        except InputError as error:
            assert key in str(error)


def test_a_figure_that_is_none_does_not_pass_for_not_measured() -> None:
    good = Health(text="fine", n_out=5).to_dict()
    for value in (10**400, math.nan, "99", True, -1):
        with pytest.raises(InputError, match="decode_tps"):
            parse_health({**good, "decode_tps": value})


def test_a_state_keeps_only_facts_of_their_kind() -> None:
    release = "ab" * 32
    for value in ODD:
        document = {"kind": KIND, "history": [release], "releases": {release: {"name": value}}}
        state = parse_state(json.dumps(document).encode())
        assert state is not None and state.history == (release,)
        assert isinstance(state.releases[release].get("name", ""), (str, type(None)))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(PLAN_FIELDS)), json_like, min_size=1, max_size=4))
def test_no_plan_crashes(changes: dict[str, Any]) -> None:
    with contextlib.suppress(InputError):
        use_plan(Plan.from_dict({**PLAN.to_dict(), **changes}))
