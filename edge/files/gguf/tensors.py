"""The tensor table of a GGUF header, and where its data must lie."""

import math
import struct

from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.files.ggml_types import (
    BITNET_I2_S,
    GGML_TYPE_NAMES,
    GGML_TYPES,
    IK_LLAMA_TYPES,
    REMOVED_TYPES,
)
from boardfit.edge.files.gguf.header import GgufTensor
from boardfit.edge.files.gguf.metadata import MAX_ALIGNMENT
from boardfit.edge.files.gguf.reader import Reader
from boardfit.edge.files.kind import piece_kind
from boardfit.edge.units import printable

# Upstream's limits (`ggml/include/ggml.h`).
MAX_NAME_BYTES = 63  # GGML_MAX_NAME is 64 with the terminating zero
MAX_DIMS = 4
# ggml has 43 types and its forks end below 400; a larger number is damage.
MOST_TYPES = 512
INT64_MAX = 2**63 - 1


def read_tensors(reader: Reader, n_tensors: int) -> list[GgufTensor]:
    tensors: list[GgufTensor] = []
    seen: set[str] = set()
    for index in range(n_tensors):
        at = reader.pos
        tensor = _read_tensor(reader, index)
        if tensor.name in seen:
            reader.refuse(f"tensor {printable(tensor.name)!r} occurs twice", at)
        seen.add(tensor.name)
        tensors.append(tensor)
    return tensors


def _read_tensor(reader: Reader, index: int) -> GgufTensor:
    at = reader.pos
    name = reader.string(MAX_NAME_BYTES, f"the name of tensor {index}")
    if not name or "\0" in name:
        reader.refuse(f"the name of tensor {index} is empty or contains a zero byte", at)
    what = f"tensor {printable(name)!r}"
    dims = _read_dims(reader, what)
    type_id = reader.u32(f"the type of {what}")
    type_name = _type_name(reader, type_id, what)
    nbytes = _tensor_bytes(reader, type_name, dims, what)
    offset = reader.u64(f"the offset of {what}")
    return GgufTensor(name, dims, type_name, type_id, offset, nbytes)


def _read_dims(reader: Reader, what: str) -> tuple[int, ...]:
    at = reader.pos
    n_dims = reader.u32(f"the number of dimensions of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        reader.refuse(f"{what} has {n_dims} dimensions, expected 1 to {MAX_DIMS}", at)
    start = reader.skip(8 * n_dims, f"the shape of {what}")
    dims = struct.unpack_from(f"<{n_dims}Q", reader.data, start)
    if not min(dims) or math.prod(dims) > INT64_MAX:
        reader.refuse(f"{what} has an impossible shape {list(dims)}", start)
    return dims


def _type_name(reader: Reader, type_id: int, what: str) -> str:
    name = GGML_TYPE_NAMES.get(type_id)
    if name is not None:
        return name
    if type_id in REMOVED_TYPES:
        raise UnsupportedModelError(
            f"{reader.name}: {what} has type {REMOVED_TYPES[type_id]}, which ggml removed",
            next_step="Quantize the model again, as Q4_0 or IQ4_NL: engines repack those on load.",
        )
    if type_id == BITNET_I2_S:
        raise UnsupportedModelError(
            f"{reader.name}: {what} has type 36, which is I2_S of bitnet.cpp (a fork of llama.cpp)",
            next_step="run it with bitnet.cpp, or give the model's BF16 checkpoint or GGUF",
        )
    if type_id in IK_LLAMA_TYPES:
        raise UnsupportedModelError(
            f"{reader.name}: {what} has type {type_id}, which ggml does not have; "
            "ik_llama.cpp (a fork of llama.cpp) has types of such numbers",
            next_step="run it with ik_llama.cpp, or give a GGUF that was made with llama.cpp",
        )
    if type_id < MOST_TYPES:
        raise UnsupportedModelError(
            f"{reader.name}: {what} has ggml type {type_id}, which boardfit does not know",
            next_step="a newer boardfit may know it; else give a GGUF that was made with llama.cpp",
        )
    reader.refuse(f"{what} has unknown ggml type {type_id}", reader.pos - 4)


def _tensor_bytes(reader: Reader, type_name: str, dims: tuple[int, ...], what: str) -> int:
    _, block_size, type_size = GGML_TYPES[type_name]
    if dims[0] % block_size:
        reader.refuse(f"{what} has rows of {dims[0]}, not a multiple of {block_size} ({type_name})")
    nbytes = math.prod(dims) // block_size * type_size
    if nbytes > INT64_MAX - MAX_ALIGNMENT:
        reader.refuse(f"{what} takes {nbytes} bytes, more than any file holds")
    return nbytes


def align(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


def check_extents(
    reader: Reader, tensors: tuple[GgufTensor, ...], data_offset: int, alignment: int
) -> int:
    """Tensors must lie back to back, padded, inside the file. Returns the end of the last one."""
    expected = end = 0
    for tensor in tensors:
        if tensor.offset != expected:
            reader.refuse(
                f"tensor {printable(tensor.name)!r} has offset {tensor.offset}, expected {expected}"
            )
        end = tensor.offset + tensor.nbytes
        expected = align(end, alignment)
    if tensors and data_offset + end > reader.file_size:
        missing = data_offset + end - reader.file_size
        raise InputError(
            f"{reader.name}: truncated: the tensors need {data_offset + end} bytes, "
            f"the file has {reader.file_size} ({missing} missing)",
            next_step=piece.next_step
            if (piece := piece_kind(reader.name))
            else "Download or copy the file again; `ls -l` and the source's size must agree.",
        )
    return data_offset + end
