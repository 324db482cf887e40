"""Packed bundles: the narrow tar that we write is read, any other is refused at once."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import MANIFEST, open_bundle, pack_bundle, unpack_bundle
from boardfit.edge.bundle.tar import BLOCK, TarWriter, read_entries
from boardfit.edge.errors import EdgeError, InputError, UnsafeInputError
from tests.edge.bundle.test_bundle import sealed  # noqa: F401 (a fixture)


def header(
    name: str = "model.gguf", *, kind: bytes = b"0", size: bytes = b"00000000000\0"
) -> bytes:
    """A GNU header with a right checksum."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157], block[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(n: int) -> bytes:
    return b"%011o\0" % n


def pax(body: bytes, kind: bytes = b"x") -> bytes:
    padding = bytes(-len(body) % BLOCK)
    return header("pax", kind=kind, size=octal(len(body))) + body + padding


def by_python(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("model.gguf")
        change(entry)
        archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    return out.getvalue()


END = bytes(2 * BLOCK)
HOSTILE = {
    "200,000 zeros in a pax header": pax(b"0" * 200_000) + END,
    "a global pax header": pax(b"30 comment=" + b"x" * 19, b"g") + END,
    "a pax size": by_python(lambda e: e.pax_headers.update(size="1" * 400)),
    "sparse, GNU": header(kind=b"S", size=octal(0)) + END,
    "sparse, pax": by_python(lambda e: e.pax_headers.update({"GNU.sparse.map": "0,1" * 99})),
    "negative size": header(size=b"\xff" * 12) + END,
    "negative octal size": header(size=b"-0000000001\0") + END,
    "a size of letters": header(size=b"zzzzzzzzzzz\0") + END,
    "an empty size": header(size=bytes(12)) + END,
    "a size beyond the file": header(size=octal(1 << 32)) + END,
    "a size of 2**87": header(size=b"\x80" + b"\xff" * 11) + END,
    "5,000 nested long names": header("l", kind=b"L", size=octal(1)) * 5000 + END,
    "5,000 nested pax headers": pax(b"11 path=ab\n") * 5000 + END,
    "a symbolic link": header(kind=b"2") + END,
    "a hard link": header(kind=b"1") + END,
    "a pipe": header(kind=b"6") + END,
    "a device": header(kind=b"3") + END,
    "an unknown type": header(kind=b"Z") + END,
    "a folder with content": header("a", kind=b"5", size=octal(1)) + bytes(BLOCK) + END,
    "100,000 entries": header() * 100_000 + END,
    "one name twice": header() * 2 + END,
    "a file that is a folder": header("a", kind=b"5") + header("a") + END,
    "a name outside ASCII": header("möwe") + END,
    "a wrong checksum": header().replace(b"model", b"modem") + END,
    "nothing but zeros": bytes(1 << 20),
    "no magic": bytes(257) + b"notar" + bytes(250),
    "no end": header(),
    "half a header": header()[:300],
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("use", ["open", "unpack"])
def test_any_other_tar_is_refused_at_once(tmp_path: Path, case: str, use: str) -> None:
    packed = tmp_path / "x.tar"
    packed.write_bytes(HOSTILE[case])
    start = time.monotonic()
    with pytest.raises(InputError):
        if use == "open":
            open_bundle(packed)
        else:
            unpack_bundle(packed, tmp_path / "copy")
    assert time.monotonic() - start < 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("use", ["open", "unpack"])
def test_a_large_hole_is_refused_at_once(tmp_path: Path, use: str) -> None:
    packed = tmp_path / "x.tar"
    with packed.open("wb") as file:
        file.truncate(20 << 30)
    start = time.monotonic()
    with pytest.raises(InputError):
        if use == "open":
            open_bundle(packed)
        else:
            unpack_bundle(packed, tmp_path / "copy")
    assert time.monotonic() - start < 1


def test_a_refusal_names_the_entry_and_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(HOSTILE["a pax size"])
    with pytest.raises(UnsafeInputError, match="byte 0: a pax header") as caught:
        unpack_bundle(tmp_path / "x.tar", tmp_path / "copy")
    assert "edge bundle pack" in (caught.value.next_step or "")


def test_packs_the_bytes_that_pythons_tarfile_writes(sealed: Path, tmp_path: Path) -> None:  # noqa: F811
    pack_bundle(sealed, tmp_path / "ours.tar")
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in (MANIFEST, "SHA256SUMS", "LICENSE", "model.gguf"):
            entry = tarfile.TarInfo(name)
            data = (sealed / name).read_bytes()
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


@pytest.mark.parametrize("n", [1, 100, 101, 200, 215])
def test_names_up_to_the_limit_survive(n: int) -> None:
    name = ("a" * 60 + "/") * 4 + "b" * 99 if n > 101 else "a" * n
    name = name[:n].rstrip("/")
    out = io.BytesIO()
    writer = TarWriter(out)
    if n == 101:
        with pytest.raises(InputError, match="too long"):
            writer.add(name, 0, io.BytesIO())
        return
    writer.add(name, 3, io.BytesIO(b"abc"))
    writer.close()
    data = out.getvalue()
    assert [e[:2] for e in read_entries(io.BytesIO(data), len(data), "x", 9)] == [(name, 3)]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.next()
        assert member is not None and (member.name, member.size) == (name, 3)


def test_eight_gigabytes_and_more_have_a_size() -> None:
    size = 9 << 30
    block = header(size=b"\x80" + size.to_bytes(11, "big"))
    entry = next(iter(read_entries(io.BytesIO(block), size + 3 * BLOCK, "x", 9)))
    assert entry.n_bytes == size


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_of_the_folder_is_read(sealed: Path, tmp_path: Path, form: int) -> None:  # noqa: F811
    with tarfile.open(tmp_path / "hand.tar", "w", format=form) as archive:
        archive.add(sealed, arcname=".")
    assert unpack_bundle(tmp_path / "hand.tar", tmp_path / "copy").id == open_bundle(sealed).id


@pytest.mark.parametrize("seed", range(40))
def test_damage_ends_in_an_error_of_ours_or_the_same_bundle(
    sealed: Path,  # noqa: F811
    tmp_path: Path,
    seed: int,
) -> None:
    import random

    rng = random.Random(seed)
    pack_bundle(sealed, tmp_path / "x.tar")
    data = bytearray((tmp_path / "x.tar").read_bytes())
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(BLOCK) + BLOCK * rng.randrange(len(data) // BLOCK)] = rng.randrange(256)
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    (tmp_path / "x.tar").write_bytes(data)
    try:
        unpacked = unpack_bundle(tmp_path / "x.tar", tmp_path / "copy")
    except EdgeError:
        assert not os.path.exists(tmp_path / "copy")
    else:
        assert unpacked.id == open_bundle(sealed).id
