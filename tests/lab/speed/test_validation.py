"""The speed model against published rows: what is compared, the report, and hostile files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.cost.engine_classes import LLAMA_CPP
from lab.speed.models import find_model
from lab.speed.published import active_params_b, engine_class, read_quant
from lab.speed.published_boards import find_board
from lab.speed.published_rows import COLUMNS, Row, read_rows
from lab.speed.validation import Case, judge
from lab.speed.validation_bounds import conformal_bound, refitted_coverage
from lab.speed.validation_report import leave_one_out, render, report, summarize

ROOT = Path(__file__).parents[3]
SAMPLE = Path(__file__).parent / "fixtures" / "published-sample.csv"
KEPT = ROOT / "docs" / "validation"
PI5 = find_profile("raspberry-pi-5-8gb")


def test_active_parameters_are_read_off_a_name() -> None:
    stated = {"Qwen3-30B-A3B (MoE)": 3, "DeepSeekOCR 3B(A570M)": 0.57, "Llama-3 8B": None}
    assert {name: active_params_b(Row(1, model=name)) for name in stated} == stated


def cpu_row(**texts: str) -> Row:
    given = {"device": "Raspberry Pi 5", "runtime": "llama.cpp", "accelerator": "cpu", **texts}
    return Row(1, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (cpu_row(), "llama.cpp"),
        (cpu_row(runtime="llama.cpp b3500"), "llama.cpp-2024"),
        (cpu_row(runtime="llama.cpp b8999"), "llama.cpp"),
        (cpu_row(quant="Q4_0_4_8"), "llama.cpp-2024-repacked"),
        (cpu_row(runtime="ollama 0.1.42"), "llama.cpp-2024"),
        (cpu_row(runtime="ollama 0.6.4"), "llama.cpp"),
        (cpu_row(source="https://github.com/ggml-org/llama.cpp/pull/6928"), "llama.cpp-2024"),
        (cpu_row(runtime="T-MAC"), "t-mac"),
        (cpu_row(runtime="LiteRT-LM v0.16.0"), "litert-lm"),
        (cpu_row(runtime="LiteRT-LM", accelerator="gpu", device="Jetson Orin Nano"), "litert-gpu"),
        (cpu_row(accelerator="gpu", device="Jetson Orin Nano 8GB"), "llama.cpp-cuda"),
        (cpu_row(accelerator="gpu", device="Jetson Nano 4GB"), "llama.cpp-cuda-old"),
        (cpu_row(runtime="rkllm", accelerator="npu"), "rkllm-npu"),
    ],
)
def test_engine_classes_are_told_apart(row: Row, name: str) -> None:
    found = engine_class(row, find_board(row))
    assert found is not None and found.name == name


def test_an_unstated_accelerator_has_no_class() -> None:
    assert engine_class(cpu_row(accelerator=""), PI5) is None


@pytest.mark.parametrize(
    ("device", "soc", "ram", "board"),
    [
        ("Raspberry Pi 5", "", 2, "raspberry-pi-5-2gb"),
        ("Raspberry Pi 5 (no SDRAM tweak)", "BCM2712 (4x Cortex-A76)", 16, "raspberry-pi-5-16gb"),
        ("Raspberry Pi 4B", "", 8, "raspberry-pi-4b-8gb"),
        ("RK3588 board", "RK3588", 16, "orange-pi-5-16gb"),
        ("Jetson Orin Nano Super 8GB", "Orin Nano", 8, "jetson-orin-nano-super-8gb"),
        ("Snapdragon 8 Elite QRD", "Snapdragon 8 Elite", None, "snapdragon-8-elite-reference"),
        ("Samsung Galaxy S24 Ultra", "Snapdragon 8 Gen 3", None, "galaxy-s24-ultra"),
        ("Raspberry Pi 4 Model B Rev 1.5 (8GB)", "", None, "raspberry-pi-4b-8gb"),
        ("RPi5", "", 4, "raspberry-pi-5-4gb"),
        ("Raspberry Pi Compute Module 5", "", 8, "raspberry-pi-cm5-8gb"),
        ("Raspberry Pi Zero 2W", "", None, "raspberry-pi-zero-2-w"),
        ("OrangePi 5 Plus", "", 16, "orange-pi-5-16gb"),
        ("Some box", "Rockchip RK3588S", 8, "orange-pi-5-8gb"),
        ("Jetson Orin Nano Developer Kit", "", None, "jetson-orin-nano-8gb"),
        ("Jetson AGX Orin 64GB Developer Kit", "", None, "jetson-agx-orin-64gb"),
        ("Pixel 8 Pro", "", None, "pixel-8"),
        ("Some phone", "Qualcomm SM8650", None, "oneplus-12-16gb"),
        ("Vivo X100", "MediaTek Dimensity 9300", None, "dimensity-9300-reference"),
        ("Snapdragon 8 Gen 3 phone", "", 12, "snapdragon-8-gen-3-reference"),
    ],
)
def test_boards_are_found_by_name_soc_and_ram(
    device: str, soc: str, ram: float | None, board: str
) -> None:
    found = find_board(Row(1, device=device, soc=soc, numbers={"ram_gb": ram}))
    assert found is not None and found.id == board


def test_an_unknown_board_is_none() -> None:
    assert find_board(Row(1, device="Toaster 9000", soc="Snapdragon 8 Elite Gen 99")) is None
    assert find_board(Row(1, device="Samsung Galaxy S24", soc="Exynos 2400")) is None
    assert find_board(Row(1, device="Dimensity 9300+ phone", soc="Dimensity 9300+")) is None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "llama-3.2-1b"),
        ("llama3.2:1b-instruct-q4_K_M", "llama-3.2-1b"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("gemma-3-1b-it-qat", "gemma-3-1b"),
        ("Qwen3-4B-Instruct-2507", "qwen3-4b"),
        ("DeepSeek R1 1.5B", "deepseek-r1-distill-qwen-1.5b"),
        ("BitNet b1.58 2B4T", "bitnet-b1.58-2b-4t"),
        ("granite-4.0-micro", "granite-4.0-micro"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
    ],
)
def test_models_are_found_as_people_write_them(written: str, name: str) -> None:
    found = find_model(written)
    assert found is not None and found.name == name


def test_a_name_without_its_size_takes_it_from_the_column(tmp_path: Path) -> None:
    row = {**GOOD, "model": "Llama 3.2", "params_b": "1", "prefill_tps": ""}
    cases, _ = judge(read_rows(write_rows(tmp_path / "a.csv", row)))
    assert [(case.model, case.model_known) for case in cases] == [("llama-3.2-1b", True)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Q4_K_M (KV q8_0)", "Q4_K_M"),
        ("Q4_0_4_4", "Q4_0"),
        ("w8a8", "I8"),
        ("w4a16_g128", "I4"),
        ("mixed 2/4/8-bit (QAT)", "I4"),
        ("W2 (T-MAC 2-bit)", "I2"),
        ("BF16", "BF16"),
        ("fp32", "F32"),
        ("SpinQuant 4-bit", "I4"),
        ("UD-Q4_K_XL", "Q4_K_M"),
        ("wNa8o8 (2/4/8-bit QAT)", "I4"),
        ("IQ2_M", "IQ2_S"),
        ("MXFP4", "MXFP4"),
        ("AWQ", "I4"),
        ("FP8", "I8"),
        ("TQ2_0", "TQ2_0"),
    ],
)
def test_quantizations_are_read(text: str, name: str) -> None:
    found = read_quant(cpu_row(quant=text, runtime="other"))
    assert found is not None and found.name == name


def test_a_blank_quantization_is_ollamas_default_and_nobody_elses() -> None:
    default = read_quant(cpu_row(runtime="ollama"))
    assert default is not None and default.name == "Q4_K_M"
    assert read_quant(cpu_row()) is None and read_quant(cpu_row(quant="???")) is None


def write_rows(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


GOOD = {
    **{"device": "Raspberry Pi 5", "ram_gb": "8", "runtime": "llama.cpp", "accelerator": "cpu"},
    **{"model": "Qwen2.5-1.5B", "params_b": "1.5", "quant": "Q4_K_M", "threads": "4"},
    **{"prompt_tokens": "512", "gen_tokens": "128", "prefill_tps": "55", "decode_tps": "10.5"},
}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"decode_tps": "fast"}, "broken row"),
        ({"decode_tps": "-3"}, "broken row"),
        ({"decode_tps": "nan"}, "broken row"),
        ({"params_b": "inf"}, "broken row"),
        ({"decode_tps": "", "prefill_tps": ""}, "no prefill or decode figure"),
        ({"device": "Toaster"}, "no profile of this board"),
        ({"accelerator": ""}, "accelerator or runtime not stated"),
        ({"accelerator": "cpu+gpu"}, "accelerator or runtime not stated"),
        ({"runtime": "abacus"}, "no engine class for the runtime 'abacus'"),
        ({"runtime": "llama.cpp (CUDA, ngl 3 of 20)"}, "layers split"),
        ({"model": "Qwen2.5-1.5B (RAM limited to 1G)"}, "RAM limited"),
        ({"model": "no such", "params_b": ""}, "not in the catalogue"),
        ({"quant": "four"}, "quantization"),
        ({"model_size_gb": "900"}, "contradicts"),
        ({"model": "Llama-3.1-8B", "quant": "Q8_0"}, "does not fit the free RAM"),
        ({"decode_tps": "0.012"}, "decode below 0.1"),
        ({"prompt_tokens": "20"}, "at most 24 tokens"),
    ],
)
def test_rows_are_set_aside_with_the_reason(
    tmp_path: Path, changed: dict[str, str], reason: str
) -> None:
    cases, aside = judge(read_rows(write_rows(tmp_path / "a.csv", {**GOOD, **changed})))
    assert len(aside) == 1 and reason in aside[0].reason
    assert len(cases) == (1 if aside[0].metric else 0)


def test_a_good_row_gives_both_figures(tmp_path: Path) -> None:
    cases, aside = judge(read_rows(write_rows(tmp_path / "a.csv", GOOD)))
    assert [case.metric for case in cases] == ["decode", "prefill"] and not aside
    assert all(case.covered and case.error < 0.2 for case in cases)


def test_a_row_written_twice_counts_once(tmp_path: Path) -> None:
    other = {**GOOD, "decode_tps": "10.6"}
    cases, aside = judge(read_rows(write_rows(tmp_path / "a.csv", GOOD, GOOD, other)))
    assert len(cases) == 4 and [item.reason for item in aside] == ["the same as an earlier row"]


def test_units_beside_sizes_are_understood(tmp_path: Path) -> None:
    row = {**GOOD, "ram_gb": "8 GB", "params_b": "1500M", "model_size_gb": "986 MB"}
    [found] = read_rows(write_rows(tmp_path / "a.csv", row))
    assert found.broken is None
    sizes = [found.number(name) for name in ("ram_gb", "params_b", "model_size_gb")]
    assert sizes == [8, pytest.approx(1.5), pytest.approx(0.986)]
    [broken] = read_rows(write_rows(tmp_path / "b.csv", {**GOOD, "decode_tps": "10 GB"}))
    assert broken.broken == "decode_tps is '10 GB'"


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("device,model\nPi,x\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column soc"):
        read_rows(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_rows(tmp_path / "missing.csv")


texts = st.text(max_size=30) | st.sampled_from(
    ["cpu", "gpu", "npu", "Raspberry Pi 5", "llama.cpp", "ngl 1 of 0", "Q4_0", "8b", "1e999", "-1"]
)
# Rows that get as far as an estimate: every column plausible, odd or blank.
PLAUSIBLE = {
    "device": ["Raspberry Pi 5", "Jetson Orin Nano 8GB", "Galaxy S24 Ultra", "x (depth 999999)"],
    "soc": ["", "RK3588", "Tensor G3", "SM8650", "BCM2711 (4x Cortex-A72)"],
    "ram_gb": ["", "0.5", "8", "64 GB", "1e6"],
    "runtime": ["llama.cpp", "ollama 0.3", "rkllm", "MLC", "LiteRT-LM", "single-core decode MNN"],
    "model": ["Llama 3.2 1B", "Gemma 4 E2B", "Mixtral 8x7B", "x 3B", "LFM2-1.2B", "OLMoE-1B-7B"],
    "params_b": ["", "0.02", "3", "1900"],
    "quant": ["Q4_0", "Q8_0", "F16", "w4a16", "IQ2_XXS", "MXFP4", "TQ1_0", "Q4_K_M (KV q8_0)", ""],
    "model_size_gb": ["", "0.001", "2.1", "900"],
    "threads": ["", "1", "4", "64", "0.5"],
    "accelerator": ["cpu", "gpu", "npu", "cuda", "GPU (Vulkan)", ""],
    "prompt_tokens": ["", "1", "512", "100000"],
    "gen_tokens": ["", "0", "128"],
    "prefill_tps": ["", "0.001", "50", "1e6"],
    "decode_tps": ["", "0.001", "9", "1e6"],
    "peak_mem_gb": ["", "?"],
    "source": ["", "T-MAC", "yzma"],
}


@given(st.lists(st.fixed_dictionaries({k: st.sampled_from(v) for k, v in PLAUSIBLE.items()})))
@settings(deadline=None, max_examples=150)
def test_no_plausible_row_breaks_the_report(
    tmp_path_factory: Any, lines: list[dict[str, str]]
) -> None:
    rows = read_rows(write_rows(tmp_path_factory.mktemp("fuzz") / "a.csv", *lines))
    cases, aside = judge(rows)
    assert all(0 < case.predicted < 1e9 and case.bound > 0 for case in cases)
    assert all(item.reason for item in aside)
    accounted = {case.line for case in cases} | {item.line for item in aside}
    assert accounted == {row.line for row in rows}
    json.dumps(report(rows), allow_nan=False)


@given(st.lists(st.lists(texts, min_size=len(COLUMNS), max_size=len(COLUMNS)), max_size=4))
@settings(deadline=None, max_examples=100)
def test_no_file_breaks_the_report(tmp_path_factory: Any, lines: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(lines)
    try:
        rows = read_rows(path)
    except ValueError:
        return
    result = report(rows)
    assert result["rows"] == len(rows)
    assert list(render(result))
    json.dumps(result, allow_nan=False)


def test_bytes_of_any_kind_are_read(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", GOOD)
    path.write_bytes(path.read_bytes() + b"\xff\xfe\0,,\n" + b"x" * 3000 + b"," * 40 + b"\n")
    result = report(read_rows(path))
    assert result["rows"] == 3 and result["cpu"]["rows_used"] == 1


def case(board: str, measured: float, predicted: float = 10.0) -> Case:
    return Case(1, "decode", board, board, LLAMA_CPP, "m", True, measured, predicted, 0.3)


def test_errors_and_coverage_are_what_they_say() -> None:
    got = summarize([case("a", 10), case("b", 12.5), case("c", 20)])
    assert got["decode_median_error"] == pytest.approx(0.2)
    assert got["coverage"] == pytest.approx(2 / 3) and got["prefill_median_error"] is None
    assert case("a", 7.7).covered and not case("a", 7.6).covered and not case("a", 13.1).covered


def test_leaving_one_out_learns_from_the_others_only() -> None:
    left, alone = leave_one_out([case("a", 20), case("b", 40)], lambda c: c.board)
    assert alone == 0 and [c.predicted for c in left] == [pytest.approx(40), pytest.approx(20)]
    left, alone = leave_one_out([case("a", 20), case("a", 30)], lambda c: c.board)
    assert alone == 2 and not left


def test_a_conformal_bound_covers_a_further_error() -> None:
    errors = [i / 100 for i in range(1, 100)]  # 99 errors: the 90th of 100 ranks
    assert conformal_bound(errors, 0.9) == pytest.approx(0.90)
    assert conformal_bound([0.2, 0.4], 0.9) == pytest.approx(0.5)  # too few: the largest, widened
    assert conformal_bound([]) is None


def test_bounds_for_a_board_rest_on_the_others() -> None:
    tight = [case(board, 10.0 + i / 10) for board in "abc" for i in range(10)]
    assert refitted_coverage(tight, lambda c: c.board) == 1.0
    wild = [case("d", 100.0)]
    assert refitted_coverage([*tight, *wild], lambda c: c.board) == pytest.approx(30 / 31)
    assert refitted_coverage(wild, lambda c: c.board) is None


FIGURES = {"rows_used", "decode_median_error", "prefill_median_error", "coverage"}


def test_the_report_has_the_promised_figures() -> None:
    result = report(read_rows(SAMPLE))
    assert set(result["cpu"]) >= FIGURES
    assert all(set(line) >= FIGURES for line in result["boards"].values())
    assert all(set(line) >= FIGURES for line in result["engine_classes"].values())
    assert result["boards"]["raspberry-pi-5"]["rows_used"] > 3
    classes = result["boards"]["raspberry-pi-5"]["engine_classes"]
    assert (
        sum(line["rows_used"] for line in classes.values())
        == (result["boards"]["raspberry-pi-5"]["rows_used"])
    )
    aside = result["set_aside"].values()
    assert sum(found["rows"] for found in aside) > 3
    assert all(found["rows"] == sum(found["boards"].values()) for found in aside)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "validate_predictions"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_script_prints_what_the_repository_keeps() -> None:
    # After a change of boards or of the speed model: docs/validation/README.md says how to renew.
    text, data = run_script(str(SAMPLE)), run_script(str(SAMPLE), "--json")
    assert text.stdout == (KEPT / "sample.txt").read_text("utf-8")
    assert json.loads(data.stdout) == json.loads((KEPT / "sample.json").read_text("utf-8"))


def test_the_script_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    result = run_script(str(tmp_path / "missing.csv"))
    assert result.returncode == 3 and "cannot be read" in result.stderr


def test_the_kept_figures_meet_the_targets() -> None:
    kept = json.loads((KEPT / "published.json").read_text("utf-8"))
    for name in ("cpu", "cpu_leave_one_board_out", "cpu_leave_one_model_out"):
        assert kept[name]["decode_median_error"] <= 0.12, name
        assert kept[name]["prefill_median_error"] <= 0.20, name
        assert kept[name]["coverage"] >= 0.9, name
    assert kept["cpu_leave_one_board_out_bandwidth_kept"]["coverage"] >= 0.9
    assert all(line["stated"] >= line["needed"] for line in kept["bounds"])
