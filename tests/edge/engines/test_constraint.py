"""Answers held to a form: valid on every engine, in the room they have, or refused."""

import json

import jsonschema
import pytest

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
    loop = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, options]}}, "$ref": "#/$defs/a"}
    with pytest.raises(UsageError):
        check_constraint(schema(loop))
