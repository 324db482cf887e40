"""The Jinja sandbox that chat templates run in.

On top of Jinja's immutable sandbox only what chat templates need exists (`names.toml`), every
operation that can grow is estimated, and a pass over the parsed template sends loops, literals,
comparisons, slices, `~` and all output through counting filters. jinja2 is imported by functions.
"""

import contextlib
import functools
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import EngineMissingError, UnsafeInputError
from boardfit.edge.requirements import install_line
from boardfit.edge.template import limits
from boardfit.edge.template.limits import LimitError, RenderBudget

# Of the templates in upstream's models/templates the largest has 1,286 nodes, 60 names, 106 scopes.
MAX_NODES = 10_000
MAX_SCOPES = 1000
MAX_NAMES_TIMES_SCOPES = 250_000
MAX_MACRO_DEPTH = 64
MIN_JINJA = (3, 1, 6)  # earlier ones have known ways out of the sandbox (CVE-2025-27516)

# Lists of names: see the file.
NAMES = {
    key: frozenset(names.split())
    for key, names in load_toml("boardfit.edge.template", "names.toml")["sandbox"].items()
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
# Names that cannot be written in a template: they are put in by `_guard`.
_LOOP, _CONCAT, _VALUE, _COMPARE = "edge loop", "edge concat", "edge value", "edge compare"

current_budget: ContextVar[RenderBudget] = ContextVar("edge_template_budget")


def jinja() -> Any:
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError:
        raise EngineMissingError(
            "chat templates need jinja2, which is not installed",
            next_step=install_line("llama", "jinja2"),
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3])
    if version < MIN_JINJA:
        raise EngineMissingError(
            f"chat templates need jinja2 3.1.6 or later (older sandboxes leak), got "
            f"{jinja2.__version__}",
            next_step=install_line("llama", "jinja2"),
        )
    return jinja2


@functools.lru_cache(maxsize=1)
def environment() -> Any:
    """The sandbox as a `jinja2.Environment`. Rendering needs `current_budget` to be set."""
    jinja2 = jinja()
    from jinja2.ext import loopcontrols

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    # Not optimized, and a finalizer that needs the context: nothing is computed while compiling.
    sandbox = _sandbox_class()(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=jinja2.pass_context(_write_output),
        extensions=[_generation_tag(), loopcontrols],
    )
    sandbox.globals["namespace"] = _make_namespace_class()
    sandbox.globals["raise_exception"] = raise_exception
    del sandbox.globals["lipsum"]
    known = {**sandbox.filters, "tojson": _tojson}
    sandbox.filters = {
        **{name: _guarded_filter(name, known[name]) for name in sorted(NAMES["filters"])},
        _LOOP: lambda items: current_budget.get().count(items),
        _CONCAT: _concat,
        _VALUE: lambda value: current_budget.get().charge_value(value),
        _COMPARE: _compare,
    }
    sandbox.tests = {name: _guarded_test(name, test) for name, test in sandbox.tests.items()}
    return sandbox


# The classes are made in functions, since jinja2 may not be imported together with this module.


