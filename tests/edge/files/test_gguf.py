"""The GGUF linter, one test for each thing that it refuses and for what it must let through."""

from __future__ import annotations

import gzip
import io
import os
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.ggml_types import GGML_TYPES, REMOVED_TYPES, row_bytes
from boardfit.edge.files.gguf import GgufArray, GgufHeader, parse_header, read_header, reader
from tests.edge.files import seeds
from tests.edge.files.seeds import (
    ARR,
    BOOL,
    F32,
    F32_TYPE,
    I32,
    Q4_K_TYPE,
    STR,
    U8,
    U32,
    array,
    gguf,
    kv,
    tensor,
    text,
)  # fmt: skip

ARCH = kv("general.architecture", STR, "llama")


def parse(data: bytes, arrays: Any = "summary") -> GgufHeader:
    return parse_header(data, file_size=len(data), name="x.gguf", arrays=arrays)


# ---- what must pass ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_empty_file_of_each_version(version: int) -> None:
    header = parse(gguf([ARCH], version=version))
    assert (header.version, header.arch, header.tensors) == (version, "llama", ())


def test_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(seeds.model())
    header = read_header(path)
    assert header.get("a.u8") == 200
    assert header.get("a.i8") == -3
    assert header.get("a.bool") is True
    assert header.get("a.u64") == 2**63
    assert header.get("a.f64") == 0.1
    assert header.get("absent", 5) == 5
    assert header.kv_types["a.bools"] == (ARR, BOOL)
    tokens = header.get("tokenizer.ggml.tokens")
    assert isinstance(tokens, GgufArray)
    assert (len(tokens), tokens.item_type) == (4, "str")
    names = [(t.name, t.dims, t.type_name, t.nbytes) for t in header.tensors]
    assert names == [
        ("token_embd.weight", (256, 4), "Q4_K", 576),
        ("blk.0.attn_norm.weight", (32,), "F32", 128),
        ("blk.0.attn_q.weight", (32, 3), "Q8_0", 102),
        ("blk.0.odd.weight", (3, 5, 7), "F16", 210),
    ]
    assert header.data_offset % 32 == 0
    assert header.file_size == path.stat().st_size
    assert header.trailing_bytes == 0
    assert header.tensor_bytes == 576 + 128 + 102 + 210


def test_full_mode_gives_lists() -> None:
    header = parse(seeds.model(), "full")
    assert header.get("tokenizer.ggml.tokens") == ["<s>", "é", "▁the", ""]
    assert header.get("tokenizer.ggml.scores") == [0.0, -1.0, -2.0, -3.0]
    assert header.get("a.bools") == [False, True, True]
    assert header.get("a.empty") == []


def test_array_offsets_point_at_the_items() -> None:
    data = seeds.model()
    scores = parse(data).get("tokenizer.ggml.scores")
    raw = data[scores.offset : scores.offset + scores.nbytes]
    assert struct.unpack("<4f", raw) == (0.0, -1.0, -2.0, -3.0)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(alignment: int) -> None:
    header = parse(seeds.model(alignment))
    assert header.alignment == alignment
    assert all(t.offset % alignment == 0 for t in header.tensors)


def test_many_strings_cross_slabs() -> None:
    words = [f"w{i}é" * (i % 7) for i in range(10_000)] + ["x" * 3_000_000, "y"]
    header = parse(gguf([ARCH, array("t", STR, words)]), "full")
    assert header.get("t") == words


def test_trailing_bytes_are_tolerated_and_said() -> None:
    header = parse(seeds.model() + b"x" * 7)
    assert header.trailing_bytes == 7
    assert "7 bytes" in header.notes[0]


def test_last_tensor_needs_no_padding() -> None:
    data = gguf([ARCH], [tensor("w", (3,), F32_TYPE, 0)], bytes(12))
    assert parse(data).tensors[0].nbytes == 12


def test_split_is_reported() -> None:
    header = parse(gguf([ARCH, kv("split.count", U32, 4)]))
    assert header.split_count == 4
    assert parse(gguf([ARCH])).split_count == 1


def test_typed_reads() -> None:
    header = parse(seeds.model())
    assert header.integer("llama.context_length") == 2048
    assert header.text("general.architecture") == "llama"
    assert header.integer("absent") is None
    with pytest.raises(InputError, match=r"expected a string, got u32"):
        header.text("llama.context_length")
    with pytest.raises(InputError, match=r"expected an integer, got bool"):
        header.integer("a.bool")
    with pytest.raises(InputError, match="no architecture"):
        _ = parse(gguf([])).arch


