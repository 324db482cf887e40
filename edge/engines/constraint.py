"""Hold answers to a schema, a pattern or a choice, by masks over logits that llguidance computes.

A token is sampled first and masked only when it is refused. Forced tokens are not sampled at all.
When time runs short, tokens that close what is open are preferred: valid JSON, in time.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from boardfit.edge.engines.vocabulary import EngineVocabulary
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.requirements import install_line
from boardfit.edge.types import Constraint, GenerationConfig
from boardfit.edge.units import printable

MAX_TEXT, _MAX_DEPTH, _MAX_CHOICES = 64 * 1024, 64, 4096
# Between the parts of JSON one space may stand: more would be a way to fill time without end.
_JSON = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
# A schema that needs more is refused; llguidance's own limits would let it think for seconds.
_LIMITS = {"initial_lexer_fuel": 300_000, "max_grammar_size": 200_000}
_CLOSING = re.compile(rb'[\s"}\]]+')
LONGEST_WAY = 512
# What is kept free where no way to the end is known.
_UNKNOWN_WAY = 64
#: Tokens beyond the shortest way to the end that are kept free.
_MARGIN = 4
_SEARCH_EVERY = 8
_MOST_PRODUCTS, _OPTIONS = 512, ("anyOf", "oneOf")
_TOGETHER = (*_OPTIONS, "allOf", "$ref")
_DIGIT = re.compile(r"(?<!\\)((?:\\\\)*)\\d")
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")


class TokenSampler(Protocol):
    """Chooses a token under a pressure. `source` is what `SequenceEngine._logits` returns."""

    def sample(self, source: Any, pressure: float, index: int, /) -> int: ...


class Grammars:
    """Compiles constraints for one vocabulary, whose token tree is made when first needed."""

    def __init__(self, vocabulary: EngineVocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None
        self._ranks: Any = None
        self._latest: tuple[Constraint, Any] = Constraint("choice", ""), None
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> Any:
        """A matcher at its beginning. Raises UsageError for what cannot be enforced, and
        EngineMissingError without llguidance. The latest is kept: it is asked for when a question
        is admitted, and again when its answer begins.
        """
        known, matcher = self._latest
        if constraint.kind != known.kind or constraint.text != known.text:
            matcher = self._compile(constraint)
            self._latest = constraint, matcher
        return matcher.deep_copy()

    def _compile(self, constraint: Constraint) -> Any:
        lib = load_llguidance()
        grammar = _write_grammar(lib, constraint)
        limits = lib.LLParserLimits(**_LIMITS)
        matcher = lib.LLMatcher(self.tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what is too complex often shows with the first mask only
        if matcher.is_error():
            raise _refuse(constraint, matcher.get_error())
        warnings = matcher.get_grammar_warnings()
        if warnings:
            raise _refuse(constraint, warnings[0])
        return matcher

    @property
    def tokenizer(self) -> Any:
        """llguidance's tree of the vocabulary."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _make_tokenizer(self._vocabulary)
            return self._tokenizer

    def closing(self, allowed: Any) -> Any:
        """Those of the `allowed` tokens (bool [n_vocab]) that bring JSON closest to its end."""
        if self._ranks is None:
            self._ranks = self._rank_tokens()
        outside, inside, letters = self._ranks
        ranks = (inside if allowed[letters].any() else outside) * allowed
        return ranks == max(ranks.max(), 1)

    def _rank_tokens(self) -> tuple[Any, Any, list[int]]:
        """How much each token brings JSON to its end, outside of its strings and within them (int8
        [n_vocab], more is better), and letters that stand within strings only.
        """
        import numpy as np

        n, piece = self.tokenizer.vocab_size, self._vocabulary.piece
        ranks = np.array([_rank(piece(token)) for token in range(n)], np.int8).T
        ranks[:, list(self._vocabulary.end_tokens)] = 6
        letters = [token for token in range(n) if piece(token) in (b"x", b"q", b"Z")]
        return ranks[0], ranks[1], letters

    def shortest(self, matcher: Any) -> int:
        """About how many tokens lead from here to a valid end, at the least; more than
        `LONGEST_WAY` where no way was found.
        """
        way, n = matcher.deep_copy(), 0
        while not (way.is_accepting() or way.is_stopped()) and n < LONGEST_WAY:
            forced = way.compute_ff_tokens()
            tokens = forced or [int(self.closing(allowed_tokens(way)).argmax())]
            if not way.consume_tokens(tokens):
                return LONGEST_WAY + 1
            n += len(tokens)
        return n + 1  # the token that ends the turn


