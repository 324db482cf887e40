"""`edge plan` and `edge devices` as a user sees them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import boardfit.converters.source.resolve as resolve
from boardfit.converters.plan.command import load_devices, plan_command
from boardfit.device_profiles.catalog import all_profiles
from boardfit.device_profiles.profile import ProfileError
from boardfit.edge.errors import DoesNotFitError, UsageError
from boardfit.edge.probe.devices_command import devices
from tests.device_profiles.cost.models import Dims, make_spec

SPEC = make_spec(Dims(n_embd=512, n_head=8, n_ff=1536, n_layer=8), name="tiny\x1b[31m")
LARGE = make_spec(Dims(n_embd=4096, n_head=32, n_ff=14336, n_layer=32, n_vocab=32000))


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"tiny": SPEC, "large": LARGE}
    monkeypatch.setattr(resolve, "open_model", lambda ref, **options: found[ref])


def run(*args: str) -> str:
    result = CliRunner().invoke(plan_command, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_text_shows_plan_memory_speed_and_reasons() -> None:
    out = run("tiny", "-d", "pi5", "--explain")
    for part in ("Raspberry Pi 5, 8 GB", "q4_k_m", "context 8192", "KV cache", "█", "decode"):
        assert part in out, part
    assert "measured on this SoC" in out and "×/÷2.0" in out
    assert "▸ q4_k_m" in out
    assert "edge-llm-memory-wall" in out  # the source of the bandwidth, with --explain
    assert "\x1b" not in out  # a model's name cannot drive the terminal


def test_no_device_means_this_machine() -> None:
    record = json.loads(run("tiny", "--json", "--ctx", "512"))
    assert record["device"] == "this-machine"
    assert record["plan"]["basis"] in ("measured here", "measured on this SoC")


def test_json_is_one_object_per_board() -> None:
    lines = run("tiny", "-d", "pi5,pi4", "-d", "phone", "--json").splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["device"] for r in records] == [
        "raspberry-pi-5-8gb",
        "raspberry-pi-4b-4gb",
        "phone-8gb",
    ]
    for record in records:
        chosen = record["plan"]
        phases = chosen["loading_bytes"], chosen["running_bytes"]
        assert chosen["peak_bytes"] == max(phases) <= chosen["budget_bytes"]
        assert sum(chosen["memory"].values()) >= chosen["peak_bytes"]
        assert {row["recipe"] for row in record["candidates"]} >= {chosen["recipe"]}
        assert any(row["fits"] for row in record["candidates"])


def test_a_model_too_large_is_refused_before_anything_is_printed() -> None:
    runner = CliRunner()
    result = runner.invoke(plan_command, ["large", "-d", "raspberry-pi-4b-2gb"])
    assert isinstance(result.exception, DoesNotFitError)
    assert result.exception.exit_code == 4
    assert result.exception.shortfall_bytes and str(result.exception.shortfall_bytes) in str(
        result.exception
    )
    assert result.output == ""


def test_one_board_too_small_does_not_hide_the_others() -> None:
    words = ["large", "-d", "raspberry-pi-5-16gb,zero2w"]
    result = CliRunner().invoke(plan_command, [*words, "--json"])
    assert isinstance(result.exception, DoesNotFitError)
    fits, refused = (json.loads(line) for line in result.output.splitlines())
    assert fits["plan"]["recipe"] == "q4_k_m"
    assert refused["error"] == "DoesNotFitError" and refused["shortfall_bytes"] > 0
    text = CliRunner().invoke(plan_command, words).output
    assert "does not fit" in text


def test_device_names() -> None:
    assert [p.id for p in load_devices(["pi5, zero2w"])] == [
        "raspberry-pi-5-8gb",
        "raspberry-pi-zero-2-w",
    ]
    with pytest.raises(UsageError, match="named twice"):
        load_devices(["pi5", "raspberry-pi-5-8gb"])
    with pytest.raises(UsageError, match="empty"):
        load_devices(["pi5,"])
    with pytest.raises(UsageError, match="no device"):
        load_devices([])
    with pytest.raises(ProfileError, match="Did you mean"):
        load_devices(["pi6"])


def test_devices_lists_all_boards() -> None:
    out = CliRunner().invoke(devices, []).output
    assert all(board in out for board in all_profiles())
    assert "this-machine" in out
    lines = CliRunner().invoke(devices, ["--json"]).output.splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(all_profiles())


def test_devices_show_explains_with_sources() -> None:
    out = CliRunner().invoke(devices, ["show", "pi4"]).output
    for part in ("3.68 GiB", "cortex-a72", "sci-pi.org.uk", "litert_lm", "does not run"):
        assert part in out, part
    record = json.loads(CliRunner().invoke(devices, ["show", "pi4", "--json"]).output)
    assert record["clusters"][0]["clock_hz"] == 1.8e9
    assert record["sources"]["memory.ram_mib"].startswith("https://")


def test_devices_show_probes_this_machine() -> None:
    out = CliRunner().invoke(devices, ["show", "this-machine"]).output
    assert "free for a model" in out


def listed(*args: str) -> set[str]:
    lines = CliRunner().invoke(devices, [*args, "--json"], catch_exceptions=False).output
    return {json.loads(line)["id"] for line in lines.splitlines()}


def test_devices_are_filtered() -> None:
    assert "raspberry-pi-5-8gb" in listed("--like", "cortex-a76")
    assert "raspberry-pi-4b-8gb" not in listed("--like", "cortex-a76")
    assert listed("--min-ram", "16G") <= listed("--min-ram", "8G") < listed()
    assert all("pi-4" not in board for board in listed("--isa", "dotprod", "--like", "raspberry"))
    assert "raspberry-pi-4b-4gb" not in listed("--runs", "litert_lm")
    for wrong in (["--min-ram", "much"], ["--isa", "dot-prod"], ["--like", "no such board"]):
        assert isinstance(CliRunner().invoke(devices, wrong).exception, UsageError)


def test_devices_are_compared_side_by_side() -> None:
    args = ["compare", "pi5", "pi4"]
    lines = CliRunner().invoke(devices, args, catch_exceptions=False).output.splitlines()
    assert lines[0].split() == ["raspberry-pi-5-8gb", "raspberry-pi-4b-4gb"]
    cores = next(line for line in lines if line.startswith("cores"))
    assert "4x cortex-a76" in cores and "4x cortex-a72" in cores