# ---- files that are something else ------------------------------------------------------------


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


FOREIGN = {
    "a web page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "a web page or XML": b'\n  <?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "zip archive": _zip(),
    "Git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "gzip": gzip.compress(b"GGUF"),
    "safetensors": seeds.checkpoint(),
    "pickle": b"\x80\x02}q\x00.",
    "before GGUF": b"tjgg" + bytes(40),
    "JSON": b'{"error": "Repository not found"}',
    "zero bytes": bytes(4096),
    "begins with b'GGUF'": b"\x01\x02something else",
}


@pytest.mark.parametrize("words", FOREIGN)
def test_foreign_file_is_recognised(words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(FOREIGN[words])
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert caught.value.next_step


def test_empty_missing_directory_and_pipe(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        read_header(tmp_path / "empty.gguf")
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(InputError, match="regular file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(InputError, match="pipe"):
        read_header(tmp_path / "pipe.gguf")
    with pytest.raises(InputError, match="cannot be opened"):
        read_header("nul\0byte")


@pytest.mark.parametrize(
    ("version", "words"), [(1, "version 1;"), (4, "version 4;"), (0, "version 0;")]
)
def test_other_versions(version: int, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        parse(gguf([ARCH], version=version))


def test_big_endian() -> None:
    with pytest.raises(UnsupportedModelError, match="big-endian"):
        parse(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))


# ---- headers that lie -------------------------------------------------------------------------

W = tensor("w", (4,), F32_TYPE, 0)
LIES: dict[str, tuple[bytes, str]] = {
    "tensor count": (gguf([ARCH], n_tensors=2**60), "tensors announced"),
    "negative tensor count": (gguf([ARCH], n_tensors=2**64 - 1), "tensors announced"),
    "key count": (gguf([ARCH], n_kv=2**61), "keys announced"),
    "too many keys": (
        gguf([kv(f"{i:05}", U8, 0) for i in range(65_537)]), "the limit is 65536"
    ),
    "key length": (gguf([struct.pack("<Q", 2**63) + bytes(9)]), "the limit is 65535"),
    "long key": (gguf([kv("k" * 65_536, U8, 0)]), "the limit is 65535"),
    "empty key": (gguf([kv("", U32, 0)]), "empty"),
    "zero in key": (gguf([kv("a\0b", U32, 0)]), "zero byte"),
    "key not utf-8": (gguf([kv(b"a\xff", U32, 0)]), "UTF-8"),
    "duplicate key": (gguf([ARCH, ARCH]), "occurs twice"),
    "value type": (gguf([text("a") + struct.pack("<I", 13) + bytes(9)]), "unknown type 13"),
    "bool": (gguf([kv("a", BOOL, 2)]), "bool 2"),
    "bool in array": (gguf([array("a", BOOL, [1, 0, 7, 1])]), "bool 7"),
    "string length": (
        gguf([text("a") + struct.pack("<IQ", STR, 2**62)]), "the limit is"
    ),
    "string past end": (gguf([text("a") + struct.pack("<IQ", STR, 99)]), "99 bytes"),
    "string not utf-8": (gguf([kv("a", STR, b"\xc3\x28")]), "UTF-8"),
    "array of arrays": (
        gguf([text("a") + struct.pack("<IIQ", ARR, ARR, 1) + bytes(12)]), "array of arrays"
    ),
    "array item type": (
        gguf([text("a") + struct.pack("<IIQ", ARR, 99, 1) + bytes(12)]), "unknown type 99"
    ),
    "array count": (gguf([array("a", U8, [], count=2**63)]), "items of at least 1 bytes"),
    "array count overflow": (gguf([array("a", I32, [], count=2**62)]), "items of at least 4"),
    "string array count": (gguf([array("a", STR, ["x"], count=2**61)]), "at least 8 bytes"),
    "string array runs out": (gguf([array("a", STR, ["x" * 90], count=4)]), "bytes"),
    "string array item length": (
        gguf([text("a") + struct.pack("<IIQQ", ARR, STR, 1, 2**64 - 1)]), "a string of"
    ),
    "string array item not utf-8": (gguf([array("a", STR, ["x", b"\xff", "y"])]), "UTF-8"),
    "character over two items": (gguf([array("a", STR, [b"\xc3", b"\xa9"])]), "UTF-8"),
    "too many items": (gguf([array("a", U8, [0]) for _ in range(1)] + [
        text("b") + struct.pack("<IIQ", ARR, U8, 2**22) + bytes(2**22)]), "array items in all"),
    "alignment type": (gguf([kv("general.alignment", I32, 32)]), "must be a u32"),
    "alignment zero": (gguf([kv("general.alignment", U32, 0)]), "power of two"),
    "alignment odd": (gguf([kv("general.alignment", U32, 48)]), "power of two"),
    "alignment huge": (gguf([kv("general.alignment", U32, 2**31)]), "power of two"),
    "tensor name length": (
        gguf([ARCH], [tensor("n" * 64, (4,), F32_TYPE, 0)], bytes(16)), "the limit is 63"
    ),
    "empty tensor name": (gguf([ARCH], [tensor("", (4,), F32_TYPE, 0)], bytes(16)), "empty"),
    "zero in tensor name": (
        gguf([ARCH], [tensor("a\0", (4,), F32_TYPE, 0)], bytes(16)), "zero byte"
    ),
    "duplicate tensor": (
        gguf([ARCH], [W, tensor("w", (4,), F32_TYPE, 32)], bytes(64)), "occurs twice"
    ),
    "no dimensions": (gguf([ARCH], [tensor("w", (), F32_TYPE, 0)], bytes(64)), "0 dimensions"),
    "five dimensions": (
        gguf([ARCH], [tensor("w", (1,) * 5, F32_TYPE, 0)], bytes(64)), "5 dimensions"
    ),
    "a million dimensions": (
        gguf([ARCH], [tensor("w", (1,), F32_TYPE, 0, n_dims=10**6)], bytes(64)), "1000000 dim"
    ),
    "zero extent": (gguf([ARCH], [tensor("w", (4, 0), F32_TYPE, 0)], bytes(64)), "impossible"),
    "negative extent": (
        gguf([ARCH], [tensor("w", (2**63,), F32_TYPE, 0)], bytes(64)), "impossible"
    ),
    "overflowing product": (
        gguf([ARCH], [tensor("w", (2**32, 2**32), F32_TYPE, 0)], bytes(64)), "impossible"
    ),
    "wrapping product": (
        gguf([ARCH], [tensor("w", (2**62, 4, 4), F32_TYPE, 0)], bytes(64)), "impossible"
    ),
    "overflowing bytes": (
        gguf([ARCH], [tensor("w", (2**61, 2), F32_TYPE, 0)], bytes(64)), "more than any file"
    ),
    "unknown tensor type": (gguf([ARCH], [tensor("w", (4,), 5000, 0)], bytes(64)), "type 5000"),
    "row not whole blocks": (
        gguf([ARCH], [tensor("w", (128, 2), Q4_K_TYPE, 0)], bytes(144)), "multiple of 256"
    ),
    "first offset": (
        gguf([ARCH], [tensor("w", (4,), F32_TYPE, 32)], bytes(64)), "expected 0"
    ),
    "unaligned offset": (
        gguf([ARCH], [W, tensor("v", (4,), F32_TYPE, 16)], bytes(64)), "expected 32"
    ),
    "overlap": (gguf([ARCH], [W, tensor("v", (4,), F32_TYPE, 0)], bytes(64)), "expected 32"),
    "huge offset": (
        gguf([ARCH], [W, tensor("v", (4,), F32_TYPE, 2**64 - 32)], bytes(64)), "expected 32"
    ),
    "scores of bytes": (
        gguf([array("tokenizer.ggml.scores", U8, [1, 2])]), "array of f32 or i32, got u8"
    ),
    "tokens of numbers": (gguf([array("tokenizer.ggml.tokens", I32, [1])]), "array of str"),
    "tokens no array": (gguf([kv("tokenizer.ggml.tokens", U32, 1)]), "got no array"),
    "too few token types": (
        gguf([array("tokenizer.ggml.tokens", STR, ["a", "b"]),
              array("tokenizer.ggml.token_type", I32, [1])]), "1 items for 2 tokens"
    ),
    "bomb": (seeds.bomb(), "items of at least"),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("arrays", ["summary", "full"])
def test_lie_is_refused(what: str, arrays: str, tmp_path: Path) -> None:
    data, words = LIES[what]
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(UnsafeInputError) as caught:
        read_header(path, arrays=arrays)  # type: ignore[arg-type]
    assert time.perf_counter() - start < 2
    assert words in str(caught.value)
    assert "at byte " in str(caught.value)


def test_bomb_is_tiny() -> None:
    assert len(seeds.bomb()) < 64


@pytest.mark.parametrize("type_id", sorted(REMOVED_TYPES))
def test_removed_types_say_what_to_do(type_id: int) -> None:
    data = gguf([ARCH], [tensor("w", (256,), type_id, 0)], bytes(512))
    with pytest.raises(UnsupportedModelError, match="removed") as caught:
        parse(data)
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("type_id", "words"),
    [(36, "bitnet.cpp"), (144, "ik_llama.cpp"), (206, "ik_llama.cpp"), (43, "does not know")],
)
def test_types_of_forks_are_no_damage(type_id: int, words: str) -> None:
    data = gguf([ARCH], [tensor("w", (256,), type_id, 0)], bytes(512))
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        parse(data)
    assert "elsewhere" not in str(caught.value.next_step)


def test_what_a_careless_tool_writes_is_no_attack() -> None:
    latin1 = kv("general.author", STR, "x").replace(b"x", b"\xe9")
    for data in (gguf([ARCH, ARCH]), gguf([ARCH, latin1])):
        with pytest.raises(UnsafeInputError) as caught:
            parse(data)
        assert "elsewhere" not in str(caught.value.next_step)


def test_truncated_says_expected_and_actual(tmp_path: Path) -> None:
    whole = seeds.model()
    path = tmp_path / "t.gguf"
    path.write_bytes(whole[:-100])
    # The last tensor's padding is not needed: 210 bytes padded to 224.
    with pytest.raises(InputError, match=f"need {len(whole) - 14} bytes, the file has "):
        read_header(path)


def test_every_truncation_is_refused() -> None:
    whole = seeds.model()
    for length in range(len(whole) - 14):
        with pytest.raises(InputError):
            parse(whole[:length])


def test_control_characters_do_not_reach_the_terminal() -> None:
    with pytest.raises(UnsafeInputError) as caught:
        parse(gguf([kv("a\x1b[31m", BOOL, 9)]))
    assert "\x1b" not in str(caught.value)


def test_header_larger_than_the_limit() -> None:
    data = gguf([kv("a", STR, "x" * 99)])
    old = reader.MAX_HEADER_BYTES
    reader.MAX_HEADER_BYTES = len(data) - 4
    try:
        with pytest.raises(UnsafeInputError, match="a header may have at most"):
            parse(data)
    finally:
        reader.MAX_HEADER_BYTES = old


# ---- the table of types -----------------------------------------------------------------------


def test_row_bytes() -> None:
    assert row_bytes("Q4_K", 512) == 288
    assert row_bytes("BF16", 3) == 6
    assert row_bytes("Q8_0", 0) == 0
    with pytest.raises(InputError, match="multiple of 256"):
        row_bytes("Q4_K", 896)
    with pytest.raises(InputError, match="Did you mean 'Q4_K'"):
        row_bytes("Q4K", 256)


def test_types_equal_the_gguf_package() -> None:
    constants = pytest.importorskip("gguf.constants")
    for member, (block, size) in constants.GGML_QUANT_SIZES.items():
        if member.name == "Q8_1":
            continue  # never in files; gguf 0.19.0 still has the size it had before 2024
        assert GGML_TYPES[member.name] == (int(member), block, size), member.name
    assert GGML_TYPES["Q4_K"].bits_per_weight == 4.5


@pytest.mark.engine
def test_types_equal_the_engines_own() -> None:
    import ctypes

    import llama_cpp

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_name.restype = ctypes.c_char_p
    for name, entry in GGML_TYPES.items():
        assert ggml.ggml_blck_size(entry.id) == entry.block_size, name
        assert ggml.ggml_type_size(entry.id) == entry.type_size, name
        assert ggml.ggml_type_name(entry.id).decode().upper() == name
    for type_id in REMOVED_TYPES:
        assert ggml.ggml_blck_size(type_id) == 0


def test_float_values_survive() -> None:
    header = parse(gguf([kv("a", F32, float("inf")), kv("b", F32, 0.25)]))
    assert header.get("a") == float("inf")
    assert header.get("b") == 0.25
