"""What each tool prints by default, with logs around it, from any shell, and twice in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.edge.bench.importers import load_importers, read_any
from boardfit.edge.bench.importers.ollama import nanoseconds
from boardfit.edge.bench.importers.text import decode_text, json_values
from boardfit.edge.errors import InputError
from boardfit.edge.report.command import report
from boardfit.edge.report.figures import median

PREFILL: dict[str, Any] = {
    "build_commit": "12ab34cd",
    "build_number": 6001,
    "cpu_info": "Cortex-A55",
    "backends": "CPU",
    "model_filename": "dir/tiny-Q4_0.gguf",
    "model_type": "llama 1B Q4_0",
    "model_size": 700000000,
    "model_n_params": 1200000000,
    "n_threads": 4,
    "n_prompt": 100,
    "n_gen": 0,
    "n_depth": 0,
    "avg_ns": 5000000000,
    "avg_ts": 20.0,
}
DECODE = {**PREFILL, "n_prompt": 0, "n_gen": 40, "avg_ns": 8000000000, "avg_ts": 5.0}
TESTS = [
    {**PREFILL, "samples_ns": [5000000000, 4000000000]},
    {**DECODE, "samples_ns": [8000000000, 8000000000]},
]
LOG = "load_backend: loaded CPU backend\n[2026] {starting}\n{ not json\n"
JSON = json.dumps(TESTS, indent=2) + "\n"


def columns(mark: str, entry: dict[str, Any]) -> str:
    return ",".join(f"{mark}{value}{mark}" for value in entry.values())


CSV = "\n".join([",".join(PREFILL), columns('"', PREFILL), columns('"', DECODE), ""])
SQL = "CREATE TABLE IF NOT EXISTS llama_bench (\n  n_gen INTEGER\n);\n\n" + "".join(
    f"INSERT INTO llama_bench ({', '.join(e)}) VALUES ({columns(chr(39), e)});\n"
    for e in (PREFILL, DECODE)
)
TABLE = """
| model         |       size | params | backend | threads | test          |          t/s |
| ------------- | ---------: | -----: | ------- | ------: | ------------: | -----------: |
| llama 1B Q4_0 | 667.57 MiB | 1.20 B | CPU     |       4 |         pp100 | 20.00 ± 0.02 |
| llama 1B Q4_0 | 667.57 MiB | 1.20 B | CPU     |       4 |  tg40 @ d512  |  5.00 ± 0.01 |
| llama 1B Q4_0 | 667.57 MiB | 1.20 B | CPU     |       4 |    pp100+tg40 | 10.00 ± 0.01 |

build: 12ab34cd (6001)
"""


def figures(path: Path) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for record in read_any(path).results.records:
        for name in record["metrics"]:
            if (value := median(record, name)) is not None:
                found.setdefault((record["test"]["kind"], name), []).append(value)
    return found


def stored(folder: Path, content: str | bytes, name: str = "result.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        JSON,
        LOG + JSON + LOG,
        "\n".join(json.dumps(test) for test in TESTS),
        LOG + "".join(json.dumps(test) + "\n" + LOG for test in TESTS),
        JSON.replace("  },\n  {", f"  }},\n{LOG}  {{"),
        JSON.replace("\n", "\r\n").encode("utf-16"),
        JSON.encode("utf-16-le"),
        b"\xef\xbb\xbf" + JSON.encode(),
        json.dumps([PREFILL, DECODE]),
        CSV,
        LOG + CSV + "llama_print: done, ok\n",
        SQL,
        LOG + TABLE,
        TABLE.replace(" ± ", " ┬▒ "),
        "\x1b[1mloading\x1b[0m\n" + TABLE,
    ],
)
def test_llama_bench_in_any_form(tmp_path: Path, content: str | bytes) -> None:
    path = stored(tmp_path, content)
    assert read_any(path).tool == "llama-bench"
    found = figures(path)
    assert found["decode", "decode_tps"] == [pytest.approx(5.0)]
    assert 20 <= found["prefill", "prefill_tps"][0] <= 22.5


@pytest.mark.parametrize("content", [JSON, CSV, SQL, TABLE])
def test_two_runs_in_one_file_are_both_read(tmp_path: Path, content: str) -> None:
    twice = figures(stored(tmp_path, content + "\n" + content))
    assert len(twice["decode", "decode_tps"]) == len(twice["prefill", "prefill_tps"]) == 2


def test_a_table_tells_depth_and_a_joint_test(tmp_path: Path) -> None:
    records = read_any(stored(tmp_path, TABLE)).results.records
    assert [r["test"]["n_depth"] for r in records] == [0, 512, 0]
    assert median(records[2], "end_to_end_s") == pytest.approx(14.0)
    assert records[0]["settings"]["n_threads"] == 4
    assert records[0]["engine"]["version"] == "12ab34cd"
    assert "single repetitions (it writes means)" in records[0]["imported"]["not_measured"]


VERBOSE = """$ ollama run tiny:1b --verbose
>>> hello
Hi.

total duration:       1m3.5s
load duration:        500ms
prompt eval count:    30 token(s)
prompt eval duration: 2s
prompt eval rate:     15.00 tokens/s
eval count:           50 token(s)
eval duration:        10s
eval rate:            5.00 tokens/s
"""
OBENCH = """Running benchmark 2 times using model: tiny:1b

