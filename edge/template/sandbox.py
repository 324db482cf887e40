"""The Jinja sandbox that chat templates run in.

On top of Jinja's immutable sandbox only what chat templates need exists (`names.toml`). How long a
template runs and what memory it takes is for the process around it (`render.py`). jinja2 is
imported by functions.
"""

import functools
import json
import re
from typing import Any

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import EngineMissingError, UnsafeInputError
from boardfit.edge.requirements import install_line

MIN_JINJA = (3, 1, 6)  # earlier ones have known ways out of the sandbox (CVE-2025-27516)

# Lists of names: see the file.
NAMES = {
    key: frozenset(names.split())
    for key, names in load_toml("boardfit.edge.template", "names.toml")["sandbox"].items()
}


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
    """The sandbox as a `jinja2.Environment`."""
    jinja2 = jinja()
    from jinja2.ext import loopcontrols

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    # Not optimized: nothing is computed while compiling.
    sandbox = _sandbox_class()(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        extensions=[_generation_tag(), loopcontrols],
    )
    sandbox.globals["raise_exception"] = raise_exception
    del sandbox.globals["lipsum"]
    known = {**sandbox.filters, "tojson": _tojson}
    sandbox.filters = {name: known[name] for name in sorted(NAMES["filters"])}
    return sandbox


# The classes are made in functions, since jinja2 may not be imported together with this module.


def _sandbox_class() -> Any:
    from jinja2.runtime import BlockReference, LoopContext, Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Cycler, Joiner, Namespace

    own_types = (LoopContext, Macro, BlockReference, Cycler, Joiner, Namespace)

    class TemplateSandbox(ImmutableSandboxedEnvironment):
        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            return _check_nodes(super()._parse(source, name, filename))

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            known = isinstance(obj, own_types) or _is_allowed(obj, attr)
            return known and super().is_safe_attribute(obj, attr, value)

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


def _check_nodes(tree: Any) -> Any:
    """The parsed template, if it holds nothing that loads files or changes the escaping."""
    from jinja2 import nodes

    loading = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
    for node in tree.find_all((*loading, nodes.EvalContextModifier)):
        raise UnsafeInputError(
            f"chat template, line {node.lineno}: {type(node).__name__.lower()} is not allowed"
        )
    return tree


def _is_allowed(obj: Any, attr: str) -> bool:
    """Whether a template may take `attr` of a value that is not one of Jinja's own."""
    if isinstance(obj, str):
        return attr in NAMES["str_methods"]
    if isinstance(obj, dict):
        return attr in NAMES["dict_methods"]
    if isinstance(obj, (list, tuple)):
        return attr in NAMES["list_methods"] or attr in getattr(obj, "_fields", ())
    return False


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