def _sandbox_class() -> Any:
    from jinja2.runtime import BlockReference, LoopContext, Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Cycler, Joiner, Namespace

    own_types = (LoopContext, Macro, BlockReference, Cycler, Joiner, Namespace)

    class TemplateSandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            return _guard(super()._parse(source, name, filename), self)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            known = isinstance(obj, own_types) or _is_allowed(obj, attr)
            return known and super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> Any:
            inner = super().wrap_str_format(value)
            return inner and functools.partial(_run_format, inner, value)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            budget = current_budget.get()
            limits.check_operator(budget, operator, left, right)
            return budget.charge_value(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            budget = current_budget.get()
            if isinstance(__obj, LoopContext) and args:  # a recursive loop's next level
                args = (budget.count(args[0]), *args[1:])
            args = _check_method(budget, __obj, args, kwargs)
            with _macro_depth(budget, isinstance(__obj, (Macro, LoopContext, BlockReference))):
                return budget.charge_value(super().call(__context, __obj, *args, **kwargs))

    return TemplateSandbox


def _generation_tag() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        """`{% generation %}` marks the assistant's text for training; here it only passes it."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("pass_through")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def pass_through(self, caller: Any) -> Any:
            return caller()

    return GenerationTag


def _make_namespace_class() -> Any:
    from jinja2.utils import Namespace

    class ClosedNamespace(Namespace):
        """As Jinja's, but it does not write out what it holds: that is not in its size."""

        def __repr__(self) -> str:
            return "<Namespace>"

    return ClosedNamespace


def _guard(tree: Any, sandbox: Any) -> Any:
    """Put the counting filters into a parsed template, and refuse what templates never need."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    _check_nodes(tree)

    def add_filter(node: Any, name: str) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Guard(NodeTransformer):
        def visit_For(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            node.iter = add_filter(node.iter, _LOOP)
            return node

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            return add_filter(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)

        def visit_List(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            return add_filter(node, _VALUE)

        visit_Dict = visit_List  # noqa: N815

        def visit_Getitem(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            # A slice is a copy; any other item exists already.
            return add_filter(node, _VALUE) if isinstance(node.arg, nodes.Slice) else node

        def visit_Compare(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            args = [x for op in node.ops for x in (nodes.Const(op.op, lineno=node.lineno), op.expr)]
            return nodes.Filter(node.expr, _COMPARE, args, [], None, None, lineno=node.lineno)

        def visit_Tuple(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            return node if node.ctx == "store" else add_filter(node, _VALUE)

        def visit_TemplateData(self, node: Any) -> Any:  # noqa: N802
            # A plain constant goes through the finalizer, which counts what is written.
            return nodes.Const(node.data, lineno=node.lineno)

    return Guard().visit(tree).set_environment(sandbox)


def _check_nodes(tree: Any) -> None:
    from jinja2 import nodes

    loading = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
    refused = (*loading, nodes.EvalContextModifier)
    scoped = (nodes.If, nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.With)
    count = scopes = 0
    names: set[str] = set()
    for node in tree.find_all(nodes.Node):
        count += 1
        scopes += isinstance(node, scoped)
        if isinstance(node, nodes.Name):
            names.add(node.name)
        if isinstance(node, refused):
            raise UnsafeInputError(
                f"chat template, line {node.lineno}: {type(node).__name__.lower()} is not allowed"
            )
    # Jinja's compiler copies the table of names at every scope: 3,000 of each take 7 s.
    for amount, limit, what in (
        (count, MAX_NODES, "syntax nodes"),
        (scopes, MAX_SCOPES, "scopes"),
        (scopes * len(names), MAX_NAMES_TIMES_SCOPES, "scopes × names"),
    ):
        if amount > limit:
            raise UnsafeInputError(
                f"the chat template is too large to compile: {amount} {what}, the limit is {limit}"
            )


# ---- what the sandbox calls -------------------------------------------------------------------


def _write_output(context: Any, value: Any) -> str:
    """Every piece of output, of macros and set-blocks too."""
    budget = current_budget.get()
    budget.step()
    if not isinstance(value, str):
        budget.measure(value)
    text = str(value)
    budget.charge(len(text))
    return text


def _is_allowed(obj: Any, attr: str) -> bool:
    """Whether a template may take `attr` of a value that is not one of Jinja's own."""
    if isinstance(obj, str):
        return attr in NAMES["str_methods"]
    if isinstance(obj, dict):
        return attr in NAMES["dict_methods"]
    if isinstance(obj, (list, tuple)):
        return attr in NAMES["list_methods"] or attr in getattr(obj, "_fields", ())
    return False


def _check_method(
    budget: RenderBudget, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Estimate a string method before it runs; returns the arguments to call it with."""
    text = getattr(method, "__self__", None)
    if method is dict and args and not isinstance(args[0], dict):
        pairs = budget.take(args[0])
        limits.check_ordering(
            budget, [pair[0] for pair in pairs if isinstance(pair, list) and pair]
        )
        return (pairs, *args[1:])
    if isinstance(text, (list, tuple)) and args:  # index, count
        limits.check_contains(budget, args[0], text)
    if not isinstance(text, str):
        return args
    name = method.__name__
    budget.allow(len(text), name)
    budget.step(len(text) // limits.CHARS_PER_STEP)
    if name in NAMES["search_methods"]:
        needle = args[0] if args else kwargs.get("sep")
        limits.check_find(budget, needle, text)
    if name == "replace" and len(args) >= 2:
        count = args[2] if len(args) > 2 else kwargs.get("count")
        limits.check_replace(budget, text, str(args[0]), str(args[1]), count)
    elif name == "join" and args:
        items = budget.take(args[0])
        limits.check_join(budget, text, items)
        return (items, *args[1:])
    elif name in ("ljust", "rjust", "center", "zfill"):
        limits.check_width(*args[:1])
    elif name in ("split", "rsplit", "splitlines"):
        limits.check_split(text, args[0] if args else kwargs.get("sep"))
    return args


def _run_format(inner: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
    """`str.format` and `str.format_map` after an estimate."""
    named = args[0] if method.__name__ == "format_map" and args else kwargs
    limits.check_format(current_budget.get(), method.__self__, args, named)
    return inner(*args, **kwargs)


@contextlib.contextmanager
def _macro_depth(budget: RenderBudget, counts: bool) -> Iterator[None]:
    if not counts:
        yield
        return
    budget.macro_depth += 1
    if budget.macro_depth > MAX_MACRO_DEPTH:
        raise LimitError(f"macros call each other more than {MAX_MACRO_DEPTH} deep")
    try:
        yield
    finally:
        budget.macro_depth -= 1


def _concat(values: Sequence[Any]) -> str:
    """The `~` operator."""
    budget = current_budget.get()
    limits.check_join(budget, "", values)
    text = "".join(map(str, values))
    budget.charge_value(text)
    return text


def _compare(left: Any, *rest: Any) -> Any:
    """A comparison, or a chain of them as in Python: `a < b < c`."""
    found: Any = True
    for name, right in zip(rest[::2], rest[1::2], strict=True):
        check = limits.check_contains if name in ("in", "notin") else limits.check_equal
        check(current_budget.get(), left, right)
        found = _COMPARISONS[name](left, right)
        if not found:
            return found
        left = right
    return found


def _guarded_test(name: str, function: Any) -> Any:
    """A test that is counted, as Jinja calls it after `is` and inside `select`. See below."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget.get()
        budget.step()
        value, *others = args[skipped:]
        if name == "in" and others:
            limits.check_contains(budget, value, others[0])
        elif name in NAMES["comparing_tests"] and others:
            limits.check_equal(budget, value, others[0])
        elif name in ("lower", "upper"):
            budget.step(budget.measure(value).chars // limits.CHARS_PER_STEP)
        return function(*args, **kwargs)

    return guarded


def _guarded_filter(name: str, function: Any) -> Any:
    """A filter that is estimated, run, and measured; Jinja's mark on it is kept."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget.get()
        budget.step()
        checked = _check_filter(budget, name, args[skipped:], kwargs)
        return budget.charge_value(function(*args[:skipped], *checked, **kwargs))

    return guarded


def _check_filter(
    budget: RenderBudget, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Estimate a filter before it runs; returns the arguments to run it with."""
    value, rest = args[0], args[1:]
    budget.allow(budget.measure(value).chars, name)
    if name in NAMES["width_filters"]:
        limits.check_width(*rest, *kwargs.values())
    size = len(value) if hasattr(value, "__len__") else 0
    if name in NAMES["sequence_filters"] and size > limits.MAX_ITEMS:
        raise LimitError(f"{name} of more than {limits.MAX_ITEMS} items")
    if isinstance(value, str) or name in NAMES["writing_filters"]:
        budget.step(budget.measure(value).chars // limits.CHARS_PER_STEP)
    if name in NAMES["ordering_filters"]:
        value = budget.take(value) if limits.is_lazy(value) else value
        limits.check_ordering(budget, value)
        return (value, *rest)
    if name in NAMES["lazy_filters"] and value and not isinstance(value, str):
        return (budget.count(value), *rest)
    if name == "join":
        items = budget.take(value)
        separator = rest[0] if rest else kwargs.get("d", "")
        limits.check_join(budget, str(separator), items)
        return (items, *rest)
    if name == "sum":  # of lists it copies the sum at every step
        items = budget.take(value)
        starts = [*rest[1:], *(v for k, v in kwargs.items() if k == "start")]
        if any(isinstance(v, (list, tuple)) for v in (*items, *starts)):
            raise LimitError("sum is for numbers")
        return (items, *rest)
    if name in _FILTER_CHECKS:
        _FILTER_CHECKS[name](budget, value, rest, kwargs)
    return args


def _check_indent(budget: RenderBudget, value: Any, rest: Any, kwargs: Any) -> None:
    width = rest[0] if rest else kwargs.get("width", 4)
    text = str(value)
    per_line = len(width) if isinstance(width, str) else width
    budget.allow(len(text) + (text.count("\n") + 1) * per_line, "indent")


def _check_tojson(budget: RenderBudget, value: Any, rest: Any, kwargs: Any) -> None:
    limits.check_width(*rest, *kwargs.values())
    indent = kwargs.get("indent", rest[1] if len(rest) > 1 else None)
    per_level = len(indent) if isinstance(indent, str) else int(indent or 0)
    size = budget.measure(value)
    budget.allow(size.chars + size.parts * size.depth * per_level, "tojson")


def _check_int(budget: RenderBudget, value: Any, rest: Any, kwargs: Any) -> None:
    # Converting digits takes quadratic time on Pythons without a limit of their own.
    if isinstance(value, str) and len(value) > 1000:
        raise LimitError("int of a string of more than 1000 characters")


def _check_replace(budget: RenderBudget, value: Any, rest: Any, kwargs: Any) -> None:
    given = [*rest, *(kwargs[key] for key in ("old", "new", "count") if key in kwargs)]
    old, new, count = [*given, None, None, None][:3]
    limits.check_replace(budget, str(value), str(old), str(new), count)


_FILTER_CHECKS: dict[str, Any] = {
    "indent": _check_indent,
    "tojson": _check_tojson,
    "int": _check_int,
    "format": lambda budget, value, rest, kwargs: limits.check_percent(
        budget, str(value), kwargs or tuple(rest)
    ),
    "replace": _check_replace,
}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escaping, as transformers defines it, unlike Jinja's own filter."""
    layout = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)
