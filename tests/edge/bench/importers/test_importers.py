"""Other tools' files: captured output always, the tools themselves where they are installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bench.importers import load_importers, read_all, read_any
from boardfit.edge.bench.importers.record import ImportedFile, make_records
from boardfit.edge.errors import InputError
from boardfit.edge.report.command import report
from boardfit.edge.report.compare_command import compare_command
from boardfit.edge.report.figures import group_runs, median
from boardfit.edge.report.verify import verify_run
from tests.edge.engines.engine_models import ModelShelf
from tests.edge.report.stored import records, stored
from tests.programs import find, skip_or_fail

FIXTURES = Path(__file__).parents[2] / "report/fixtures"
FILES = {
    "llama-bench.json": "llama-bench",
    "litert-lm-benchmark.txt": "litert-lm",
    "onnxruntime-genai.json": "onnxruntime-genai",
    "onnxruntime-genai.csv": "onnxruntime-genai",
    "mlperf_log_summary.txt": "mlperf-loadgen",
    "ollama.json": "ollama",
    "executorch.txt": "executorch",
}
# file → (kind, figure) → the value, worked out by hand from the file
EXPECTED: dict[str, dict[tuple[str, str], float]] = {
    "llama-bench.json": {
        ("prefill", "prefill_tps"): 64 / 0.206505555,
        ("decode", "decode_tps"): 16 / 0.186221254,
    },
    "litert-lm-benchmark.txt": {
        ("prefill", "prefill_tps"): 15022.89,
        ("decode", "decode_tps"): 549.54,
        ("end-to-end", "ttft_s"): 0.0103,
        ("load", "load_s"): 0.0240,
    },
    "onnxruntime-genai.json": {
        ("prefill", "prefill_tps"): 6922.808664578017,
        ("decode", "decode_tps"): 2398.5824548262945,
        ("end-to-end", "ttft_s"): 0.00927157633244254,
    },
    "mlperf_log_summary.txt": {
        ("inference", "latency_s"): 0.002108228,
        ("inference", "latency_p99_s"): 0.006468551,
    },
    "ollama.json": {
        ("decode", "decode_tps"): 18 / 0.052479709,
        ("prefill", "prefill_tps"): 11 / 0.013074791,
        ("load", "load_s"): 0.101397084,
        ("end-to-end", "end_to_end_s"): 0.174560334 - 0.101397084,
    },
    "executorch.txt": {
        ("prefill", "prefill_tps"): 54 / 0.16,
        ("decode", "decode_tps"): 73 / 1.4,
        ("end-to-end", "ttft_s"): 0.16,
        ("load", "load_s"): 0.85,
    },
}
EXPECTED["onnxruntime-genai.csv"] = EXPECTED["onnxruntime-genai.json"]


def figure(found: list[dict[str, Any]], kind: str, name: str) -> float | None:
    return median(next(r for r in found if r["test"]["kind"] == kind), name)


@pytest.mark.parametrize("file", FILES)
def test_figures_are_the_tool_s_own(file: str) -> None:
    found = read_any(FIXTURES / file)
    assert found.tool == FILES[file]
    for (kind, name), value in EXPECTED[file].items():
        assert figure(list(found.results.records), kind, name) == pytest.approx(value)


@pytest.mark.parametrize("file", FILES)
def test_what_was_not_measured_is_said_and_never_invented(file: str) -> None:
    found = read_any(FIXTURES / file).results.records
    for record in found:
        assert record["imported"]["tool"] == FILES[file]
        assert "anonymous memory" in record["imported"]["not_measured"]
        assert "peak_anon_bytes" not in record["metrics"] and record["traces"] == []
    verdict = verify_run(group_runs(found)[0])
    assert not verdict.problems and "keeps no raw trace" in verdict.gaps[0]
    text = CliRunner().invoke(report, [str(FIXTURES / file)], catch_exceptions=False).output
    assert f"Imported from {FILES[file]}, which did not measure" in text
    assert "nothing was flagged" not in text


def test_all_tools_stand_in_one_page(tmp_path: Path) -> None:
    out = tmp_path / "all.html"
    paths = [str(FIXTURES / file) for file in FILES]
    done = CliRunner().invoke(
        report, [str(stored(tmp_path)), *paths, "-o", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0
    page = out.read_text()
    assert "qwen3-0.6b" in page and "gemma3" in page and "Imported from" in page


def test_each_file_is_claimed_by_one_importer() -> None:
    for file in FILES:
        text = (FIXTURES / file).read_text()
        assert sum(importer.can_read(text) for importer in load_importers()) == 1, file


def test_an_imported_run_is_unlike_a_measured_one(tmp_path: Path) -> None:
    own, other = stored(tmp_path), FIXTURES / "llama-bench.json"
    result = CliRunner().invoke(compare_command, [str(own), str(other)])
    assert isinstance(result.exception, InputError) and "tool" in str(result.exception)


def test_llama_bench_json_round_trips(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = [str(stored(tmp_path)), "--format", "llama-bench", "-o", str(out)]
    CliRunner().invoke(report, arguments, catch_exceptions=False)
    again, original = read_any(out), records()
    assert again.tool == "llama-bench"
    for kind, name in (("prefill", "prefill_tps"), ("decode", "decode_tps")):
        got = figure(list(again.results.records), kind, name)
        assert got == pytest.approx(figure(original, kind, name), rel=1e-6)


def test_exported_entries_have_the_tool_s_own_keys(tmp_path: Path) -> None:
    arguments = [str(stored(tmp_path)), "--format", "llama-bench"]
    ours = json.loads(CliRunner().invoke(report, arguments, catch_exceptions=False).output)
    theirs = json.loads((FIXTURES / "llama-bench.json").read_text())
    assert set(ours[0]) <= set(theirs[0])
    for key, value in ours[0].items():
        assert isinstance(value, type(theirs[0][key])), key


def test_csv_has_a_row_per_test_and_no_formula(tmp_path: Path) -> None:
    path = stored(tmp_path, records(name='=HYPERLINK("http://x.invalid")'))
    out = CliRunner().invoke(report, [str(path), "--format", "csv"], catch_exceptions=False).output
    lines = out.splitlines()
    assert len(lines) == 7 and lines[0].startswith("time,run_id,name")
    assert "'=HYPERLINK" in out


def changed(file: str, change: Callable[[str], str], folder: Path) -> Path:
    path = folder / file
    path.write_text(change((FIXTURES / file).read_text()))
    return path


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("llama-bench.json", "878690699", "NaN", "not JSON"),
        ("llama-bench.json", "878690699", "-5", "not a figure"),
        ("llama-bench.json", "878690699", '"fast"', "not a figure"),
        ("llama-bench.json", '"n_prompt": 64', '"n_prompt": 1e400', "not a figure"),
        ("litert-lm-benchmark.txt", "549.54 tokens/s", "549.54 words/s", "tokens/s expected"),
        ("litert-lm-benchmark.txt", "549.54", "inf", "not a figure"),
        ("onnxruntime-genai.csv", "genai,1.0,int4", "genai,4.0,int4", "only batch size 1"),
        ("onnxruntime-genai.csv", "genai,1.0,int4", "genai,1.0,\rint4", "no rows"),
        ("onnxruntime-genai.json", '"batch_size": 1.0', '"batch_size": 4', "only batch size 1"),
        ("onnxruntime-genai.json", "2398.5824548262945", "NaN", "not JSON"),
        ("executorch.txt", '"inference_end_ms":3410', '"inference_end_ms":10', "backwards"),
        ("ollama.json", "52479709", "-1", "not a figure"),
        ("mlperf_log_summary.txt", ": 2108228", ": soon", "not a figure"),
    ],
)
def test_broken_files_are_refused(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    path = changed(file, lambda text: text.replace(old, new), tmp_path)
    with pytest.raises(InputError, match=message):
        read_all([path])


@given(st.text(max_size=300), st.sampled_from(sorted(FILES)), st.integers(0, 2000))
def test_no_file_raises_anything_but_an_input_error(noise: str, file: str, cut: int) -> None:
    text = (FIXTURES / file).read_text()
    for importer in load_importers():
        mixed = text[:cut] + noise + text[cut + len(noise) :]
        if importer.can_read(mixed):
            with contextlib.suppress(InputError):
                source = ImportedFile("f", "0" * 64, "2026-01-01")
                make_records(importer.TOOL, source, importer.read(mixed, source.name))


def test_a_file_of_no_kind_says_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("fast, I think\n")
    with pytest.raises(InputError, match="no results that boardfit reads") as caught:
        read_any(path)
    assert "llama-bench" in (caught.value.next_step or "")
    path.write_text(json.dumps({"files": {"a": 1}}, indent=2))
    with pytest.raises(InputError, match="no results that boardfit reads"):
        read_any(path)


def test_an_invalid_mlperf_run_is_flagged(tmp_path: Path) -> None:
    path = changed(
        "mlperf_log_summary.txt", lambda t: t.replace("is : VALID", "is : INVALID"), tmp_path
    )
    assert read_any(path).results.records[0]["flags"] == ["LoadGen calls the run INVALID"]


def tool(name: str, variable: str, advice: str, *, in_ci: bool) -> str:
    """A program on the path or beside the tests' Python, or what a variable names. Where there is
    none the test is skipped, or fails in CI if it must be there (`in_ci`).
    """
    named = os.environ.get(variable)
    beside = Path(sys.executable).parent / name
    found = named or find(name) or (str(beside) if beside.is_file() else None)
    if found is None and in_ci:
        skip_or_fail(f"no {name}: {advice}")
    if found is None:
        pytest.skip(f"no {name} here: {advice}; {variable} names one")
    return found


@pytest.mark.engine
def test_llama_bench_itself(tmp_path: Path) -> None:
    """The real tool on a tiny model, where it is built. It links all of llama.cpp's common library,
    minutes of compiling: CI reads what it has printed (`fixtures/llama-bench.json`).
    """
    from tests.edge.engines import tiny_gguf

    program = built_llama_bench() or tool(
        "llama-bench",
        "BOARDFIT_LLAMA_BENCH",
        "scripts/build_engine --peers llama-bench",
        in_ci=False,
    )
    model = tmp_path / "tiny.gguf"
    tiny_gguf.random_llama(model)
    words = [program, "-m", str(model), "-p", "16", "-n", "8", "-r", "2", "-t", "1", "-o", "json"]
    out = tmp_path / "out.json"
    out.write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    found = read_any(out)
    assert found.tool == "llama-bench"
    assert {r["test"]["kind"] for r in found.results.records} == {"prefill", "decode"}
    assert all(r["test"]["n_repeats"] == 2 for r in found.results.records)


def built_llama_bench() -> str | None:
    """One that `scripts/build_engine --peers` has left in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boardfit/peers"
    return next((str(path) for path in sorted(cache.glob("*/bin/llama-bench"))), None)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.xdist_group("engine-litert")
