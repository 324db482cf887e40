r"""Read text as people's editors, shells and pipes write it.

The answer of a model must not depend on an operating system: line ends become `\n`, a byte order
mark is taken off, and UTF-16 and UTF-32 are read where it names them.
"""

import codecs

from boardfit.edge.errors import InputError

# The longest mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def find_encoding(head: bytes) -> str:
    """The encoding of a text that begins with `head`: its mark's, else UTF-8."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def decode_text(data: bytes, name: str) -> str:
    """The text in `data`; `name` stands for it in messages. Raises InputError if it is none."""
    encoding = find_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        marked = "" if encoding == "utf-8" else ", though its byte order mark says so"
        kind = encoding.removesuffix("-sig").upper()
        raise InputError(
            f"{name} is not {kind} text (byte {error.start}){marked}", next_step="save it as UTF-8"
        ) from None
    return clean_text(text, name)


def clean_text(text: str, name: str) -> str:
    """`text` with `\\n` as its only line end. Raises InputError for NUL and lone surrogates."""
    if (at := text.find("\0")) >= 0:
        raise InputError(
            f"{name} has a NUL byte at character {at}, so it is no text",
            next_step="save it as UTF-8; UTF-16 needs its byte order mark",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} is not valid Unicode at character {error.start}",
            next_step="type it in a terminal that is set to UTF-8",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
