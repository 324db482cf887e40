"""Partition tables are read and grown as sfdisk made them; damaged ones are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.errors import DoesNotFitError, InputError
from boardfit.edge.flash.media.partitions import SECTOR, grow, read_table
from boardfit.edge.units import MIB
from tests.edge.flash.media.images import run, table_of
from tests.programs import require


def theirs(path: Path) -> list[tuple[int, int, int]]:
    """(number, first byte, bytes) as sfdisk has them; an extended partition is only a frame."""
    table = table_of(path)
    return [
        (int(p["node"].removeprefix(str(path)).removeprefix("p")), p["start"] * SECTOR,
         p["size"] * SECTOR)
        for p in table["partitions"]
        if table["label"] == "gpt" or p["type"] not in ("5", "f", "85")
    ]  # fmt: skip


def lay_out(path: Path, label: str, script: str, n_mib: int = 64) -> Path:
    with path.open("wb") as file:
        file.truncate(n_mib * MIB)
    run("sfdisk", "-q", path, input=f"label: {label}\n{script}\n")
    return path


@st.composite
def layouts(draw: st.DrawFn) -> str:
    """Up to four partitions with gaps, in any order of numbers."""
    sizes = draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=4))
    gaps = draw(st.lists(st.integers(0, 3_000), min_size=4, max_size=4))
    at, lines = 2048, []
    for size, gap in zip(sizes, gaps, strict=False):
        lines.append(f"start={at + gap},size={size}")
        at += gap + size
    return "\n".join(draw(st.permutations(lines)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("sfdisk")
    return tmp_path_factory.mktemp("tables")


@settings(max_examples=25)
@given(label=st.sampled_from(["dos", "gpt"]), layout=layouts(), more=st.integers(0, 200_000))
def test_reads_and_grows_what_sfdisk_makes(
    folder: Path, label: str, layout: str, more: int
) -> None:
    path = lay_out(folder / "table.img", label, layout)
    before = read_table(path)
    assert before.label == label
    assert [(p.number, p.start, p.n_bytes) for p in before.partitions] == theirs(path)

    last = max(before.partitions, key=lambda p: p.start)
    identity = table_of(path)["id"], [p.get("uuid") for p in table_of(path)["partitions"]]
    after = grow(path, before, last.number, last.n_bytes + more * SECTOR)
    assert read_table(path) == after
    assert [(p.number, p.start, p.n_bytes) for p in after.partitions] == theirs(path)
    assert after.partition(last.number).n_bytes == last.n_bytes + more * SECTOR
    assert (
        table_of(path)["id"], [p.get("uuid") for p in table_of(path)["partitions"]]
    ) == identity  # fmt: skip
    said = run("sfdisk", "--verify", path)
    assert "No errors detected" in said, said


def test_logical_partitions(folder: Path) -> None:
    script = "start=2048,size=16384\nstart=20480,size=81920,type=5\n"
    script += "start=22528,size=8192\nstart=34816,size=8192\nstart=47104,size=8192"
    path = lay_out(folder / "logical.img", "dos", script)
    table = read_table(path)
    assert [(p.number, p.start, p.n_bytes) for p in table.partitions] == theirs(path)
    assert [p.number for p in table.partitions] == [1, 5, 6, 7]
    with pytest.raises(InputError, match="logical"):
        grow(path, table, 7, 9000 * SECTOR)
    # The last link leads to the first one: endless.
    data = bytearray(path.read_bytes())
    third = table.partition(7).start
    link = next(
        at for at in range(third - SECTOR, 0, -SECTOR) if data[at + 510 : at + 512] == b"U\xaa"
    )
    data[link + 462 : link + 478] = struct.pack("<B3xB3xII", 0, 5, 22528 - 2048 - 20480, 8192)
    path.write_bytes(data)
    with pytest.raises(InputError, match="broken"):
        read_table(path)


def test_another_partition_is_in_the_way(folder: Path) -> None:
    path = lay_out(folder / "way.img", "gpt", "start=2048,size=4096\nstart=8192,size=4096")
    table = read_table(path)
    with pytest.raises(DoesNotFitError, match="another one begins after it, 512 B too early"):
        grow(path, table, 1, 6145 * SECTOR)
    assert grow(path, table, 1, 6144 * SECTOR).n_bytes == table.n_bytes  # the gap may be used


DAMAGE = {
    "no signature": ("dos", 510, b"\0\0", "no partition table"),
    "first sector 0": ("dos", 454, bytes(4), "makes no sense"),
    "past the end": ("dos", 458, b"\xff\xff\xff\x7f", "cut off"),
    "overlap": ("dos", 470, struct.pack("<I", 2049), "overlap"),
    "gpt magic": ("gpt", 512, b"X", "primary GPT table is corrupt"),
    "gpt header": ("gpt", 512 + 40, b"\x99", "primary GPT table is corrupt"),
    "gpt entry": ("gpt", 1024 + 33, b"\x99", "primary GPT table is corrupt"),
    "gpt backup": ("gpt", -512, b"X", "backup GPT table is corrupt"),
    "gpt backup entry": ("gpt", -512 * 33 + 33, b"\x99", "backup GPT table is corrupt"),
    "gpt with sectors of 4096": ("gpt", 512, bytes(3584) + b"EFI PART", "GPT table is corrupt"),
    "both gpts": ("gpt", 512, bytes(16 * 2**20 - 512), "sectors of 4096"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_refuses_damaged_tables(folder: Path, what: str) -> None:
    label, offset, data, said = DAMAGE[what]
    path = lay_out(folder / "broken.img", label, "start=2048,size=4096\nstart=8192,size=4096", 16)
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data) or None] = data
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_table(path)


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, bytes]:
    layout = "start=2048,size=4096\nstart=8192,size=4096,type=5\nstart=9000,size=100"
    gpt = layout.replace(",type=5", "").rpartition("\n")[0]
    return {
        "dos": lay_out(folder / "d.img", "dos", layout, 8).read_bytes(),
        "gpt": lay_out(folder / "g.img", "gpt", gpt, 8).read_bytes(),
    }


@settings(max_examples=30)
@given(
    label=st.sampled_from(["dos", "gpt"]),
    changes=st.lists(
        st.tuples(st.integers(0, 2048), st.binary(min_size=1, max_size=16)), max_size=4
    ),
    link=st.binary(max_size=16),
)
def test_hostile_tables_end_in_an_answer(
    folder: Path,
    tables: dict[str, bytes],
    label: str,
    changes: list[tuple[int, bytes]],
    link: bytes,
) -> None:
    """Any bytes give a table within the disk, or an InputError; never anything else."""
    disk = bytearray(tables[label])
    for offset, data in changes:
        disk[offset : offset + len(data)] = data
    disk[8192 * SECTOR + 446 : 8192 * SECTOR + 446 + len(link)] = link
    path = folder / "hostile.img"
    path.write_bytes(disk)
    try:
        table = read_table(path)
    except InputError:
        return
    assert all(0 < p.start < p.end <= len(disk) for p in table.partitions)
