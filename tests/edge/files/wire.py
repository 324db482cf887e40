"""ONNX protobuf messages written by hand, so that they can say what no library would write."""

from __future__ import annotations

from collections.abc import Sequence


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def model(*graph: bytes) -> bytes:
    """A ModelProto of IR version 8, opset 17, with these parts of a graph."""
    return number(1, 8) + text(7, b"".join(graph)) + text(8, number(2, 17))


def node(op: str, name: str, *attributes: bytes, domain: str = "") -> bytes:
    return text(1, text(3, name) + text(4, op) + b"".join(attributes) + text(7, domain))


def attribute(name: str, value: int) -> bytes:
    return text(5, text(1, name) + number(3, value) + number(20, 2))


def value_info(field: int, name: str, dtype: int, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(text(1, number(1, d) if isinstance(d, int) else text(2, d)) for d in shape)
    return text(field, text(1, name) + text(2, text(1, number(1, dtype) + text(2, dims))))


def external(
    name: str, location: str, shape: Sequence[int], offset: int | str, length: int
) -> bytes:
    """A float32 initializer whose data lies in another file."""
    pairs = {"location": location, "offset": str(offset), "length": str(length)}
    entries = b"".join(text(13, text(1, key) + text(2, value)) for key, value in pairs.items())
    dims = b"".join(number(1, d) for d in shape)
    return text(5, dims + number(2, 1) + text(8, name) + entries + number(14, 1))
