"""Render chat templates. They are programs from the model's author, so they count as hostile.

They run in Jinja's immutable sandbox with the whitespace rules, filters and functions of
transformers, and only the methods and filters that templates need exist. A template can compute for
hours or fill the memory: `'a' * 10**10`. So it runs in a child of limited time and memory, which
the kernel ends (`boardfit.edge.process.forked`). A server keeps one child for all its texts
(`kept_worker`).

    text = render(template, [{"role": "user", "content": "Hello"}], bos_token="<s>",
                  eos_token="</s>")
"""

import contextlib
import datetime
import functools
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from boardfit.edge.errors import EngineError, EngineMissingError, InputError, UnsafeInputError
from boardfit.edge.process.forked import (
    ForkedDeathError,
    ForkedWorker,
    can_fork,
    run_forked,
    serve_started,
)
from boardfit.edge.template.sandbox import NAMES, environment, jinja
from boardfit.edge.units import printable

MAX_TEMPLATE_CHARS = 128 * 1024
MAX_OUTPUT_CHARS = 4 * 1024**2
MAX_DEPTH = 64  # of nested lists and dicts that go in
MAX_SECONDS = 4.5

# Templates that a child has compiled and rendered in time, oldest first.
_MAX_PROVEN = 4
_proven: dict[str, None] = {}
# Children that are kept; the newest renders.
_workers: list[ForkedWorker] = []


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    now: datetime.datetime | None = None,
    max_seconds: float = MAX_SECONDS,
    **extra: Any,
) -> str:
    """The text of a conversation, as transformers' `apply_chat_template` renders it.

    `messages` and `extra` (tools, documents, enable_thinking, …) are plain data as in JSON. `now`
    is what `strftime_now` returns, the current time if None.

    Raises InputError when the template is broken or refuses the conversation, UnsafeInputError when
    it tries to leave the sandbox or uses too much, EngineMissingError without jinja2.
    """
    variables = _plain(
        {
            "tools": None,
            "documents": None,
            **extra,
            "messages": list(messages),
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_generation_prompt": add_generation_prompt,
        }
    )
    when = now.isoformat() if now else None
    request = json.dumps([template, variables, when]).encode()
    try:
        answer = _ask(request, template, max_seconds)
    except TimeoutError as error:
        raise UnsafeInputError(f"chat template stopped: {error}") from None
    except ForkedDeathError as error:
        is_memory = error.signal in (None, signal.SIGKILL)
        why = "it takes too much memory" if is_memory else f"it ended by signal {error.signal}"
        raise UnsafeInputError(f"chat template stopped: {why}") from None
    except OSError as error:
        raise EngineError(
            f"no process can be started to render the chat template: {error}",
            next_step="free memory, or end other programs",
        ) from None
    return _read_answer(answer, template)


def _ask(request: bytes, template: str, seconds: float) -> bytes:
    if not can_fork() and not _workers:  # one for this program's life: its start takes long
        _workers.append(ForkedWorker(_answer, module=__name__))
    if _workers:
        return _workers[-1].ask(request, seconds)
    jinja(), environment()  # imported once, here, and not in every child
    if template in _proven:  # known to compile in time: once for all children
        _compile(template)
    return run_forked(functools.partial(_answer, request), seconds)


def render_here(template: str, variables: dict[str, Any], now: datetime.datetime | None) -> str:
    """`render` in this process, where nothing limits it."""
    with _convert_errors():
        compiled = _compile(template)
        return _collect(compiled.generate({**variables, "strftime_now": _clock(now)}))


@contextlib.contextmanager
def kept_worker() -> Iterator[None]:
    """Render in one child that is forked now, and not in one for each text. It holds a copy of what
    this process changes later, so enter this while the process is small.
    """
    if not can_fork():
        yield
        return
    with contextlib.suppress(EngineMissingError):
        jinja(), environment()
    worker = ForkedWorker(_answer)
    with contextlib.suppress(OSError):
        worker.start()
    _workers.append(worker)
    try:
        yield
    finally:
        _workers.remove(worker)
        worker.close()


