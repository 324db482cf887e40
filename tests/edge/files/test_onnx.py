"""The header reader of .onnx files: what it says of honest ones; hostile ones are refused."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.files.onnx import read_onnx
from tests.edge.files.wire import attribute, external, model, node, number, text, value_info


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def test_reads_what_an_honest_file_says(tmp_path: Path) -> None:
    graph = [
        value_info(11, "image", 1, ["batch", 3, 8]),
        node("Conv", "c1", attribute("group", 2)),
        node("MatMulNBits", "m", attribute("N", 10), domain="com.microsoft"),
    ]
    found = read_onnx(write(tmp_path, model(*graph)))
    assert found.inputs[0].name == "image" and found.inputs[0].shape == ("batch", 3, 8)
    assert found.inputs[0].dtype == "float32"
    assert found.ops == {"Conv": 1, "com.microsoft.MatMulNBits": 1}
    assert found.nodes[0].ints == {"group": 2}
    assert found.external_files == ()


def test_external_data_beside_the_model_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    path = write(tmp_path, model(external("w", "weights.bin", [4, 4], 0, 64)))
    found = read_onnx(path)
    assert found.external_files == ("weights.bin",) and found.tensors[0].nbytes == 64
    assert found.nbytes == path.stat().st_size + 64


@pytest.mark.parametrize(
    "location",
    [
        "../weights.bin",
        "/etc/passwd",
        "a/b.bin",
        "..",
        ".hidden",
        "C:\\w.bin",
        "a\\b",
        "",
        "x\x00y",
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path.parent / "w.bin").write_bytes(bytes(64))
    path = write(tmp_path, model(external("w", location, [4, 4], 0, 64)))
    with pytest.raises(UnsafeInputError, match="own folder"):
        read_onnx(path)


def test_external_data_that_is_a_link_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(64))
    home = tmp_path / "home"
    home.mkdir()
    (home / "weights.bin").symlink_to(outside)
    with pytest.raises(UnsafeInputError, match="link"):
        read_onnx(write(home, model(external("w", "weights.bin", [4, 4], 0, 64))))


@pytest.mark.parametrize(("offset", "length"), [(0, 65), (60, 64), (10**17, 64), (1, 64)])
def test_external_data_past_its_file_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "w").write_bytes(bytes(64))
    with pytest.raises(InputError):
        read_onnx(write(tmp_path, model(external("w", "w", [4, 4], offset, length))))


@pytest.mark.parametrize("offset", ["-1", "0x10", "1e3", "9" * 40, "١"])
def test_offsets_that_are_no_plain_numbers_are_refused(tmp_path: Path, offset: str) -> None:
    (tmp_path / "w").write_bytes(bytes(64))
    with pytest.raises(UnsafeInputError, match="offset"):
        read_onnx(write(tmp_path, model(external("w", "w", [4, 4], offset, 64))))


def test_length_that_does_not_suit_the_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(64))
    with pytest.raises(UnsafeInputError, match="takes 32 bytes"):
        read_onnx(write(tmp_path, model(external("w", "w", [4, 2], 0, 64))))


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.data is missing"):
        read_onnx(write(tmp_path, model(external("w", "w.data", [4], 0, 16))))


def test_graphs_nested_too_deep_are_refused(tmp_path: Path) -> None:
    inner = node("Relu", "r")
    for _ in range(40):
        inner = node("If", "i", attribute_graph(inner))
    with pytest.raises(UnsafeInputError, match="deep"):
        read_onnx(write(tmp_path, model(inner)))


def attribute_graph(graph: bytes) -> bytes:
    return text(5, text(1, b"then_branch") + text(6, graph) + number(20, 5))


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GGUF"):
        read_onnx(write(tmp_path, b"GGUF" + bytes(60)))
    with pytest.raises(InputError, match="no graph"):
        read_onnx(write(tmp_path, number(1, 8)))
    with pytest.raises(InputError):
        read_onnx(tmp_path / "absent.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InputError, match="pipe"):
        read_onnx(tmp_path / "pipe.onnx")


HONEST = model(
    value_info(11, "x", 1, ["n", 3]), node("Conv", "c", attribute("group", 2)),
    external("w", "w", [4, 4], 0, 64),
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_edited_files_raise_our_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "w").write_bytes(bytes(64))
    edited = bytearray(HONEST)
    for _ in range(data.draw(st.integers(1, 6))):
        edited[data.draw(st.integers(0, len(edited) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(edited)))
    try:
        found = read_onnx(write(tmp_path, bytes(edited[:cut])))
    except InputError:
        return
    assert all(name == "w" for name in found.external_files)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_raise_our_errors_only(tmp_path: Path, data: bytes) -> None:
    with contextlib.suppress(InputError):
        read_onnx(write(tmp_path, data))
