"""Ways to damage a file: blind (bits, bytes, cuts, repeats) and knowing (fields, digits)."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import Any

# Values at which bounds checks break.
NUMBERS = (
    0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 4095, 65535, 65536, 2**24,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32,
    2**64 - 1,
)  # fmt: skip
_DIGITS = re.compile(rb"\d+")
_TOKENS = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"null", b"-1", b"1e9", b"\\ud800", b"\xff",
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b"[" * 64, b" " * 64, b"\0",
    b"9" * 400,
)  # fmt: skip


def flip(random_: random.Random, data: bytearray) -> None:
    for _ in range(random_.choice((1, 1, 1, 2, 4, 16))):
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def overwrite(random_: random.Random, data: bytearray) -> None:
    at = random_.randrange(len(data))
    data[at : at + random_.choice((1, 2, 4, 8))] = random_.randbytes(random_.choice((1, 2, 4, 8)))


def cut(random_: random.Random, data: bytearray) -> None:
    del data[random_.randrange(len(data)) :]


def remove(random_: random.Random, data: bytearray) -> None:
    at = random_.randrange(len(data))
    del data[at : at + random_.randrange(1, 40)]


def repeat(random_: random.Random, data: bytearray) -> None:
    at = random_.randrange(len(data))
    data[at:at] = data[at : at + random_.randrange(1, 200)]


def append(random_: random.Random, data: bytearray) -> None:
    data += random_.randbytes(random_.randrange(1, 64))


def number(random_: random.Random, data: bytearray) -> None:
    """Put a critical number over a little-endian field anywhere."""
    value = random_.choice(NUMBERS)
    wide = value > 2**32 - 1 or random_.random() < 0.5
    raw = struct.pack("<Q", value) if wide else struct.pack("<I", value)
    at = random_.randrange(max(1, len(data) - len(raw)))
    data[at : at + len(raw)] = raw


def gguf_counts(random_: random.Random, data: bytearray) -> None:
    """Lie in the version or in one of the two counts."""
    at, size = random_.choice(((4, 4), (8, 8), (16, 8)))
    value = random_.choice(NUMBERS) % 256**size
    data[at : at + size] = value.to_bytes(size, "little")


def digits(random_: random.Random, data: bytearray) -> None:
    """Put a critical number over one that is written out."""
    found = list(_DIGITS.finditer(data))
    if found:
        match = random_.choice(found)
        data[match.start() : match.end()] = str(random_.choice(NUMBERS)).encode()


def token(random_: random.Random, data: bytearray) -> None:
    """Put a piece of JSON where it may not be."""
    at = random_.randrange(len(data))
    data[at : at + random_.randrange(4)] = random_.choice(_TOKENS)


def fix_length(random_: random.Random, data: bytearray) -> None:
    """Make a safetensors header length true again, so that the JSON itself is looked at."""
    end = data.rfind(b"}")
    if end >= 8:
        data[:8] = struct.pack("<Q", end - 7)


ODD = (
    None, True, -1, 0, 2**63, 10**400, 1e308, 0.5, "", "x", "²", "a\x1b]0;x\x07\x00\ud800",
    "9" * 5000, "../x", [], ["x"], [[]], {}, {"a": 1}, [[[[[0]]]]],
)  # fmt: skip


def entry(random_: random.Random, data: bytearray) -> None:
    """Put an odd value over one entry of a JSON document or of one of its lines, or remove it."""
    lines = bytes(data).split(b"\n")
    lines = lines if len(lines) > 1 and lines[1][:1] == b"{" else [bytes(data)]
    at = random_.randrange(len(lines))
    try:
        top: Any = [json.loads(lines[at])]
    except (ValueError, RecursionError):
        return
    holder, key = top, 0
    while isinstance(holder[key], (dict, list)) and holder[key] and random_.random() < 0.85:
        holder = holder[key]
        key = random_.choice(list(holder if isinstance(holder, dict) else range(len(holder))))
    holder[key] = random_.choice(ODD)
    if random_.random() < 0.2 and holder is not top:
        del holder[key]
    lines[at] = json.dumps(top[0]).encode()
    data[:] = b"\n".join(lines)


BLIND = (flip, overwrite, cut, remove, repeat, append, number)
GGUF = (*BLIND, number, number, gguf_counts)
SAFETENSORS = (*BLIND, digits, digits, token, token, fix_length)
TEXT = (*BLIND[:-1], digits, digits, token, token)
JSON = (*TEXT, *[entry] * 8)


def mutated(random_: random.Random, seed: bytes, ways: tuple[object, ...]) -> bytes:
    """One to three kinds of damage on a copy of `seed`."""
    data = bytearray(seed)
    for _ in range(random_.choice((1, 1, 2, 3))):
        if data:
            random_.choice(ways)(random_, data)  # type: ignore[operator]
    if ways is SAFETENSORS and data and random_.random() < 0.5:
        fix_length(random_, data)
    return bytes(data)
