"""Wheels: the same bytes from the same files, and what pip makes of them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.board.engine.wheel_file import wheel_name, write_wheel

METADATA = "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
paths = st.from_regex(r"[a-z]{1,8}(/[a-z_]{1,8}){0,2}\.(py|so)", fullmatch=True)


def pack(files: dict[str, bytes], tag: str = "py3-none-any") -> bytes:
    return write_wheel("thing", "1.0", tag, METADATA, files, dist_info={"licenses/L": b"free\n"})


@given(st.dictionaries(paths, st.binary(max_size=200), max_size=6))
def test_same_files_in_any_order_give_the_same_bytes(files: dict[str, bytes]) -> None:
    assert pack(files) == pack(dict(reversed(files.items())))


@given(st.dictionaries(paths, st.binary(max_size=200), max_size=6))
def test_record_lists_every_file_with_its_hash(files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(pack(files))) as archive:
        record = csv.reader(io.StringIO(archive.read("thing-1.0.dist-info/RECORD").decode()))
        listed = {name: (digest, size) for name, digest, size in record}
        assert set(listed) == set(archive.namelist())
        for name, (digest, size) in listed.items():
            data = archive.read(name)
            if name.endswith("/RECORD"):
                assert (digest, size) == ("", "")
                continue
            hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={hashed}", len(data))


def test_nothing_of_the_moment_or_the_machine_is_in_it() -> None:
    with zipfile.ZipFile(io.BytesIO(pack({"a/b.so": b"1", "a/c.py": b"2"}))) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    assert {info.date_time for info in infos.values()} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.create_system for info in infos.values()} == {3}
    assert infos["a/b.so"].external_attr >> 16 == 0o100755
    assert infos["a/c.py"].external_attr >> 16 == 0o100644


def test_compressed_tags_are_written_out() -> None:
    data = pack({}, "py3-none-manylinux_2_34_aarch64.linux_aarch64")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        lines = archive.read("thing-1.0.dist-info/WHEEL").decode().splitlines()
    assert [line for line in lines if line.startswith("Tag:")] == [
        "Tag: py3-none-manylinux_2_34_aarch64",
        "Tag: py3-none-linux_aarch64",
    ]
    assert "Root-Is-Purelib: false" in lines


def test_pip_installs_it(tmp_path: Path) -> None:
    path = tmp_path / wheel_name("thing", "1.0", "py3-none-any", "1board")
    data = write_wheel(
        "thing", "1.0", "py3-none-any", METADATA, {"thing/__init__.py": b"X = 7\n"}, build="1board"
    )
    path.write_bytes(data)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target",
         tmp_path / "site", path],
        check=True, capture_output=True,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import thing; print(thing.X)"],
        env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "7"
