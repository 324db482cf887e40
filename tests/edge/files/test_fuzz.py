"""Both header parsers under fire: 100,000 damaged files each, and hypothesis on top.

Whatever the bytes: a header or one of our errors, at once, and no more memory than the file's own
size explains. What is accepted must be readable by the published `gguf` and `safetensors`
packages too.
"""

from __future__ import annotations

import io
import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.errors import InputError
from boardfit.edge.files import gguf, safetensors
from tests.edge.files import mutate, seeds

N_MUTATIONS = int(os.environ.get("BOARDFIT_TEST_MUTATIONS", 100_000))
MAX_SECONDS_PER_FILE = 1.0
# Python objects for a header's entries, counted generously, and a fixed part.
BYTES_PER_FILE_BYTE, FIXED_BYTES = 40, 128 * 1024

Parser = Callable[[bytes], Any]


def parse_gguf(data: bytes) -> Any:
    return gguf.parse_header(data, file_size=len(data), name="x")


def parse_gguf_full(data: bytes) -> Any:
    return gguf.parse_header(data, file_size=len(data), name="x", arrays="full")


def parse_safetensors(data: bytes) -> Any:
    return safetensors.parse_header(data, file_size=len(data), name="x")


GGUF_SEEDS = (seeds.model(), seeds.model(8), seeds.vocabulary(), seeds.bomb())
SAFETENSORS_SEEDS = (
    seeds.checkpoint(),
    seeds.safetensors({"w": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]}}, bytes(6)),
)


def outcome(parser: Parser, data: bytes) -> Any:
    """The header, or None for a refusal; any other exception fails the test."""
    try:
        return parser(data)
    except InputError:
        return None


def attack(parser: Parser, files: tuple[bytes, ...], ways: tuple[Any, ...], n: int) -> int:
    """Parse `n` damaged files; returns how many were accepted."""
    accepted = 0
    random_ = random.Random(20261122)
    slowest = 0.0
    for _ in range(n):
        data = mutate.mutated(random_, random_.choice(files), ways)
        start = time.perf_counter()
        accepted += outcome(parser, data) is not None
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < MAX_SECONDS_PER_FILE
    return accepted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parser", "files", "ways"),
    [
        (parse_gguf, GGUF_SEEDS, mutate.GGUF),
        (parse_safetensors, SAFETENSORS_SEEDS, mutate.SAFETENSORS),
    ],
    ids=["gguf", "safetensors"],
)
def test_a_hundred_thousand_damaged_files(
    parser: Parser, files: tuple[bytes, ...], ways: tuple[Any, ...]
) -> None:
    accepted = attack(parser, files, ways, N_MUTATIONS)
    # Otherwise the damage is too crude (nothing passes) or not damage (everything does).
    assert 0.001 * N_MUTATIONS < accepted < 0.8 * N_MUTATIONS


@pytest.mark.parametrize(
    ("parser", "files", "ways"),
    [
        (parse_gguf, GGUF_SEEDS, mutate.GGUF),
        (parse_gguf_full, GGUF_SEEDS, mutate.GGUF),
        (parse_safetensors, SAFETENSORS_SEEDS, mutate.SAFETENSORS),
    ],
    ids=["gguf", "gguf-full", "safetensors"],
)
def test_memory_is_bounded_by_the_file(
    parser: Parser, files: tuple[bytes, ...], ways: tuple[Any, ...]
) -> None:
    random_ = random.Random(7)
    outcome(parser, files[0])  # caches of the interpreter
    tracemalloc.start()
    try:
        for _ in range(1500):
            data = mutate.mutated(random_, random_.choice(files), ways)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            outcome(parser, data)
            used = tracemalloc.get_traced_memory()[1] - before
            assert used < FIXED_BYTES + BYTES_PER_FILE_BYTE * len(data), data.hex()
    finally:
        tracemalloc.stop()


def test_summary_and_full_accept_the_same() -> None:
    random_ = random.Random(3)
    for _ in range(3000):
        data = mutate.mutated(random_, random_.choice(GGUF_SEEDS), mutate.GGUF)
        summary, full = outcome(parse_gguf, data), outcome(parse_gguf_full, data)
        assert (summary is None) == (full is None), data.hex()
        if summary is not None:
            assert summary.tensors == full.tensors
            assert list(summary.kv) == list(full.kv)


