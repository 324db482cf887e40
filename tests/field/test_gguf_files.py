"""GGUF files of old, new and foreign tools, and parts of split ones.

A row is called as the input is. See `field_case` for its columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.field.field_case import BUILD, PLAN, RUN, FieldCase, Write, file, run_case
from tests.field.model_folders import write_gguf
from tests.field.test_checkpoints import POINTER
from tests.field.test_model_files import as_tensor_type

PARTS = tuple(f"m-0000{i}-of-00002.gguf" for i in (1, 2))


def with_version(number: int) -> Write:
    def write(path: Path) -> None:
        write_gguf(path)
        data = bytearray(path.read_bytes())
        data[4:8] = number.to_bytes(4, "little")
        path.write_bytes(data)

    return write


def big_endian(path: Path) -> None:
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + bytes(7) + b"\1" + bytes(4096))


def split(change: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """A model in two parts, of which `change` makes the input."""

    def make(place: Path) -> Path:
        write_gguf(place / "m.gguf", per_part=12)
        return change(place)

    return make


def join(place: Path) -> Path:
    joined = place / "joined.gguf"
    joined.write_bytes(b"".join((place / part).read_bytes() for part in PARTS))
    return joined


CASES = [
    FieldCase("gguf/type-q4_0_4_4.gguf", file("m.gguf", as_tensor_type(31)), PLAN, 3,
              ("Q4_0_4_4, which ggml removed", "as Q4_0")),
    *(FieldCase(f"gguf/type-{name}.gguf", file("m.gguf", lambda path, kind=kind: write_gguf(
        path, types={"ffn_down.weight": kind}, n_ff=256)), BUILD, 0)
      for name, kind in (("mxfp4", 39), ("tq1_0", 34), ("nvfp4", 40))),
    FieldCase("gguf/v1.gguf", file("m.gguf", with_version(1)), PLAN, 3,
              ("GGUF version 1", "Convert the original checkpoint")),
    FieldCase("gguf/v2.gguf", file("m.gguf", with_version(2)), BUILD, 0),
    FieldCase("gguf/big-endian.gguf", file("m.gguf", big_endian), PLAN, 3,
              ("big-endian", "gguf_convert_endian.py")),
    FieldCase("gguf/vocabulary-only.gguf", file("m.gguf", lambda path: write_gguf(
        path, weights=False)), PLAN, 3, ("holds a vocabulary only",)),
    FieldCase("gguf/eos-beyond.gguf", file("m.gguf", lambda path: write_gguf(path, eos=99999)),
              BUILD, 0),
    FieldCase("gguf/no-name.gguf", file("m.gguf", lambda path: write_gguf(path, name="")),
              BUILD, 0),
    FieldCase("gguf/lfs.gguf", file("m.gguf", lambda path: path.write_text(POINTER)), PLAN, 3,
              ("Git-LFS pointer", "git lfs pull")),
    FieldCase("gguf/split", split(lambda place: place / PARTS[1]), PLAN, 0),
    *(FieldCase(f"gguf/split, {part}, run", split(lambda place, part=part: place / part), RUN, 3,
                ("one part of a model in 2 files", "edge build")) for part in PARTS),
    FieldCase("gguf/split, one part alone", split(lambda place: (place / PARTS[0]).rename(
        place / f"lonely-{PARTS[0]}")), PLAN, 3, ("is missing (2 are needed)", "download all")),
    FieldCase("gguf/split, renamed", split(lambda place: (place / PARTS[0]).rename(
        place / "renamed.gguf")), PLAN, 3, ("one of 2 parts", "published under")),
    FieldCase("gguf/split, joined by cat", split(join), PLAN, 3,
              ("parts of a split model in one file", "llama-gguf-split --merge")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gguf_file(
    case: FieldCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_case(case, tmp_path, monkeypatch, capsys)
