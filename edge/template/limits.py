"""The budget of one chat-template run: steps, seconds, and the size of every value made.

A template can compute for hours or fill the memory: `'a' * 10**10`, `'%999999999d' % 1`. Python
cannot interrupt such an operation, so each is estimated *before* it runs. The rule that bounds
everything else: no value may be larger, written out in full, than `MAX_VALUE_CHARS`.
"""

import itertools
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MAX_OUTPUT_CHARS = 4 * 1024**2
MAX_VALUE_CHARS = 8 * 1024**2
MAX_ITEMS = 2**19
MAX_DEPTH = 64  # of nested lists and dicts
MAX_INT_BITS = 4096
MAX_STEPS = 2_000_000
MAX_SECONDS = 4.0
#: Characters that C code copies, compares or searches while Python makes one step.
CHARS_PER_STEP = 1024
MAX_WIDTH = 1000  # of padding and indentation
# All strings and lists made in one run, together. Templates that build their text in a variable
# copy it at every step, so that a long conversation may cost many times its own size.
BASE_TOTAL_CHARS = 64 * 1024**2
TOTAL_PER_INPUT_CHAR = 1024

#: Numbers beyond Python's hash prime that may be hashed or ordered together.
MAX_LARGE = 1000
_HASH_PRIME = 2**61 - 1

_DICT_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
# All linear in the text, which is hostile too: no two parts of a pattern can match one character.
_FORMAT_SPEC = re.compile(r"\{[^{}:]*:([^{}]*)\}")
_NESTED_BRACES = re.compile(r"\{[^{}]*\{")
_PERCENT_SPEC = re.compile(r"%(?:\([^)%]*\))?([^a-zA-Z%]*)")
_NUMBER = re.compile(r"\d+")


class LimitError(Exception):
    """A template used more than it may. Deliberately no ValueError: Jinja swallows those."""


class Size(NamedTuple):
    """Of a value written out in full: characters, containers inside each other, number of parts."""

    chars: int
    depth: int
    parts: int


