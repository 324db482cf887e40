"""A camera model's way through the command line: quantized for a board, sealed, measured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.converters.build.network import BOUNDS, check_board, check_errors
from boardfit.converters.formats.network.quantize import NetworkReport
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.bench.command import bench
from boardfit.edge.bench.network_folder import RECORD, open_network_folder
from boardfit.edge.bench.store import read_results
from boardfit.edge.errors import (
    DoesNotFitError,
    EdgeError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UnsupportedModelError,
    UsageError,
)
from tests.converters.build.tflite_network import N_WEIGHTS, write_picture_network

BOARD = "raspberry-pi-5-8gb"

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.xdist_group("onnx-builder")]


def built(*words: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(
        build_command, [*map(str, words), "--threads", "1", "--json"], catch_exceptions=False
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def measured(network: Path, output: Path) -> dict[str, Any]:
    words = [str(network), "--quick", "--threads", "1", "-o", str(output)]
    done = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert done.exit_code == 0 and "per inference" in done.stdout
    return read_results([output]).records[-1]


@pytest.fixture(scope="module")
def folder(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "camera"
    built(networks / "picture.onnx", "-d", BOARD, "-o", out)
    return out


def test_onnx_for_two_boards_and_measured(networks: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "camera", tmp_path / "r.jsonl"
    boards = f"{BOARD},raspberry-pi-4b-4gb"
    found = built(networks / "picture.onnx", "-d", boards, "-o", out, "--recipe", "int4")
    assert [r["device"] for r in found] == boards.split(",")
    assert all(r["ratio"] < 0.28 and r["worst_relative_rms"] < BOUNDS["int4"] for r in found)
    pi5, pi4 = (open_network_folder(out / board) for board in boards.split(","))
    # A Cortex-A72 has no int8 products, so that its matrices are multiplied in float.
    assert pi5.file.path.read_bytes() != pi4.file.path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["camera"]
    small = measured(out / BOARD, store)
    full = measured(networks / "picture.onnx", store)
    assert small["quality"]["recipe"] == "int4" and small["quality"]["errors"]["scores"]
    assert full["quality"] is None
    assert small["artifact"]["n_bytes"] < 0.28 * full["artifact"]["n_bytes"]
    assert small["engine"]["details"]["operators"]["com.microsoft.MatMulNBits"] == 1
    assert small["metrics"]["latency_s"]["median"] > 0


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_tflite_and_measured(
    recipe: str, litert_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_LITERT_PYTHON", str(litert_python))
    tflite_network = write_picture_network(tmp_path / "picture.tflite")
    (found,) = built(
        tflite_network, "-d", BOARD, "-o", tmp_path / "q", "--recipe", recipe, "--format", "tflite"
    )
    assert found["ratio"] < (0.4 if recipe == "int8" else 0.3)
    assert 0 < found["worst_relative_rms"] < BOUNDS[recipe]
    assert sum(found["types"].values()) == N_WEIGHTS
    small = measured(tmp_path / "q", tmp_path / "r.jsonl")
    full = measured(tflite_network, tmp_path / "r.jsonl")
    assert small["artifact"]["n_bytes"] == found["nbytes"] < full["artifact"]["n_bytes"]
    assert small["engine"]["name"] == "ai-edge-litert"
    assert small["quality"]["errors"] == found["errors"]


def test_a_folder_that_was_changed_is_not_measured(folder: Path, tmp_path: Path) -> None:
    def refused(error: type[EdgeError], words: str) -> None:
        with pytest.raises(error, match=words):
            CliRunner().invoke(bench, [str(folder)], catch_exceptions=False)

    network, record = folder / "picture.onnx", folder / RECORD
    whole, said = network.read_bytes(), record.read_text()
    try:
        network.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused(IntegrityError, "sha256 differs")
        network.write_bytes(whole[:-1])
        refused(IntegrityError, "size or sha256")
        network.write_bytes(whole)
        (folder / "more.onnx").write_bytes(b"")
        refused(IntegrityError, "missing or added: more.onnx")
        (folder / "more.onnx").unlink()
        network.rename(tmp_path / "picture.onnx")
        network.symlink_to(tmp_path / "picture.onnx")
        refused(UnsafeInputError, "regular")
        network.unlink()
        network.write_bytes(whole)
        for old, new, words in (
            ('"schema": 1', '"schema": 9', "schema 9"),
            ("boardfit-network", "something", "not a record"),
            ('"network": "picture.onnx"', '"network": "../picture.onnx"', "not in 'files'"),
            ('"recipe": "int8"', '"recipe": 8', "recipe"),
            ("{", "[", "not valid JSON"),
        ):
            record.write_text(said.replace(old, new, 1))
            refused(InputError, words)
    finally:
        record.write_text(said)
        network.write_bytes(whole)
    open_network_folder(folder)


def test_what_a_network_cannot_be_built_with(networks: Path, folder: Path, tmp_path: Path) -> None:
    source = networks / "picture.onnx"
    for words, said in (
        (["-o", folder], "exists"),
        (["-o", source / "a" / "b"], "is not a folder"),
        (["-o", tmp_path / "x", "--ctx", 512], "--ctx"),
        (["-o", tmp_path / "x", "--format", "tflite"], "stays a .onnx"),
        (["-o", tmp_path / "x", "--recipe", "q4_0"], "unknown recipe"),
        (["-o", tmp_path / "x", "--shape", "picture=1x1x16x16"], "no input is called"),
    ):
        with pytest.raises(UsageError, match=said):
            built(source, "-d", BOARD, *words)
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        built(folder / "picture.onnx", "-d", BOARD, "-o", tmp_path / "x")
    (tmp_path / "page.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="web page"):
        built(tmp_path / "page.onnx", "-d", BOARD, "-o", tmp_path / "x")
    with pytest.raises(UsageError, match="language models"):
        built("sample", "-d", BOARD, "-o", tmp_path / "x", "--shape", "x=1")
    assert [p.name for p in tmp_path.iterdir()] == ["page.onnx"]


def test_a_board_too_small(networks: Path) -> None:
    import dataclasses

    board = find_profile(BOARD)
    memory = dataclasses.replace(board.memory, ram_bytes=board.memory.ram_bytes // 128)
    with pytest.raises(DoesNotFitError) as caught:
        check_board(networks / "picture.onnx", dataclasses.replace(board, memory=memory))
    assert caught.value.shortfall_bytes and caught.value.shortfall_bytes > 0


def test_outputs_that_moved_too_far_are_refused_unless_accepted() -> None:
    error = {"relative_rms": 0.5, "max_abs": 1.0, "snr_db": 6.0}
    report = NetworkReport(Path("x.onnx"), "int8", 100, 30, {"int8_b32": 1}, {"boxes": error})
    with pytest.raises(IntegrityError, match=r"boxes is off by 50.0%") as caught:
        check_errors(report, accept=False)
    assert "--accept-quality" in (caught.value.next_step or "")
    check_errors(report, accept=True)


def test_the_page_for_people(folder: Path, networks: Path, tmp_path: Path) -> None:
    words = [str(networks / "speech.onnx"), "-d", BOARD, "-o", str(tmp_path / "s")]
    done = CliRunner().invoke(
        build_command, [*words, "--shape", "features=1x30x40"], catch_exceptions=False
    )
    assert "as int8" in done.stdout and "next: edge bench" in done.stdout
    assert "outputs off by" in done.stdout
    assert os.path.basename(str(tmp_path / "s")) in done.stdout
