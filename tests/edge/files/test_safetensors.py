"""The safetensors header check, one test for each thing that it refuses or must let through."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.files.safetensors import SafetensorsHeader, parse_header, read_header
from tests.edge.files import seeds
from tests.edge.files.seeds import safetensors


def parse(data: bytes) -> SafetensorsHeader:
    return parse_header(data, file_size=len(data), name="x.safetensors")


def one(data: bytes = bytes(8), **fields: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}
    return safetensors({"w": entry}, data)


# ---- what must pass ---------------------------------------------------------------------------


def test_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(seeds.checkpoint())
    header = read_header(path)
    assert list(header.tensors) == ["model.embed.weight", "model.norm.weight", "scalar", "empty"]
    embed = header.tensors["model.embed.weight"]
    assert (embed.dtype, embed.shape, embed.start, embed.end) == ("BF16", (4, 8), 0, 64)
    assert header.tensors["scalar"].shape == ()
    assert header.tensors["empty"].nbytes == 0
    assert header.metadata == {"format": "pt", "é": 'quote " and \\ slash'}
    assert header.file_size == path.stat().st_size
    assert header.data_offset + 104 == header.file_size


def test_any_json_order_and_spacing() -> None:
    raw = (
        '{ "b" : {"data_offsets":[4 , 8],\n "dtype":"F32","shape":[ 1 ]},'
        '"a":{"shape":[],"dtype":"I32","data_offsets":[0,4]} , "__metadata__" : {} }'
    )
    header = parse(safetensors(raw, bytes(8)))
    assert list(header.tensors) == ["a", "b"]


def test_no_tensors() -> None:
    assert parse(safetensors("{}")).tensors == {}


def test_sub_byte_types() -> None:
    entry = {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}
    assert parse(safetensors({"w": entry}, bytes(3))).tensors["w"].nbytes == 3


def test_equals_the_safetensors_package(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors")
    numpy_module = pytest.importorskip("safetensors.numpy")
    import numpy as np

    tensors = {f"layers.{i}": np.full((i, 3), i, np.float32) for i in range(5)}
    tensors['odd "name" é\n'] = np.arange(7, dtype=np.int16)
    path = tmp_path / "a.safetensors"
    numpy_module.save_file(tensors, path, metadata={"k": "v\\"})
    header = read_header(path)
    raw = path.read_bytes()[header.data_offset :]
    with package.safe_open(path, "np") as opened:
        assert opened.metadata() == dict(header.metadata)
        assert set(opened.keys()) == set(header.tensors)
    for name, tensor in header.tensors.items():
        assert tensor.shape == tensors[name].shape
        assert raw[tensor.start : tensor.end] == tensors[name].tobytes()


# ---- files that are something else ------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04" + bytes(99), "zip archive"),
        (b"\x80\x02}q\x00" + bytes(99), "pickle"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS"),
        (seeds.model(), "GGUF"),
        (b"\x1f\x8b" + bytes(99), "gzip"),
        (bytes(99), "zero bytes"),
        (b"short", "5 bytes in all"),
        (b"\xff" * 99, "expected a safetensors file"),
    ],
)
def test_foreign_file_is_recognised(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x80\x02"])
def test_pickle_says_how_to_convert(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(head + bytes(99))
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert "save_file" in str(caught.value.next_step)
    assert "weights_only=True" in str(caught.value.next_step)


def test_truncated_shard_says_expected_and_actual(tmp_path: Path) -> None:
    whole = seeds.checkpoint()
    path = tmp_path / "model-00001-of-00002.safetensors"
    path.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=f"expected {len(whole)} bytes.*has {len(whole) - 40}"):
        read_header(path)


def test_truncated_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(seeds.checkpoint()[:60])
    with pytest.raises(InputError, match="truncated: the header alone needs"):
        read_header(path)


def test_every_truncation_is_refused() -> None:
    whole = seeds.checkpoint()
    for length in range(len(whole)):
        with pytest.raises(InputError):
            parse(whole[:length])


# ---- headers that lie -------------------------------------------------------------------------

ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
LIES: dict[str, tuple[bytes, str]] = {
    "length beyond 100 MB": (struct.pack("<Q", 2**40) + b"{}" + bytes(99), "announce a header"),
    "length huge": (struct.pack("<Q", 2**64 - 1) + b"{}" + bytes(99), "announce a header"),
    "not utf-8": (safetensors(b'{"\xff":' + ENTRY.encode() + b"}", bytes(8)), "proper string"),
    "duplicate tensor": (
        safetensors('{"w":' + ENTRY + ',"w":' + ENTRY + "}", bytes(8)), "occurs twice"
    ),
    "duplicate by escape": (
        safetensors('{"w":' + ENTRY + ',"\\u0077":' + ENTRY + "}", bytes(8)), "occurs twice"
    ),
    "duplicate metadata": (
        safetensors('{"__metadata__":{},"__metadata__":{}}'), "occurs twice"
    ),
    "duplicate metadata key": (
        safetensors('{"__metadata__":{"a":"b","a":"c"}}'), "occurs twice"
    ),
    "duplicate field": (
        safetensors('{"w":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}',
                    bytes(4)), "'dtype' twice"
    ),
    "metadata not text": (safetensors('{"__metadata__":{"a":1}}'), "expected a string"),
    "metadata nested": (safetensors('{"__metadata__":{"a":{"b":"c"}}}'), "expected a string"),
    "deep nesting": (safetensors('{"a":' + "[" * 100_000), "expected '{'"),
    "deep objects": (safetensors('{"a":' * 50_000), "expected '{'|unknown field|'dtype'"),
    "trailing comma": (safetensors('{"w":' + ENTRY + ",}", bytes(8)), "expected a string"),
    "missing comma": (safetensors('{"w":' + ENTRY + '"v":1}', bytes(8)), "expected ','"),
    "something behind": (safetensors('{"w":' + ENTRY + "} x", bytes(8)), "follows the closing"),
    "unfinished": (safetensors('{"w":' + ENTRY, bytes(8)), "got the end"),
    "unfinished string": (safetensors('{"w'), "does not end"),
    "backslash at the end": (safetensors('{"w\\"'), "does not end"),
    "bad escape": (safetensors('{"\\x41":' + ENTRY + "}", bytes(8)), "proper string"),
    "half a surrogate": (safetensors('{"\\ud800":' + ENTRY + "}", bytes(8)), "proper string"),
    "raw newline": (safetensors('{"a\nb":' + ENTRY + "}", bytes(8)), "proper string"),
    "long name": (safetensors('{"' + "n" * 5000 + '":' + ENTRY + "}", bytes(8)), "limit is 4096"),
    "unknown dtype": (one(dtype="F33"), "unknown dtype"),
    "dtype no text": (one(dtype=3), "expected a string"),
    "shape no list": (one(shape=2), "expected '['"),
    "negative extent": (one(shape=[-2]), "whole number"),
    "float extent": (one(shape=[2.0]), "whole number"),
    "exponent": (safetensors('{"w":' + ENTRY.replace("[2]", "[2e0]") + "}", bytes(8)), "whole"),
    "leading zero": (safetensors('{"w":' + ENTRY.replace("[2]", "[02]") + "}", bytes(8)), "whole"),
    "huge number": (
        safetensors('{"w":' + ENTRY.replace("[2]", "[" + "9" * 100_000 + "]") + "}", bytes(8)),
        "whole number",
    ),
    "extent beyond int64": (one(shape=[2**63]), "whole number"),
    "overflowing product": (one(shape=[2**32, 2**31]), "impossible shape"),
    "zero hides overflow": (one(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), "impossible"),
    "many dimensions": (one(shape=[1] * 65), "more than 64"),
    "one offset": (one(data_offsets=[8]), "two data_offsets"),
    "three offsets": (one(data_offsets=[0, 8, 8]), "more than 2"),
    "offsets reversed": (one(data_offsets=[8, 0]), "give it -8"),
    "size too small": (one(data_offsets=[0, 4]), "takes 8 bytes"),
    "half a byte": (one(dtype="F4", shape=[3], data_offsets=[0, 1]), "whole number of bytes"),
    "missing field": (safetensors({"w": {"dtype": "F32", "shape": [2]}}), "needs dtype"),
    "unknown field": (one(extra=1), "unknown field"),
    "hole": (one(bytes(12), data_offsets=[4, 12]), "leaves a hole"),
    "overlap": (
        safetensors('{"w":' + ENTRY + ',"v":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
                    bytes(12)), "overlaps"
    ),
    "same bytes twice": (
        safetensors('{"w":' + ENTRY + ',"v":' + ENTRY + "}", bytes(8)), "overlaps"
    ),
    "trailing bytes": (one(bytes(9)), "1 bytes behind the last tensor"),
    "a list": (struct.pack("<Q", 2) + b"[]", "announce a header"),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_lie_is_refused(what: str) -> None:
    data, words = LIES[what]
    start = time.perf_counter()
    with pytest.raises(UnsafeInputError) as caught:
        parse(data)
    assert time.perf_counter() - start < 2
    assert any(word in str(caught.value) for word in words.split("|"))


@pytest.mark.parametrize(
    "raw",
    [
        b"{" + b" " * 20_000_000 + b"}x",
        b'{"__metadata__":{"a":"' + b"\\\\" * 10_000_000 + b'"}}x',
        b'{"__metadata__":{"a":"' + b'\\"' * 5_000_000 + b'"}}x',
        b'{"w":{"shape":[' + b"1," * 5_000_000,
        b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(70_000)) + b"}}",
    ],
    ids=["spaces", "backslashes", "quotes", "extents", "metadata"],
)
def test_large_headers_do_not_stall(raw: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(UnsafeInputError):
        parse(safetensors(raw))
    assert time.perf_counter() - start < 10


def test_control_characters_do_not_reach_the_terminal() -> None:
    with pytest.raises(UnsafeInputError) as caught:
        parse(safetensors(json.dumps({"\x1b[31m": {"dtype": "X", "shape": [], "data_offsets": [
            0, 0]}})))  # fmt: skip
    assert "\x1b" not in str(caught.value)