def check_constraint(constraint: Constraint) -> None:
    """Raise UsageError for what no vocabulary could enforce; EngineMissingError if none is tried,
    because llguidance is missing.
    """
    lib = load_llguidance()
    grammar, limits = _write_grammar(lib, constraint), lib.LLParserLimits(**_LIMITS)
    check = lib.LLMatcher.validate_grammar_with_warnings
    _, problems = check(grammar, None, limits=limits)
    if problems:
        raise _refuse(constraint, problems[0])


class ConstrainedSampler:
    """A sampler whose tokens together keep to a constraint, and end within `room` tokens. `mask`
    puts -inf at the logits of a `source` that are False in a row of bool. Not for two streams.
    """

    def __init__(
        self,
        grammars: Grammars,
        vocabulary: EngineVocabulary,
        config: GenerationConfig,
        inner: TokenSampler,
        mask: Callable[[Any, int, Any], Any],
        room: int,
    ) -> None:
        assert config.constraint is not None
        self._constraint = constraint = config.constraint
        self._grammars, self._vocabulary = grammars, vocabulary
        self._inner, self._mask, self._config = inner, mask, config
        self._matcher = grammars.compile(constraint)
        self._is_free, self._text = bool(constraint.after or constraint.thoughts), b""
        self._after = constraint.after.encode()
        self._room, self._shortest, self._until_search = room, 0, 0
        self.forced: list[int] = [] if self._is_free else self._matcher.compute_ff_tokens()

    @property
    def is_done(self) -> bool:
        """Whether nothing may follow."""
        return not self._is_free and bool(self._matcher.is_stopped())

    def sample(self, source: Any, pressure: float = 0.0, index: int = -1) -> int:
        """The next token; it counts as written."""
        self._room -= 1
        if self._is_free:
            return self._sample_free(source, index)
        token = self.forced.pop(0) if self.forced else self._sample_bound(source, index)
        if not self._matcher.consume_token(token):
            raise _refuse(self._constraint, self._matcher.get_error())
        if not self.forced:
            self.forced = list(self._matcher.compute_ff_tokens())
        return token

    def check(self, guesses: Sequence[int]) -> int:
        """How many of `guesses`, in a row, may be written next."""
        if self._is_free:
            return 0
        return int(self._matcher.validate_tokens(list(guesses)))

    def _sample_bound(self, source: Any, index: int) -> int:
        must_close = self._must_close()
        if not must_close:
            token = self._inner.sample(source, 0.0, index)
            if self._matcher.validate_tokens([token]) == 1:
                return token
        allowed = allowed_tokens(self._matcher)
        if must_close:
            allowed = self._grammars.closing(allowed)
        return self._inner.sample(self._mask(source, index, allowed), 0.0, index)

    def _must_close(self) -> bool:
        """Whether the time left is needed for the way to the end. The way is searched again every
        few tokens, and at each one while time is short.
        """
        n_left: float = self._room + 1
        if self._config.tokens_left is not None:
            n_left = min(n_left, self._config.tokens_left())
        if n_left > LONGEST_WAY + _MARGIN:  # longer than any way that counts
            return False
        self._until_search -= 1
        if self._until_search < 0 or n_left < 2 * (self._shortest + _MARGIN):
            found = self._grammars.shortest(self._matcher)
            self._shortest = found if found <= LONGEST_WAY else _UNKNOWN_WAY
            self._until_search = _SEARCH_EVERY
        return n_left <= self._shortest + _MARGIN

    def _sample_free(self, source: Any, index: int) -> int:
        """A token before the constraint begins. One that ends a marker and goes on with what the
        constraint does not allow is not taken.
        """
        import numpy as np

        others = np.ones(self._grammars.tokenizer.vocab_size, bool)
        while True:
            token = self.forced.pop(0) if self.forced else self._inner.sample(source, 0.0, index)
            rest = self._bound_part(self._text + self._written(token))
            if rest is None:
                self._text += self._written(token)
                return token
            is_first = not (self._after or self._text)
            if is_first and rest == self._written(token):  # no thoughts: the answer begins here
                self._is_free, self._room = False, self._room + 1
                self.forced = list(self._matcher.compute_ff_tokens())
                return self.sample(source, 0.0, index)
            tokens = self._grammars.tokenizer.tokenize_bytes(rest) if rest else []
            if self._matcher.try_consume_tokens(tokens) == len(tokens):
                self._is_free = False
                self.forced = list(self._matcher.compute_ff_tokens())
                return token
            self._matcher.reset()
            others[token] = False
            source = self._mask(source, index, others)

    def _bound_part(self, text: bytes) -> bytes | None:
        """What of a text written so far the constraint is for; None while it has not begun."""
        if self._constraint.thoughts is not None:
            start, end = (marker.encode() for marker in self._constraint.thoughts)
            begun = text.lstrip()
            if begun[: len(start)] == start[: len(begun)]:
                if 0 < len(begun) < len(start):  # nothing else may follow half a marker
                    rest = start[len(begun) :]
                    self.forced = self._grammars.tokenizer.tokenize_bytes(rest)
                at = begun.find(end, len(start))
                if at < 0:
                    return None
                text = begun[at + len(end) :].lstrip()
        if not self._after:
            return text
        at = text.find(self._after)
        return text[at + len(self._after) :] if at >= 0 else None

    def _written(self, token: int) -> bytes:
        return self._vocabulary.piece(token) or self._vocabulary.written(token).encode()


