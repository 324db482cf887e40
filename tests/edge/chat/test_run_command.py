"""`edge run`: pipes, JSON, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.edge.engines import tiny_gguf
from tests.edge.engines.conftest import CHAT_REPLY, REPLY, Models

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[3]


def command(model: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "boardfit", "run", str(model), "--threads", "1", *arguments]


def run(model: Path, *arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(model, *arguments), input=typed, capture_output=True, cwd=ROOT, timeout=60
    )


@pytest.mark.parametrize("arguments", [("hello",), ("-",), ()])
def test_prompt_from_the_command_line_or_a_pipe(models: Models, arguments: tuple[str, ...]) -> None:
    result = run(models.scripted, *arguments, typed=b"hello")
    assert result.stdout.decode() == f"{CHAT_REPLY}\n" and result.returncode == 0
    assert result.stderr == b""


def test_raw_continues_text(models: Models) -> None:
    assert run(models.scripted, "--raw", "ax").stdout.decode() == f"{REPLY}\n"


def test_json_line(models: Models) -> None:
    result = run(models.scripted, "hello", "--json", "--system", "S")
    record = json.loads(result.stdout)
    assert result.stdout.count(b"\n") == 1
    assert record["text"] == CHAT_REPLY and record["finish_reason"] == "stop"
    assert record["n_out"] == len(CHAT_REPLY.encode()) and record["n_prompt"] > 10
    assert 0 < record["ttft_s"] < record["total_s"] and record["decode_tps"] > 0
    assert record["peak_rss_bytes"] > 10 * 2**20 and record["engine"]["n_threads"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("",), 3, "empty"),
        (("hello", "--temperature", "-1"), 2, "temperature"),
        (("hello", "--ctx", "99999"), 2, "1024"),
        (("x" * 3000,), 3, "1024"),
        (("--raw", "--system", "S", "x"), 3, "--system"),
    ],
)
def test_exit_codes(models: Models, arguments: tuple[str, ...], code: int, said: str) -> None:
    result = run(models.scripted, *arguments)
    assert result.returncode == code and said in result.stderr.decode()
    assert result.stdout == b"" and b"Traceback" not in result.stderr


def test_not_a_model(tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<!DOCTYPE html><html></html>")
    result = run(page, "hello")
    assert result.returncode == 3 and b"web page" in result.stderr
    assert run(tmp_path / "absent.gguf", "hello").returncode == 3
    assert run(tmp_path, "hello").returncode == 3


def test_prompt_that_is_no_text(models: Models) -> None:
    result = run(models.scripted, "-", typed=b"\xff\xfe\x00")
    assert result.returncode == 3 and b"UTF-8" in result.stderr


def test_base_model_continues_text(tmp_path: Path) -> None:
    successors = tiny_gguf.script("yz", after=ord("x"), then=tiny_gguf.IM_END)
    base = tiny_gguf.scripted_llama(tmp_path / "base.gguf", successors, template=None)
    assert run(base, "x").stdout == b"yz\n"
    assert run(base, "x", "--system", "S").returncode == 3


def test_ctrl_c_stops_with_130(models: Models) -> None:
    with subprocess.Popen(
        command(models.endless, "hello"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(20) == b"01234567890123456789"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert b"Traceback" not in process.stderr.read()


def test_reader_that_goes_away(models: Models) -> None:
    with subprocess.Popen(
        command(models.endless, "hello"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        started = time.monotonic()
        assert process.wait(10) in (1, 141)
        assert time.monotonic() - started < 3, "an endless answer ends with its reader"
        assert process.stderr.read() == b""


def test_output_encoding_without_unicode(models: Models) -> None:
    result = subprocess.run(
        command(models.scripted, "hello"),
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert result.returncode == 0 and result.stdout == CHAT_REPLY.encode("ascii", "replace") + b"\n"


# ---- models that think --------------------------------------------------------------------------

THINKING_TEMPLATE = tiny_gguf.TEMPLATE.replace(
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n={% endif %}",
)
THINKS = "<think>Hm."


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It thinks for ever, unless the template says no; then it answers "Yes"."""
    table = tiny_gguf.script(THINKS, after=ord("\n"), then=ord("H"))
    table |= tiny_gguf.script("Yes", after=ord("="), then=tiny_gguf.IM_END)
    path = tmp_path_factory.mktemp("thinker") / "thinker.gguf"
    return tiny_gguf.scripted_llama(path, table, n_ctx=16384, template=THINKING_TEMPLATE)


def test_thinking_is_no_answer_in_time(thinker: Path) -> None:
    result = run(thinker, "hello", "--within", "500ms", "--json")
    record = json.loads(result.stdout)
    assert record["text"] == "" and record["thinking"].startswith("Hm.Hm.")
    assert record["deadline"]["met"] is False and record["deadline"]["first_s"] is None
    assert any("--thinking off" in note for note in record["deadline"]["notes"])
    shown = run(thinker, "hello", "--within", "500ms")
    assert b"MISSED, no answer" in shown.stderr and b"Hm" not in shown.stdout


def test_thoughts_end_while_there_is_time_for_an_answer(tmp_path: Path) -> None:
    table = tiny_gguf.script("Hm.", after=ord("\n"), then=ord("H"))
    table |= tiny_gguf.script("Yes", after=ord("]"), then=tiny_gguf.IM_END)
    opens = tiny_gguf.TEMPLATE.replace("assistant\n", "assistant\n[THINK]\n")
    path = tiny_gguf.scripted_llama(tmp_path / "m.gguf", table, n_ctx=16384, template=opens)
    record = json.loads(run(path, "hello", "--within", "1s", "--json").stdout)
    assert record["text"] == "Yes" and set(record["thinking"]) == set("Hm.")
    assert [each["kind"] for each in record["deadline"]["adjustments"]] == ["thoughts ended"]
    assert record["deadline"]["has_answer"] and record["finish_reason"] == "stop"
    # Thoughts and answer share the limit of tokens too.
    short = json.loads(run(path, "hello", "--max-tokens", "30", "--within", "60s", "--json").stdout)
    assert short["text"] == "" and short["n_out"] == 30


@pytest.mark.parametrize(
    "arguments", [("--thinking", "off"), ("--template-var", "enable_thinking=false")]
)
def test_thinking_is_switched_off(thinker: Path, arguments: tuple[str, ...]) -> None:
    result = run(thinker, "hello", "--within", "2s", *arguments)
    assert result.stdout == b"Yes\n" and result.stderr.startswith(b"met")


def test_a_task_does_not_think_unasked(thinker: Path) -> None:
    assert run(thinker, "hello", "--task", "assistant").stdout == b"Yes\n"
    thinking = run(thinker, "hello", "--task", "assistant", "--thinking", "on", "--json")
    assert json.loads(thinking.stdout)["text"] == ""


@pytest.mark.parametrize(
    ("variable", "said"), [("enable_thinkin=1", b"enable_thinking"), ("=1", b"NAME=VALUE")]
)
def test_template_variables_that_are_none(thinker: Path, variable: str, said: bytes) -> None:
    result = run(thinker, "hello", "--template-var", variable)
    assert result.returncode == 2 and said in result.stderr


def test_special_tokens_in_a_prompt_stay_text(models: Models) -> None:
    plain, typed = "<|im_startx>system", "<|im_start|>system"
    counts = [
        json.loads(run(models.scripted, text, "--json").stdout)["n_prompt"]
        for text in (plain, typed)
    ]
    assert counts[0] == counts[1]  # as many bytes, and not one token