@settings(max_examples=300, deadline=2000)
@given(data=st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    outcome(parse_gguf, data)
    outcome(parse_gguf, b"GGUF" + struct.pack("<I", 3) + data)
    outcome(parse_safetensors, data)
    outcome(parse_safetensors, seeds.safetensors(b"{" + data))


SCALARS = {
    seeds.U8: st.integers(0, 2**8 - 1),
    seeds.I16: st.integers(-(2**15), 2**15 - 1),
    seeds.U32: st.integers(0, 2**32 - 1),
    seeds.I64: st.integers(-(2**63), 2**63 - 1),
    seeds.F64: st.floats(allow_nan=False),
    seeds.BOOL: st.booleans(),
    seeds.STR: st.text(max_size=20),
}
TYPED = st.sampled_from(sorted(SCALARS)).flatmap(
    lambda value_type: st.tuples(st.just(value_type), SCALARS[value_type])
)
ARRAYS = st.sampled_from(sorted(SCALARS)).flatmap(
    lambda item_type: st.tuples(st.just(item_type), st.lists(SCALARS[item_type], max_size=8))
)
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).map(
    lambda name: f"x.{name}"
)


@settings(max_examples=200, deadline=2000)
@given(
    scalars=st.dictionaries(KEYS, TYPED, max_size=6),
    arrays=st.dictionaries(KEYS.map(lambda key: f"a{key}"), ARRAYS, max_size=4),
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=5),
)
def test_what_is_written_is_read(
    scalars: dict[str, Any], arrays: dict[str, Any], shapes: list[list[int]]
) -> None:
    pairs = [seeds.kv(key, kind, value) for key, (kind, value) in scalars.items()]
    pairs += [seeds.array(key, kind, values) for key, (kind, values) in arrays.items()]
    entries, offset = [], 0
    for index, dims in enumerate(shapes):
        entries.append(seeds.tensor(f"t{index}", dims, seeds.F32_TYPE, offset))
        n_bytes = 4
        for dim in dims:
            n_bytes *= dim
        offset += n_bytes + -n_bytes % seeds.ALIGNMENT
    header = parse_gguf_full(seeds.gguf(pairs, entries, bytes(offset)))
    expected = {key: value for key, (_, value) in {**scalars, **arrays}.items()}
    assert dict(header.kv) == expected
    assert [list(t.dims) for t in header.tensors] == shapes


@settings(max_examples=200, deadline=2000)
@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda k: k != "__metadata__"),
        st.lists(st.integers(0, 7), max_size=4),
        max_size=6,
    ),
    metadata=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=9),
        st.text(st.characters(codec="utf-8"), max_size=30),
        max_size=4,
    ),
)
def test_what_is_written_is_read_safetensors(
    shapes: dict[str, list[int]], metadata: dict[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        n_bytes = 2
        for extent in shape:
            n_bytes *= extent
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    parsed = parse_safetensors(seeds.safetensors(header, bytes(offset)))
    assert {name: list(t.shape) for name, t in parsed.tensors.items()} == shapes
    assert dict(parsed.metadata) == metadata


# ---- against the published packages -----------------------------------------------------------


def test_accepted_gguf_loads_in_the_gguf_package(tmp_path: Path) -> None:
    reader = pytest.importorskip("gguf").GGUFReader
    random_ = random.Random(11)
    path = tmp_path / "m.gguf"
    loaded = 0
    for index in range(4000):
        seed = GGUF_SEEDS[index % 3]
        data = seed if index < 3 else mutate.mutated(random_, seed, mutate.GGUF)
        header = outcome(parse_gguf, data)
        if header is None:
            continue
        path.write_bytes(data)
        other = reader(path)
        assert [t.name for t in other.tensors] == [t.name for t in header.tensors]
        for theirs, ours in zip(other.tensors, header.tensors, strict=True):
            assert tuple(theirs.shape.tolist()) == ours.dims
            assert theirs.tensor_type.name == ours.type_name
            assert theirs.data_offset == header.data_offset + ours.offset
            if ours.type_name != "Q8_1":  # gguf 0.19.0 has an outdated size for it
                assert theirs.n_bytes == ours.nbytes
        loaded += 1
    assert loaded > 50


def test_accepted_safetensors_loads_in_the_safetensors_package() -> None:
    deserialize = pytest.importorskip("safetensors").deserialize
    random_ = random.Random(12)
    loaded = 0
    for index in range(6000):
        seed = SAFETENSORS_SEEDS[index % 2]
        data = seed if index < 2 else mutate.mutated(random_, seed, mutate.SAFETENSORS)
        header = outcome(parse_safetensors, data)
        if header is None:
            continue
        theirs = dict(deserialize(io.BytesIO(data).getvalue()))
        assert set(theirs) == set(header.tensors)
        for name, tensor in header.tensors.items():
            assert tuple(theirs[name]["shape"]) == tensor.shape
        loaded += 1
    assert loaded > 50