def test_litert_lm_benchmark_itself(tmp_path: Path, model_shelf: ModelShelf) -> None:
    """The real tool on a tiny model; its figures are those of its own text."""
    advice = "pip install -e '.[test]' brings it"
    program = tool("litert-lm", "BOARDFIT_LITERT_LM", advice, in_ci=True)
    model = tmp_path / "tiny.litertlm"
    shutil.copy(model_shelf["litert"].random, model)  # it keeps a cache beside the model
    words = [program, "benchmark", str(model), "--backend", "cpu", "-p", "64", "-d", "16"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out.txt"
    out.write_text(done.stdout)
    found = read_any(out)
    assert found.tool == "litert-lm"
    records = list(found.results.records)
    assert {r["test"]["kind"] for r in records} == {"prefill", "decode", "end-to-end", "load"}
    for (kind, name), heading in {
        ("prefill", "prefill_tps"): "Prefill speed",
        ("decode", "decode_tps"): "Decode speed",
        ("end-to-end", "ttft_s"): "Time to first token",
    }.items():
        printed = re.search(rf"{heading}:\s*([\d.]+)", done.stdout)
        assert printed and figure(records, kind, name) == pytest.approx(float(printed[1]))


@pytest.mark.engine
@pytest.mark.slow
def test_onnxruntime_genai_benchmark_itself(tmp_path: Path, model_shelf: ModelShelf) -> None:
    """The project's own script, which no package ships, where a variable says where it lies."""
    script = os.environ.get("BOARDFIT_GENAI_BENCHMARK")
    if script is None:
        pytest.skip("BOARDFIT_GENAI_BENCHMARK does not name benchmark_e2e.py (in no package)")
    out, model = tmp_path / "out.json", model_shelf["onnx"].random
    folder = model if model.is_dir() else model.parent
    words = [sys.executable, script, "-i", str(folder), "-l", "16", "-g", "8", "-r", "2", "-w", "1"]
    words += ["-o", str(out), "--use_random_tokens", "-e", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_any(out)
    assert found.tool == "onnxruntime-genai"
    assert figure(list(found.results.records), "decode", "decode_tps")
