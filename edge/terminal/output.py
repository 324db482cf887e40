"""Text from a model on a terminal: shown as text, never obeyed.

Everything that steers a terminal (the window's name, the clipboard), or reorders what is read, is
shown escaped.
"""

import functools
import json
import os
import re
import shlex
import sys
from typing import TextIO

import click

# C0 but tab and newline, DEL, C1; bidirectional overrides and isolates (CVE-2021-42574); line and
# paragraph separator; lone surrogates, which cannot be written. Joiners stay: emoji need them.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def terminal_safe(text: str) -> str:
    r"""`text` with control characters written out: ESC becomes `\x1b`."""
    return _STEERING.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), text)


def dim(text: str) -> str:
    """`text` dimmed, where the user wants colours and the terminal has them."""
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
    return text if is_plain else f"\033[2m{text}\033[0m"


def write_text(text: str, out: TextIO | None = None) -> None:
    """Write and flush, with `?` for what the terminal's encoding lacks."""
    out = out or sys.stdout
    try:
        out.write(text)
    except UnicodeEncodeError:
        encoding = out.encoding or "ascii"
        out.write(text.encode(encoding, "replace").decode(encoding))
    out.flush()


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line for a person or a program. A name from a file or a board steers no terminal."""
    click.echo(terminal_safe(str(text)), err=err, nl=nl)


def json_line(value: object) -> str:
    """A value as one line of JSON for people and programs: not ASCII alone, and nothing steers."""
    text = json.dumps(value, ensure_ascii=False)
    return _STEERING.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def shell_line(*words: object) -> str:
    """A command that a user may copy. Words in capitals are the user's own choice and stay."""
    return terminal_safe(
        " ".join(
            text if text.isupper() or text == "…" else shlex.quote(text) for text in map(str, words)
        )
    ).replace("\n", "\\n")


@functools.cache
def note_once(text: str) -> None:
    """Write a note to stderr once per process."""
    print(f"note: {terminal_safe(text)}", file=sys.stderr, flush=True)