def allowed_tokens(matcher: Any) -> Any:
    """Which tokens may come next: bool [n_vocab]."""
    import numpy as np

    return np.frombuffer(matcher.compute_logit_bias(), np.uint8) != 0


def load_llguidance() -> Any:
    """The library. Raises EngineMissingError with how to install it."""
    try:
        import llguidance
        import numpy  # noqa: F401
    except ImportError as error:
        raise EngineMissingError(
            f"answers by a schema or a choice need the Python package {error.name!r}",
            next_step=install_line("constrain"),
        ) from error
    return llguidance


class _Words:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, vocabulary: EngineVocabulary) -> None:
        self._vocabulary = vocabulary
        ends, self.bos_token_id = list(vocabulary.end_tokens), vocabulary.bos
        self.eos_token_id = ends[-1] if ends else 0
        self.tokens = [vocabulary.piece(token) for token in range(vocabulary.n_tokens)]
        self.special_token_ids = [i for i, piece in enumerate(self.tokens) if not piece]
        for token in self.special_token_ids:
            self.tokens[token] = vocabulary.written(token).encode() or b"<%d>" % token

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return self._vocabulary.tokenize(text, special=False)


def _make_tokenizer(vocabulary: EngineVocabulary) -> Any:
    lib = load_llguidance()
    if not vocabulary.end_tokens:
        raise UsageError(
            "the vocabulary names no token that ends an answer: it cannot be held to a schema",
            next_step="ask without a schema or a choice",
        )
    words = lib.TokenizerWrapper(_Words(vocabulary))
    return lib.LLTokenizer(words, eos_token=list(vocabulary.end_tokens))


