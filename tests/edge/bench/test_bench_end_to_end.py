"""`edge bench` on a real engine and a tiny random model, then `edge report` on what it stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.edge.bench.command import bench
from boardfit.edge.bench.store import read_results
from boardfit.edge.bench.workloads import make_tests
from boardfit.edge.errors import UsageError
from boardfit.edge.report.command import report
from tests.edge.engines import tiny_gguf

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    tiny_gguf.random_llama(path)
    return path


def test_bench_stores_what_report_renders(model: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    arguments = [str(model), "-o", str(results), "--quick", "--gen", "8", "--repeats", "2"]
    done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    records = read_results([results]).records
    kinds = [r["test"]["kind"] for r in records]
    assert kinds.count("load") == 2 and {"prefill", "decode", "end-to-end"} <= set(kinds)
    for record in records:
        test, metrics = record["test"], record["metrics"]
        if test["kind"] == "load":
            assert metrics["load_to_first_token_s"]["median"] >= metrics["load_s"]["median"] > 0
            continue
        assert test["n_repeats"] == len(record["traces"]) == 2  # the warm-up is dropped
        for trace in record["traces"]:
            expected = {"prefill": 1, "decode": test["n_gen"] + 1, "end-to-end": test["n_gen"]}
            assert len(trace["token_t_ns"]) == expected[test["kind"]]
            assert trace["memory"], "memory over time is part of every trace"
        if test["kind"] == "prefill":
            assert metrics["n_reused"]["maximum"] == 0, "prefill is measured cold"
            assert metrics["prefill_tps"]["n"] == 2
        if test["kind"] == "decode":
            assert metrics["decode_tps"]["median"] > 0
    text = CliRunner().invoke(report, [str(results)], catch_exceptions=False).output
    assert "tiny" in text and "decode 8 at depth 0" in text and "Load" in text


def test_json_is_one_object_per_line(model: Path, tmp_path: Path) -> None:
    arguments = [
        str(model),
        "-o",
        str(tmp_path / "r.jsonl"),
        "--quick",
        "--gen",
        "4",
        "--repeats",
        "1",
    ]
    done = CliRunner().invoke(bench, [*arguments, "--json"], catch_exceptions=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["test"]["kind"] for line in lines} >= {"prefill", "decode", "load"}


def test_a_context_too_short_for_any_test_says_so() -> None:
    with pytest.raises(UsageError, match="too short"):
        make_tests(20, quick=True)


@pytest.mark.parametrize("n_ctx", [64, 200, 512, 1024, 4096, 32768])
def test_every_test_fits_its_context(n_ctx: int) -> None:
    for test in make_tests(n_ctx, n_gen=32):
        assert max(test.n_prompt, test.n_depth) + test.n_gen + 1 <= n_ctx


def test_a_base_model_without_template_is_measured(model: Path, tmp_path: Path) -> None:
    """Prefill, decode, memory and load need none; end to end, plain text is continued."""
    base, results = tmp_path / "base.gguf", tmp_path / "r.jsonl"
    tiny_gguf.random_llama(base, template=None)
    arguments = [str(base), "-o", str(results), "--quick", "--gen", "4", "--repeats", "1"]
    done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "base model without chat template" in done.output
    records = read_results([results]).records
    assert {"prefill", "decode", "end-to-end", "load"} == {r["test"]["kind"] for r in records}
    for record in records:
        is_flagged = any("base model" in flag for flag in record["flags"])
        assert is_flagged == (record["test"]["kind"] == "end-to-end")
    assert CliRunner().invoke(report, [str(results)], catch_exceptions=False).exit_code == 0
