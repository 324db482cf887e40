"""What people keep of a tool's output: of any shell, among log lines, several runs to a file."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from boardfit.edge.errors import InputError
from boardfit.edge.fields import read_finite, refuse_constant
from boardfit.edge.files.text import find_encoding

# Colours and the spinner of terminals (ECMA-48 control sequences).
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
# A value begins on a line of its own, in a server's event stream behind `data:`.
_VALUE = re.compile(r"^[ \t]*(?:data:[ \t]*)?(?=[\[{])", re.MULTILINE)
_NEXT_VALUE = re.compile(r"[\s,\]]*(?=[\[{])")


def decode_text(data: bytes) -> str:
    """The text of a file: UTF-8 or UTF-16 (PowerShell's `>`), any line ends, no terminal codes."""
    encoding = find_encoding(data)
    if encoding == "utf-8" and data[1:2] == b"\0" and data[3:4] == b"\0":
        encoding = "utf-16-le"  # it lost its mark
    text = data.decode(encoding, "replace")
    return _ESCAPES.sub("", text.replace("\r\n", "\n")).replace("\r", "\n")


def json_values(text: str, what: str) -> list[Any]:
    """Every JSON value that begins on a line of its own. Raises InputError on NaN, on too deep a
    value, and on text that is almost JSON everywhere.
    """
    decoder = json.JSONDecoder(parse_constant=refuse_constant, parse_float=read_finite)
    found, at, wasted = [], 0, 0
    match = _VALUE.search(text)
    while match is not None:
        start = match.end()
        try:
            value, at = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            wasted += error.pos - start
            # A cut-off list is read a second time for the values in it, and no oftener.
            if wasted > 4 * len(text) + 10_000:
                raise InputError(f"{what}: not JSON: {error}") from None
            match = _VALUE.search(text, start + 1)
            continue
        except (ValueError, RecursionError) as error:
            raise InputError(f"{what}: not JSON: {error}") from None
        found.append(value)
        match = _NEXT_VALUE.match(text, at) or _VALUE.search(text, at)
    return found


def json_objects(text: str, what: str) -> Iterator[dict[str, Any]]:
    """The objects among the values of a text, those in lists included."""
    for value in json_values(text, what):
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                yield entry


def csv_rows(
    text: str, is_header: Callable[[list[str]], bool], what: str
) -> Iterator[dict[str, str]]:
    """Rows below each header, up to a line with another number of fields. Raises InputError."""
    header: list[str] = []
    try:
        for fields in csv.reader(io.StringIO(text)):
            if is_header(fields):
                header = [field.strip() for field in fields]
            elif header and len(fields) == len(header):
                yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{what}: no CSV: {error}") from None