def _rank(piece: bytes) -> tuple[int, int]:
    text = piece.strip()
    if not text:
        return 1, 1
    if not _CLOSING.fullmatch(text):
        return 3, 3
    # Within a string brackets are text; outside, a quote opens one.
    has_quote = b'"' in text
    return (4 if text == b'"' else 2 if has_quote else 5), (5 if text[:1] == b'"' else 2)


def _write_grammar(lib: Any, constraint: Constraint) -> str:
    kind, text = constraint.kind, constraint.text
    if len(text) > MAX_TEXT:
        raise UsageError(f"a {kind} of {len(text)} characters; the limit is {MAX_TEXT}")
    matcher = lib.LLMatcher
    if kind == "regex":
        # As in JSON's patterns a digit is 0 to 9; there are 700 more in Unicode.
        return str(matcher.grammar_from_regex(_DIGIT.sub(r"\1[0-9]", text)))
    if kind == "lark":
        return str(matcher.grammar_from_lark(text))
    value = _read_json(text, kind)
    if kind == "choice":
        return str(matcher.grammar_from_regex(_write_choice(value)))
    if not isinstance(value, (dict, bool)):
        raise UsageError(f"a schema is a JSON object, got {printable(text):.60}")
    if isinstance(value, dict):
        value.pop("x-guidance", None)  # it would change what is enforced
        _check_products(value)
    return str(matcher.grammar_from_json_schema(json.dumps(value), overrides=_JSON))


def _read_json(text: str, kind: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the {kind} is not JSON: {str(error)[:80]}") from None
    level, depth = [value], 0
    while level := [inner for each in level for inner in _children(each)]:
        if (depth := depth + 1) > _MAX_DEPTH:
            raise UsageError(f"the {kind} nests more than {_MAX_DEPTH} deep")
    return value


def _check_products(schema: dict[str, Any]) -> None:
    """Raise UsageError for schemas that must hold together (`allOf`, a `$ref` beside `anyOf`) and
    have alternatives whose products, which llguidance writes out before it counts them, would take
    seconds.
    """
    for part in _walk(schema):
        together = [key for key in _TOGETHER if isinstance(part, dict) and key in part]
        if "allOf" in together or len(together) > 1:
            product = 1
            for n, inner in enumerate(_walk(part, schema)):
                product *= _count_options(inner)
                if product > _MOST_PRODUCTS or n > MAX_TEXT:
                    raise UsageError(
                        "the schema cannot be enforced: too many alternatives under allOf, or "
                        "beside $ref",
                        next_step="write the combined schema out",
                    )


def _count_options(schema: Any) -> int:
    found = (schema.get(key) for key in _OPTIONS) if isinstance(schema, dict) else ()
    return math.prod(len(each) for each in found if isinstance(each, list) and each)


def _walk(value: Any, root: dict[str, Any] | None = None) -> Iterator[Any]:
    """A JSON value and all below it, and with `root` what local references in it lead to, as often
    as they are made: of those that go round there is no end.
    """
    waiting = [value]
    while waiting:
        yield (each := waiting.pop())
        waiting.extend(_children(each))
        reference = each.get("$ref") if isinstance(each, dict) and root is not None else None
        if isinstance(reference, str) and reference.startswith("#"):
            found: Any = root
            for name in reference[1:].strip("/").split("/") if reference != "#" else ():
                found = found.get(name) if isinstance(found, dict) else None
            waiting.append(found)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _write_choice(value: Any) -> str:
    is_list = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    if not is_list or len(value) > _MAX_CHOICES:
        raise UsageError(f"a choice is a list of 1 to {_MAX_CHOICES} texts that are not empty")
    return "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in value)


def _refuse(constraint: Constraint, why: str) -> UsageError:
    words = {"json_schema": "the schema", "regex": "the pattern", "choice": "the choice"}
    what = words.get(constraint.kind, "the grammar")
    if why.startswith("NoExtension"):
        why = "nothing satisfies it (does a $ref lead to itself?)"
    return UsageError(
        f"{what} cannot be enforced: {printable(why.strip().splitlines()[0]):.300}",
        next_step="leave out the part that is named",
    )
