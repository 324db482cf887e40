"""What a phone's static program says, read as a health report."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.errors import InputError
from boardfit.edge.flash.gate import bench_script, has_tools, read_answer, tool_script
from boardfit.edge.flash.session import Done
from tests.edge.flash.cargo import make_bundle

# llama.cpp as of llama-cpp-python 0.3.36, under qemu's cortex-a72.
SAID = """\
0.03.553.608 I common_perf_print: prompt eval time =     839.23 ms /    37 tokens (   22.68 ms per token,    44.09 tokens per second)
0.03.553.641 I common_perf_print:        eval time =    1075.66 ms /    27 runs   (   39.84 ms per token,    25.10 tokens per second)
0.03.553.664 I common_perf_print:       total time =    2444.87 ms /    64 tokens
"""  # noqa: E501


def test_an_answer_with_its_speed() -> None:
    out = b"armv8.0\nI can switch lights. [end of text]\n\n"
    health = read_answer(Done(0, out, SAID))
    assert health is not None and health.text == "I can switch lights."
    assert health.decode_tps == 25.10 and health.ttft_s == 0.83923 and health.n_out == 27
    assert health.engine == "static llama.cpp, armv8.0" and health.peak_rss_bytes is None


def test_a_program_that_died_says_nothing() -> None:
    assert read_answer(Done(132, b"armv8.2-dotprod\n", "")) is None


@given(st.binary(max_size=80), st.text(max_size=80))
def test_no_output_crashes(out: bytes, err: str) -> None:
    assert read_answer(Done(0, out, err)) is not None


def test_the_script_picks_the_variant_of_the_cpu(tmp_path: Path) -> None:
    tool = b'#!/bin/sh\necho "$0" "$@"\n'
    names = [f"tools/{v}/llama-completion" for v in ("armv8.0", "armv8.2-dotprod")]
    path = make_bundle(tmp_path / "x", {"model.gguf": b"m", **dict.fromkeys(names, tool)})
    bundle = open_bundle(path)
    assert has_tools(bundle)
    script = tool_script(bundle, str(path))
    for flags, variant in (("fp asimd", "armv8.0"), ("fp asimddp asimd", "armv8.2-dotprod")):
        (tmp_path / "cpuinfo").write_text(f"Features\t: {flags}\n")
        here = script.replace("/proc/cpuinfo", str(tmp_path / "cpuinfo"))
        done = subprocess.run(["sh", "-c", here], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[0] == variant
        assert done.stdout.splitlines()[1].startswith(f"tools/{variant}/llama-completion -m model.")
        assert "-c 256 -t 1" in done.stdout and "-no-cnv" in done.stdout
    assert os.access(path / names[0], os.X_OK)


@pytest.mark.parametrize(
    "value", ["$(touch x)", "1; touch x", "256", None, True, 0, -1, 1 << 40, 1.5]
)
@pytest.mark.parametrize("key", ["n_ctx", "n_threads"])
def test_only_numbers_of_a_plan_reach_a_shell(tmp_path: Path, key: str, value: object) -> None:
    path = make_bundle(tmp_path / "x", {"model.gguf": b"m"})
    bundle = open_bundle(path)
    strange = dataclasses.replace(
        bundle, plan=dataclasses.replace(bundle.plan, **{"n_threads": value, key: value})
    )  # both scripts name the threads
    with pytest.raises(InputError, match="expected a whole number"):
        tool_script(strange, str(path))
    with pytest.raises(InputError, match="expected a whole number"):
        bench_script(strange, str(path), "result", 1)


@pytest.mark.parametrize("figure", ["1.2.3", ".", "9" * 5000, "²", "1e999", "-1"])
def test_a_figure_that_is_no_number_is_not_measured(figure: str) -> None:
    said = (
        f"prompt eval time = {figure} ms\n"
        f"eval time = {figure} ms / {figure} runs, {figure} tokens per second"
    )
    health = read_answer(Done(0, b"armv8.0\x1b[2J\nI can.", said))
    assert health is not None and health.n_out >= 0 and "\x1b" not in str(health.engine)