eval rate:            5.00 tokens/s
eval rate:            7.00 tokens/s
Average Eval Rate: 6.00 tokens/second
Parallel Execution: Using 3 parallel requests.
eval rate:            1.00 tokens/s
"""
CLI = """
llama_model_loader: loaded meta data with 30 key-value pairs and 200 tensors from d/tiny.gguf
llama_perf_context_print:        load time =    1500.00 ms
llama_perf_context_print: prompt eval time =    2000.00 ms /    30 tokens ( 66.67 ms per token)
llama_perf_context_print:        eval time =   10000.00 ms /    50 runs   ( 200.00 ms per token)
llama_perf_context_print:       total time =   12000.00 ms /    80 tokens
"""
SERVER = """slot print_timing: id  0 | task 0 |
prompt eval time =    2000.00 ms /    30 tokens (   66.67 ms per token,    15.00 tokens per second)
       eval time =   10000.00 ms /    50 tokens (  200.00 ms per token,     5.00 tokens per second)
      total time =   12000.00 ms /    80 tokens
"""
TIMINGS = {"prompt_n": 30, "prompt_ms": 2000.0, "predicted_n": 50, "predicted_ms": 10000.0}
LITERT = """I0000 00:00:17.000001    2345 main.cc:150] BenchmarkInfo:
  Init Phases (1):
    - Executor initialization: 512.31 ms
    Total init time: 500.00 ms
  Time to first token: 2.10 s
  Prefill Turns (Total: 2):
    Prefill Turn 1: Processed 30 tokens in 2s duration.
      Prefill Speed: 15.00 tokens/sec.
    Prefill Turn 2: Processed 30 tokens in 2s duration.
      Prefill Speed: 15.00 tokens/sec.
  Decode Turns (Total: 1):
    Decode Turn 1: Processed 50 tokens in 10s duration.
      Decode Speed: 5.00 tokens/sec.
"""


@pytest.mark.parametrize(
    ("tool", "content"),
    [
        ("ollama", VERBOSE),
        ("ollama", VERBOSE.encode("utf-16")),
        ("ollama", LOG + json.dumps({"model": "m", **dict.fromkeys(["eval_duration"], 10**10),
                                     "eval_count": 50, "prompt_eval_count": 30,
                                     "prompt_eval_duration": 2 * 10**9}) + "\n" + LOG),
        ("llama.cpp", CLI),
        ("llama.cpp", CLI.replace("llama_perf_context_print", "llama_print_timings")),
        ("llama.cpp", LOG + SERVER),
        ("llama.cpp", json.dumps({"content": "Hi.", "timings": TIMINGS})),
        ("llama.cpp", f"data: {json.dumps({'content': ''})}\n\ndata: "
                      f"{json.dumps({'timings': TIMINGS})}\n\ndata: [DONE]\n"),
        ("llama.cpp", "> hello\nHi.\n[ Prompt: 15.0 t/s | Generation: 5.0 t/s ]\n"),
        ("litert-lm", LITERT),
    ],
)  # fmt: skip
def test_speeds_of_one_answer(tmp_path: Path, tool: str, content: str | bytes) -> None:
    path = stored(tmp_path, content)
    assert read_any(path).tool == tool
    found = figures(path)
    assert found["prefill", "prefill_tps"] == [pytest.approx(15.0)]
    assert found["decode", "decode_tps"] == [pytest.approx(5.0)]
    text = CliRunner().invoke(report, [str(path)], catch_exceptions=False).output
    assert "None" not in text


def test_names_come_from_the_command_or_the_log(tmp_path: Path) -> None:
    for content, name in ((VERBOSE, "tiny:1b"), (CLI, "tiny"), (OBENCH, "tiny:1b")):
        (record, *_) = read_any(stored(tmp_path, content)).results.records
        assert record["artifact"]["name"] == name


def test_rates_in_parallel_are_left_out(tmp_path: Path) -> None:
    assert figures(stored(tmp_path, OBENCH)) == {("decode", "decode_tps"): [6.0]}
    marked = (
        "Running benchmark 1 times using model: `m`\n| Run | x |\n|--|--|\n| 1 | 5.00 tokens/s |\n"
    )
    assert figures(stored(tmp_path, marked)) == {("decode", "decode_tps"): [5.0]}


def test_a_load_is_a_test_of_its_own(tmp_path: Path) -> None:
    content = CLI + SERVER.replace("30 tokens", "31 tokens")
    records = read_any(stored(tmp_path, content)).results.records
    kinds = [record["test"]["kind"] for record in records]
    assert kinds == ["load", "prefill", "decode", "prefill", "decode"]
    assert median(records[0], "load_s") == 1.5
    assert [record["test"]["n_depth"] for record in records[2::2]] == [30, 31]


def test_go_durations() -> None:
    assert nanoseconds("1h2m3.5s") == 3723.5e9
    assert nanoseconds("350.1ms") == pytest.approx(350.1e6)
    assert nanoseconds("12µs") == 12e3
    with pytest.raises(InputError, match="not a duration"):
        nanoseconds("soon")


def test_an_unread_file_is_told_which_option_helps(tmp_path: Path) -> None:
    path = stored(tmp_path, "$ ./llama-bench -m x.gguf\nerror: failed to load model\n")
    with pytest.raises(InputError) as caught:
        read_any(path)
    assert caught.value.next_step and "-o json" in caught.value.next_step
    assert "executorch" not in caught.value.next_step


def test_every_tool_names_its_output() -> None:
    assert all(importer.HINT and importer.MENTIONS for importer in load_importers())


@pytest.mark.parametrize("text", ["[\n" * 3000, "{\n" * 3000, '{"a":\n' * 3000, "[1,\n" * 3000])
def test_almost_json_ends_soon(text: str) -> None:
    try:
        assert json_values(text, "tool") == []
    except InputError as error:
        assert "not JSON" in str(error)


def test_text_of_any_shell() -> None:
    for data in ("a\r\nb±\r\n".encode("utf-16"), "a\nb±\n".encode("utf-8-sig"), "a\rb±\r".encode()):
        assert decode_text(data) == "a\nb±\n"
