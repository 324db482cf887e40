"""Answers held to a form: valid on every engine, in the room they have, or refused."""

import contextlib
import json
from typing import Any

import hypothesis.strategies as st
import jsonschema
import pytest
from hypothesis import given, settings

from boardfit.edge.engines.constraint import check_constraint
from boardfit.edge.errors import UsageError
from boardfit.edge.types import Constraint, Engine, GenerationConfig

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 3},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def answer(engine: Engine, constraint: Constraint, **config: object) -> str:
    prompt = engine.prompt("Anna is 34.")
    settings = GenerationConfig(constraint=constraint, **{"max_tokens": 60, **config})  # type: ignore[arg-type]
    events = list(engine.stream(prompt, settings))
    assert events[-1].finish_reason == "stop"
    return "".join(event.text for event in events)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_json_fits_its_schema(random_engine: Engine, temperature: float) -> None:
    """A model of random weights wants nothing of this."""
    text = answer(random_engine, schema(SCHEMA), temperature=temperature)
    jsonschema.validate(json.loads(text), SCHEMA)


def test_one_of_some_texts(random_engine: Engine) -> None:
    choice = Constraint("choice", json.dumps(["yes.", "no (never)"]))
    assert answer(random_engine, choice) in ("yes.", "no (never)")


def test_forms_follow_each_other(random_engine: Engine) -> None:
    """What is kept of one answer's form is at its beginning for the next."""
    yes, no = (Constraint("choice", json.dumps([text])) for text in ("yes.", "no."))
    texts = [answer(random_engine, form) for form in (yes, yes, no, yes)]
    assert texts == ["yes.", "yes.", "no.", "yes."]


def test_a_pattern(random_engine: Engine) -> None:
    assert len(answer(random_engine, Constraint("regex", r"\d{3}-[a-c]{2}"))) == 6


def test_an_answer_closes_while_there_is_room(random_engine: Engine) -> None:
    constraint = schema(SCHEMA)
    n_least = random_engine.count_shortest(constraint)
    text = answer(random_engine, constraint, max_tokens=n_least + 6)
    jsonschema.validate(json.loads(text), SCHEMA)


def test_an_answer_closes_while_there_is_time(random_engine: Engine) -> None:
    left = iter(range(40, -1000, -1))
    text = answer(random_engine, schema(SCHEMA), max_tokens=-1, tokens_left=lambda: next(left))
    jsonschema.validate(json.loads(text), SCHEMA)
    assert next(left) >= 0


def test_what_follows_a_marker_is_held_to_the_form(scripted_engine: Engine) -> None:
    """The scripted model says what it says up to the marker."""
    free = list(scripted_engine.stream(scripted_engine.prompt("a"), GenerationConfig(max_tokens=8)))
    said = "".join(event.text for event in free)
    choice = Constraint("choice", json.dumps(["@1", "@2"]), after=said[:2])
    prompt = scripted_engine.prompt("a")
    events = scripted_engine.stream(prompt, GenerationConfig(constraint=choice, max_tokens=20))
    text = "".join(event.text for event in events)
    assert text.startswith(said[:2]) and text.endswith(("@1", "@2"))


@pytest.mark.parametrize(
    "value",
    [{"not": {}}, {"uniqueItems": True}, {"$ref": "http://x/y"}, {"type": "word"},
     {"type": "string", "pattern": "(?<=x)*"}, {"type": "string", "format": "strange"}],
    ids=lambda value: next(iter(reversed(value))),
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="cannot be enforced"):
        check_constraint(schema(value))


@pytest.mark.parametrize(
    "text", ["[1]", "{", '"a"', "[" * 100 + "]" * 100, '{"a":' * 100000], ids=range(5)
)
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_constraint(Constraint("json_schema", text))


def test_products_of_alternatives_are_refused_before_they_are_made() -> None:
    options = {"anyOf": [{"type": "string", "pattern": "a.*b"}, {"type": "string"}]}
    with pytest.raises(UsageError, match="too many alternatives"):
        check_constraint(schema({"allOf": [options] * 16}))
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}", "anyOf": [options] * 8} for i in range(4)}
    with pytest.raises(UsageError, match="too many alternatives"):
        check_constraint(schema({"$defs": {**links, "d4": {}}, "$ref": "#/$defs/d0"}))
    loop = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, options]}}, "$ref": "#/$defs/a"}
    with pytest.raises(UsageError):
        check_constraint(schema(loop))


def test_what_nothing_satisfies_is_refused(scripted_engine: Engine) -> None:
    loop = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    with pytest.raises(UsageError, match="nothing satisfies"):
        scripted_engine.count_shortest(schema({"$defs": loop, "$ref": "#/$defs/a"}))


_PATTERNS = st.sampled_from(
    ["a*", "(a|b)*c", "a{1,500}", ".*a.*b", "(.{0,50}x){0,50}", "(?=a)b", "(a+)+$", "(a?){99}a{99}",
     "(" * 50 + "x" + ")" * 50, "(((a{1,20}){1,20}){1,20}){1,20}", "[^a]{100}", "(" * 5000]
)  # fmt: skip
_LEAVES = st.one_of(
    st.builds(lambda p, n: {"type": "string", "pattern": p, "maxLength": n}, _PATTERNS,
              st.sampled_from([1, 100, 10**9])),
    st.builds(lambda low: {"type": "number", "minimum": low, "maximum": 1e300},
              st.sampled_from([0, 1e-300, -7.5])),
    st.builds(lambda n: {"enum": ["v" * i for i in range(n)]}, st.sampled_from([1, 900])),
    st.sampled_from([{"$ref": "#"}, {"$ref": "#/$defs/a"}]),
)  # fmt: skip


def _grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=12)
    return st.one_of(
        st.builds(lambda key, v: {key: v}, st.sampled_from(["anyOf", "oneOf", "allOf"]), several),
        st.builds(lambda v, n: {"type": "array", "items": v, "minItems": n}, inner,
                  st.sampled_from([0, 3, 10**9])),
        st.builds(lambda v: {"properties": {f"p{i}": v[i] for i in range(len(v))}}, several),
        st.builds(lambda p, v: {"patternProperties": {p: v}}, _PATTERNS, inner),
        st.builds(lambda a, b: {"allOf": a, "anyOf": b, "$ref": "#/$defs/a"}, several, several),
    )  # fmt: skip


@settings(max_examples=400, deadline=5000)
@given(st.recursive(_LEAVES, _grow, max_leaves=30), _LEAVES)
def test_hostile_schemas_are_judged_at_once(value: dict[str, Any], inner: dict[str, Any]) -> None:
    with contextlib.suppress(UsageError):
        check_constraint(schema({**value, "$defs": {"a": inner}}))
