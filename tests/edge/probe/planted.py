"""Copies of the installed engine in which one kernel is broken: it dies, or computes nothing."""

from __future__ import annotations

import platform
import shutil
import struct
from pathlib import Path

from boardfit.edge.probe.ggml import find_engine_folder

#: One instruction that every CPU of the kind refuses, and one that returns at once.
ILLEGAL = {"x86_64": b"\x0f\x0b", "aarch64": b"\0\0\0\0"}[platform.machine()]
RETURN = {"x86_64": b"\xc3", "aarch64": b"\xc0\x03\x5f\xd6"}[platform.machine()]


def plant(place: Path, *symbols: str, code: bytes = ILLEGAL) -> Path:
    """Copy the engine's package to `place`, with `code` where these kernels begin. Returns the
    folder to put on the path. At least one of the symbols must be there: each CPU has its own.
    """
    installed = find_engine_folder()
    assert installed is not None
    package = place / "llama_cpp"
    shutil.copytree(
        installed.parent, package, ignore=shutil.ignore_patterns("engine-proof-*", "__pycache__")
    )
    library = package / "lib/libggml-cpu.so"
    data = bytearray(library.read_bytes())
    places = [at for symbol in symbols if (at := find_symbol(data, symbol))]
    assert places, f"the engine exports none of {symbols}"
    for at in places:
        data[at : at + len(code)] = code
    library.write_bytes(data)
    return place


def find_symbol(data: bytes, symbol: str) -> int | None:
    """Where an exported function begins in a 64-bit little-endian ELF file; None without it."""
    header_at, n_headers = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)
    headers = [struct.unpack_from("<IIQQQQQQ", data, header_at + 56 * i) for i in range(*n_headers)]
    section_at = struct.unpack_from("<Q", data, 40)[0]
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, section_at + 64 * i)
        for i in range(struct.unpack_from("<H", data, 60)[0])
    ]
    dynsym = next(section for section in sections if section[1] == 11)  # SHT_DYNSYM
    names_at = sections[dynsym[6]][4]
    for at in range(dynsym[4], dynsym[4] + dynsym[5], 24):
        name, _, _, _, address, _ = struct.unpack_from("<IBBHQQ", data, at)
        start = names_at + name
        if address and data[start : data.index(0, start)] == symbol.encode():
            for kind, _, offset, virtual, _, size, _, _ in headers:
                if kind == 1 and virtual <= address < virtual + size:  # PT_LOAD
                    return int(address - virtual + offset)
    return None