def _answer(request: bytes) -> bytes:
    """In the child: the text, or the error, as JSON."""
    template, variables, when = json.loads(request)
    now = datetime.datetime.fromisoformat(when) if when else None
    try:
        text = render_here(template, variables, now)
        found: dict[str, Any] = {"text": text}
    except (InputError, EngineMissingError) as error:
        found = {"error": type(error).__name__, "message": str(error), "next": error.next_step}
    return json.dumps(found).encode()


def _read_answer(answer: bytes, template: str) -> str:
    found = json.loads(answer)
    if "text" in found:
        _proven.pop(template, None)
        _proven[template] = None
        if len(_proven) > _MAX_PROVEN:
            del _proven[next(iter(_proven))]
        return str(found["text"])
    kinds = (InputError, UnsafeInputError, EngineMissingError)
    kind = next(kind for kind in kinds if kind.__name__ == found["error"])
    raise kind(found["message"], next_step=found["next"])


def parse(template: str) -> Any:
    """The template's syntax tree (`jinja2.nodes.Template`), checked. Raises like `render`."""
    with _convert_errors():
        _check_source(template)
        return environment().parse(template)


# ---- running ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _convert_errors() -> Iterator[None]:
    """Turn any error of a template's run into one of edge's errors."""
    jinja2 = jinja()
    try:
        yield
    except (InputError, EngineMissingError):
        raise
    except jinja2.exceptions.SecurityError as error:
        raise _security_error(str(error)) from None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"chat template, line {error.lineno}: {printable(error.message or 'syntax error')}"
        ) from None
    except jinja2.TemplateError as error:
        raise InputError(f"chat template refuses: {printable(str(error))}") from None
    except RecursionError:
        raise UnsafeInputError("chat template stopped: it nests or calls itself too deep") from None
    except MemoryError:  # ends the child, whose memory may stay scattered
        raise
    except Exception as error:  # a template can raise nearly anything: 1/0, None + 'a', {}[[]]
        reason = printable(f"{type(error).__name__}: {error}")
        raise InputError(f"chat template failed: {reason}") from None


def _security_error(text: str) -> UnsafeInputError:
    attribute = re.search(r"access to attribute '(\w+)'", text)
    if attribute and attribute[1] in NAMES["mutators"]:
        return UnsafeInputError(
            f"chat template changes a list or dict in place (.{attribute[1]}), which the sandbox "
            "forbids",
            next_step="In the template, build a new value instead: {% set ns = namespace(items=[]) "
            "%} … {% set ns.items = ns.items + [item] %}",
        )
    return UnsafeInputError(f"chat template refused: {printable(text)}")


def _collect(pieces: Iterator[str]) -> str:
    taken: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_OUTPUT_CHARS:
            raise UnsafeInputError(
                f"chat template stopped: it writes more than {MAX_OUTPUT_CHARS} characters"
            )
        taken.append(piece)
    return "".join(taken)


def _plain(value: Any, depth: int = 0) -> Any:
    """A private copy of JSON-like data, so that a template never holds an object of ours."""
    if depth > MAX_DEPTH:
        raise InputError(f"template variables nest more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise InputError(
        f"template variables must be plain data as in JSON, got {type(value).__name__}"
    )


@functools.lru_cache(maxsize=4)
def _compile(template: str) -> Any:
    _check_source(template)
    return environment().from_string(template)


def _check_source(template: str) -> None:
    if not isinstance(template, str) or not template.strip():
        raise InputError("the chat template is empty")
    if len(template) > MAX_TEMPLATE_CHARS:
        raise UnsafeInputError(
            f"the chat template has {len(template)} characters, the limit is {MAX_TEMPLATE_CHARS}"
        )


def _clock(now: datetime.datetime | None) -> Callable[[Any], str]:
    """`strftime_now` as transformers has it, or of a given time."""

    def strftime_now(layout: Any) -> str:
        return (now or datetime.datetime.now()).strftime(str(layout))

    return strftime_now


if __name__ == "__main__":
    serve_started(_answer, sys.argv[1])