class RenderBudget:
    """What one run may still use; raises LimitError at the first operation that is too much."""

    def __init__(self, *, max_seconds: float = MAX_SECONDS) -> None:
        self.steps = 0
        self.total_chars = 0
        self.macro_depth = 0
        self.max_total_chars = BASE_TOTAL_CHARS
        self.max_seconds = max_seconds
        self.start()
        # Containers are immutable here, so a size once measured stays true. Keeping the container
        # keeps its id from being given to another one.
        self._sizes: dict[int, tuple[Any, Size]] = {}

    def start(self) -> None:
        """Let the time allowed begin now."""
        self.deadline = time.monotonic() + self.max_seconds

    def step(self, count: int = 1) -> None:
        """One operation, or the `count` of a larger one."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise LimitError(f"it takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise LimitError(f"it takes more than {self.max_seconds:g} s")

    def allow(self, chars: float, what: str) -> None:
        """Refuse an operation whose result would have more than the allowed characters."""
        if chars > MAX_VALUE_CHARS:
            raise LimitError(f"{what} would make a value of {chars:.0f} characters")

    def charge(self, chars: int) -> None:
        """Count characters made towards the total of the run."""
        self.total_chars += chars
        if self.total_chars > self.max_total_chars:
            raise LimitError(f"it makes more than {self.max_total_chars} characters in all")

    def charge_value(self, value: Any) -> Any:
        """Measure and charge a new value; returns it."""
        self.step()
        size = self.measure(value)
        self.allow(size.chars, "an operation")
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.charge(16 * len(value))
        return value

    def accept_input(self, value: Any) -> None:
        """Measure data handed to the template, and allow work in proportion to it."""
        size = self.measure(value)
        self.allow(size.chars, "the conversation")
        self.max_total_chars += TOTAL_PER_INPUT_CHAR * size.chars

    def measure(self, value: Any, depth: int = 0) -> Size:
        """Size of any value that a template can hold."""
        if isinstance(value, str):
            return Size(len(value), 0, 1)
        if isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise LimitError(f"it makes an integer of {value.bit_length()} bits")
            return Size(8, 0, 1)
        if isinstance(value, (list, tuple, dict, *_DICT_VIEWS)):
            return self._measure_container(value, depth)
        return Size(8, 0, 1)

    def _measure_container(self, value: Any, depth: int) -> Size:
        known = self._sizes.get(id(value))
        if known:
            return known[1]
        if depth > MAX_DEPTH:
            raise LimitError(f"it nests values more than {MAX_DEPTH} deep")
        self.step(1 + len(value) // 16)
        items: Iterable[Any] = value
        if isinstance(value, dict):
            items = itertools.chain(value.keys(), value.values())
        chars, below, parts = 2, 0, 1
        for item in items:
            size = self.measure(item, depth + 1)
            chars += size.chars + 8
            below = max(below, size.depth)
            parts += size.parts
        size = Size(chars, below + 1, parts)
        if size.depth > MAX_DEPTH:
            raise LimitError(f"it nests values more than {MAX_DEPTH} deep")
        self.allow(chars, "a list or dict")
        self._sizes[id(value)] = (value, size)
        return size

    def take(self, items: Iterable[Any]) -> list[Any]:
        """All items of an iterable, however lazy, up to the limit."""
        taken = list(itertools.islice(items, MAX_ITEMS + 1))
        self.step(1 + len(taken) // 16)
        if len(taken) > MAX_ITEMS:
            raise LimitError(f"it makes a list of more than {MAX_ITEMS} items")
        return taken

    def count(self, items: Any) -> Any:
        """Iterate over `items`, one step each; keeps `len()` where there is one."""
        has_length = hasattr(items, "__len__")
        return CountedSequence(self, items) if has_length else self._count_items(items)

    def _count_items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item


class CountedSequence:
    """A loop's sequence that charges every round."""

    def __init__(self, budget: RenderBudget, items: Any) -> None:
        self._budget, self._items = budget, items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return self._budget._count_items(self._items)


# ---- estimates before an operation ------------------------------------------------------------


def check_operator(budget: RenderBudget, operator: str, left: Any, right: Any) -> None:
    """Estimate `left operator right` for `+ * ** %`."""
    if operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
        bits = left.bit_length() * right
        if bits > MAX_INT_BITS:
            raise LimitError(f"** would make an integer of about {bits:.3g} bits")
    elif operator == "%" and isinstance(left, str):
        check_percent(budget, left, right)
    elif operator == "+" and isinstance(left, (str, list, tuple)):
        budget.allow(budget.measure(left).chars + budget.measure(right).chars, "+")
    elif operator == "*":
        for sequence, factor in ((left, right), (right, left)):
            if isinstance(sequence, (str, list, tuple)) and isinstance(factor, int):
                budget.allow(budget.measure(sequence).chars * max(0, factor), "*")
                n_items = len(sequence) * max(0, factor)
                if not isinstance(sequence, str) and n_items > MAX_ITEMS:
                    raise LimitError(f"* would make a list of {n_items} items")


def is_lazy(value: Any) -> bool:
    """Whether a value makes its items only when they are asked for."""
    return hasattr(value, "__next__") or isinstance(value, range)


def check_equal(budget: RenderBudget, left: Any, right: Any) -> None:
    """Charge one comparison: what the smaller of the two holds, all in one operation of C."""
    one, other = budget.measure(left), budget.measure(right)
    chars = min(one.chars, other.chars)
    budget.step(1 + min(one.parts, other.parts) // 16 + chars // CHARS_PER_STEP)


def check_contains(budget: RenderBudget, item: Any, container: Any) -> None:
    """Charge `item in container`: a search in a text, or a comparison with every item."""
    if isinstance(container, str):
        check_find(budget, item, container)
        return
    if isinstance(container, dict):
        size = budget.measure(item)
        budget.step(1 + size.parts // 16 + size.chars // CHARS_PER_STEP)
        return
    n_items = len(container) if hasattr(container, "__len__") else 0
    one, all_items = budget.measure(item), budget.measure(container)
    parts = min(all_items.parts, n_items * one.parts)
    chars = min(all_items.chars, n_items * one.chars)
    budget.step(1 + (n_items + parts) // 16 + chars // CHARS_PER_STEP)


def check_find(budget: RenderBudget, needle: Any, text: str) -> None:
    """Charge the search for `needle`. Python compares up to about 100 characters at each place."""
    width = min(len(needle), 100) if isinstance(needle, str) else 1
    budget.step(1 + len(text) * max(1, width // 4) // CHARS_PER_STEP)


def check_ordering(budget: RenderBudget, items: Any) -> None:
    """Charge sorting or hashing: about log n comparisons for each item. Integers are hashed modulo
    a prime of 61 bits: larger ones can share a hash, which makes a set or a dict quadratic.
    """
    size = budget.measure(items)
    rounds = max(1, size.parts.bit_length())
    budget.step(1 + rounds * (size.parts // 16 + size.chars // CHARS_PER_STEP))
    if isinstance(items, str):
        return
    values = items.keys() if isinstance(items, dict) else items
    if sum(isinstance(v, (int, float)) and abs(v) >= _HASH_PRIME for v in values) > MAX_LARGE:
        raise LimitError(f"it orders more than {MAX_LARGE} numbers beyond 2**61")


def check_percent(budget: RenderBudget, text: str, values: Any) -> None:
    """Estimate `text % values`."""
    specs = _PERCENT_SPEC.findall(text)
    if any("*" in spec for spec in specs):
        raise LimitError("it takes a format's width from a value")
    _check_fields(budget, len(specs), specs, values, len(text))


def check_format(
    budget: RenderBudget, text: str, values: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """Estimate `text.format(*values, **named)`."""
    if _NESTED_BRACES.search(text.replace("{{", "").replace("}}", "")):
        raise LimitError("it takes a format's width from a value")
    _check_fields(
        budget, text.count("{"), _FORMAT_SPEC.findall(text), (values, dict(named)), len(text)
    )


def _check_fields(
    budget: RenderBudget, n: int, specs: Iterable[str], values: Any, base: int
) -> None:
    """At most `n` fields, each as wide as its spec or as all values together."""
    widths = [number for spec in specs for number in _NUMBER.findall(spec)]
    if any(len(number) > 4 for number in widths):
        raise LimitError("it formats a value with a width of more than 9999")
    widest = max((int(number) for number in widths), default=0)
    budget.allow(base + n * (budget.measure(values).chars + widest), "formatting")


def check_replace(budget: RenderBudget, text: str, old: str, new: str, count: int | None) -> None:
    """Estimate `text.replace(old, new, count)`."""
    found = text.count(old) if old else len(text) + 1
    if count is not None and count >= 0:
        found = min(found, count)
    budget.allow(len(text) + found * max(0, len(new) - len(old)), "replace")


def check_join(budget: RenderBudget, separator: str, items: Sequence[Any]) -> None:
    """Estimate `separator.join(items)`."""
    chars = sum(budget.measure(item).chars for item in items)
    budget.allow(chars + len(separator) * len(items), "join")


def check_width(*widths: Any) -> None:
    """Refuse padding, indentation or precision beyond what text for people needs."""
    for width in widths:
        too_wide = isinstance(width, (int, float)) and not abs(width) <= MAX_WIDTH
        if too_wide or (isinstance(width, str) and len(width) > MAX_WIDTH):
            raise LimitError(f"it asks for a width of more than {MAX_WIDTH}")


def check_split(text: str, separator: Any) -> None:
    """Estimate the pieces of `text.split(separator)`."""
    known = isinstance(separator, str) and separator
    pieces = text.count(separator) + 1 if known else math.ceil(len(text) / 2)
    if pieces > MAX_ITEMS:
        raise LimitError(f"split would make about {pieces} pieces")
