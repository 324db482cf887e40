"""`edge build` end to end on the embedded model: plan, convert, verify, bundle, run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.sample.examples import read_conversations
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.chat.run_command import run
from boardfit.edge.cli import main
from boardfit.edge.engines.target import open_model
from boardfit.edge.errors import (
    DoesNotFitError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UsageError,
)
from boardfit.edge.types import Message
from tests.edge.engines import tiny_gguf

pytestmark = pytest.mark.engine


def build(*arguments: str | Path, quality: bool = False) -> str:
    """Run the command in this process; exceptions come through. Returns its stdout."""
    words = [str(a) for a in arguments] + ["--threads", "1"] + ([] if quality else ["--no-quality"])
    result = CliRunner().invoke(build_command, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "pi5"
    build("sample", "--device", "raspberry-pi-5-8gb", "-o", path, quality=True)
    return path


def test_the_bundle_holds_what_was_decided(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.plan.device == "raspberry-pi-5-8gb"
    assert opened.model_file.n_bytes == opened.plan.artifact_bytes, "the plan is exact to the byte"
    model, checks = opened.manifest["model"], opened.manifest["checks"]
    assert model["arch"] == "llama" and model["license"] == "apache-2.0"
    assert checks["vocabulary"]["n_texts"] > 300
    assert checks["engine"]["n_tokens"] == 8
    quality = opened.manifest["quality"]
    assert quality["within_bounds"] and quality["texts"][0]["top1_agree"] > 0.99
    assert quality["task"]["exact"] > 0.85, "the sample answers its commands"
    assert str(MODEL_DIR) not in json.dumps(opened.manifest), "no path of this machine leaves it"
    assert not list(bundle.parent.glob("*.partial"))
    assert opened.manifest["tools"]["proof"] == "generic", "the sample's template lists no tools"


def test_the_format_of_calls_is_proved_and_sealed(tmp_path: Path) -> None:
    """By the template of a GGUF that is taken as it is, too."""
    template = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
        "{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}<call>"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
        "</call>{% endfor %}\n{% endfor %}" + GENERATE
    )
    source = tiny_gguf.random_llama(tmp_path / "source.gguf", template=template)
    said = build(source, "--device", "raspberry-pi-5-8gb", "-o", tmp_path / "out",
                 "--recipe", "as-is")  # fmt: skip
    assert "tools: json calls, proved by the chat template" in said
    sealed = open_bundle(tmp_path / "out").manifest["tools"]
    assert (sealed["start"], sealed["end"], sealed["proof"]) == ("<call>", "</call>", "template")
    opened = open_model(tmp_path / "out")
    with closing(opened.engine):
        assert opened.tool_format.to_dict() == sealed


def test_the_bundle_answers(bundle: Path) -> None:
    result = CliRunner().invoke(
        run, [str(bundle), "who are you?", "--json"], catch_exceptions=False
    )
    answer = json.loads(result.stdout)
    assert answer["finish_reason"] == "stop" and answer["text"].strip()


def test_the_same_inputs_give_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    build("sample", "--device", "raspberry-pi-5-8gb", "-o", tmp_path / "again", quality=True)
    assert open_bundle(tmp_path / "again").id == open_bundle(bundle).id


def test_several_boards_share_one_reading_and_equal_artifacts(tmp_path: Path) -> None:
    out = tmp_path / "boards"
    build("sample", "-d", "raspberry-pi-5-8gb,jetson-orin-nano-8gb", "-o", out, "--recipe", "q4_0")
    first, second = (out / d / "model.gguf" for d in ("raspberry-pi-5-8gb", "jetson-orin-nano-8gb"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_ino == second.stat().st_ino, "linked, not written twice"
    assert open_bundle(out / "jetson-orin-nano-8gb").plan.device == "jetson-orin-nano-8gb"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    build("sample", "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out")
    assert open_bundle(tmp_path / "out").manifest["quality"] == {
        "not_measured": "left out with --no-quality"
    }


def test_a_broken_conversion_is_refused_unless_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No recipe of ours is that bad: the bound is moved instead."""
    monkeypatch.setattr("boardfit.converters.quality.card.find_bound", lambda recipe: 1e-9)
    some = read_conversations("task")[::40]
    monkeypatch.setattr("boardfit.converters.quality.card.read_conversations", lambda name: some)
    text = tmp_path / "own.txt"
    text.write_text("switch the kitchen lights off and set a timer for ten minutes, please. " * 200)
    words = ("sample", "-d", "raspberry-pi-5-8gb", "--quality-text", text, "-o", tmp_path / "out")
    with pytest.raises(IntegrityError, match="too far from its source"):
        build(*words, quality=True)
    assert not (tmp_path / "out").exists()
    build(*words, "--accept-quality", quality=True)
    quality = open_bundle(tmp_path / "out").manifest["quality"]
    assert quality["within_bounds"] is False and quality["texts"][1]["name"] == "own.txt"


def test_an_existing_output_is_kept_unless_forced(bundle: Path) -> None:
    before = open_bundle(bundle).id
    with pytest.raises(UsageError, match="exists") as caught:
        build("sample", "-d", "raspberry-pi-5-8gb", "-o", bundle, "--recipe", "q8_0")
    assert "--force" in (caught.value.next_step or "")
    assert open_bundle(bundle).id == before
    copy = bundle.with_name("copy")
    shutil.copytree(bundle, copy)
    build("sample", "-d", "raspberry-pi-5-8gb", "-o", copy, "--recipe", "q8_0", "--force")
    assert open_bundle(copy).plan.recipe == "q8_0"
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["copy", "pi5"]


def test_one_edited_byte_in_the_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "edited"
    shutil.copytree(bundle, copy)
    with (copy / "model.gguf").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(IntegrityError, match="edited or damaged"):
        CliRunner().invoke(run, [str(copy), "hello"], catch_exceptions=False)


def test_a_full_disk_is_noticed_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(DoesNotFitError) as caught:
        build("sample", "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out")
    assert caught.value.shortfall_bytes and caught.value.shortfall_bytes > 10**6
    assert not (tmp_path / "out").exists()


def broken_copy(tmp_path: Path) -> Path:
    copy = tmp_path / "broken"
    shutil.copytree(MODEL_DIR, copy)
    return copy


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    copy = broken_copy(tmp_path)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        build(copy, "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_nan_in_the_weights_names_the_tensor(tmp_path: Path) -> None:
    copy = broken_copy(tmp_path)
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name = "model.layers.1.mlp.down_proj.weight"
    start = 8 + int.from_bytes(data[:8], "little") + header[name]["data_offsets"][0]
    data[start : start + 2] = b"\x00\x7e" if header[name]["dtype"] == "F16" else b"\xc0\x7f"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_down|layers\.1\.mlp\.down_proj"):
        build(copy, "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_checkpoint_is_refused_with_the_way_out(tmp_path: Path) -> None:
    copy = broken_copy(tmp_path)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsafeInputError) as caught:
        build(copy, "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out")
    assert "safetensors" in (caught.value.next_step or "")


def test_an_unknown_family_lists_ours_and_offers_gguf(tmp_path: Path) -> None:
    copy = broken_copy(tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config.update(model_type="quantum", architectures=["QuantumForCausalLM"])
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantum") as caught:
        build(copy, "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out")
    said = f"{caught.value} {caught.value.next_step}"
    assert "qwen3" in said and "GGUF" in said


def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    copy = broken_copy(tmp_path)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer"):
        build(copy, "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out")


def test_a_context_beyond_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained"):
        build("sample", "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "out", "--ctx", "9999999")


def test_a_gguf_is_requantized_for_a_board(bundle: Path, tmp_path: Path) -> None:
    build("sample", "-d", "raspberry-pi-5-8gb", "-o", tmp_path / "full", "--recipe", "f16")
    source = tmp_path / "full" / "model.gguf"
    build(source, "-d", "raspberry-pi-zero-2-w", "-o", tmp_path / "small", "--recipe", "q4_0")
    small = open_bundle(tmp_path / "small")
    assert small.manifest["model"]["source"]["kind"] == "gguf"
    assert small.n_bytes < source.stat().st_size / 2
    answer = CliRunner().invoke(run, [str(small.path), "hello"], catch_exceptions=False)
    assert answer.exit_code == 0


def test_an_imatrix_computed_from_a_text_is_recorded(tmp_path: Path) -> None:
    text = tmp_path / "calibration.txt"
    text.write_text("dim the kitchen lights to thirty percent in ten minutes. " * 300)
    device = ("-d", "raspberry-pi-5-8gb")
    build("sample", *device, "-o", tmp_path / "with", "--recipe", "q4_0", "--imatrix", text)
    build("sample", *device, "-o", tmp_path / "without", "--recipe", "q4_0")
    weighed, plain = open_bundle(tmp_path / "with"), open_bundle(tmp_path / "without")
    assert weighed.manifest["recipe"]["imatrix"] and not plain.manifest["recipe"]["imatrix"]
    assert weighed.model_file.sha256 != plain.model_file.sha256


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_at_the_output_and_continues(
    bundle: Path, tmp_path: Path
) -> None:
    """SIGKILL at ten moments of the build, then one run to the end: the same bundle as ever."""
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "boardfit", "build", "sample"),
        *("-d", "raspberry-pi-5-8gb", "-o", str(out), "--threads", "1"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    for step in range(10):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(0.2 + 0.25 * step)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            open_bundle(out, verify=True)  # it was faster than the kill: then it is whole
            shutil.rmtree(out)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert open_bundle(out, verify=True).id == open_bundle(bundle).id
    assert not list(tmp_path.glob("*.partial"))


def test_plan_and_show_as_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bundle", "show", str(bundle), "--json"])
    assert left.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["id"] == open_bundle(bundle).id


GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "said", "kind"),
    [
        (
            "{% set x = [] %}{% for m in messages %}{% set _ = x.append(m) %}{% endfor %}",
            "append",
            UnsafeInputError,
        ),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", "user's words", InputError),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "assistant's answer",
            InputError,
        ),
        ("{% for m in messages %}{{ m.content", "line 1", InputError),
    ],
)
def test_a_template_that_would_fail_on_the_board_fails_at_build(
    tmp_path: Path, template: str, said: str, kind: type[Exception]
) -> None:
    source = tiny_gguf.random_llama(tmp_path / "source.gguf", template=template + GENERATE)
    with pytest.raises(kind, match=said):
        build(source, "--device", "raspberry-pi-5-8gb", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_template_of_parts_and_variables_is_kept_for_the_board(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}{{ level }}"
        "{% if enable_thinking is false %}quick{% endif %}" + GENERATE
    )
    source = tiny_gguf.random_llama(tmp_path / "source.gguf", template=template)
    out, device = tmp_path / "out", ("--device", "raspberry-pi-5-8gb")
    build(source, *device, "-o", out, "--thinking", "off", "--template-var", "level=3")
    opened = open_bundle(out)
    assert opened.plan.thinking == "off" and opened.plan.template_variables == {"level": 3}
    assert any("list of parts" in note for note in opened.manifest["checks"]["chat_template"])
    for changes, said in (({}, "hello3quick"), ({"thinking": "auto"}, "hello3")):
        opened_model = open_model(out, **changes)
        with closing(opened_model.engine) as engine:
            ids = engine.render([Message("user", "hello")])
            assert engine.detokenize(ids) == f"{said}assistant\n"
    with pytest.raises(UsageError, match="levl"):
        build(source, *device, "-o", tmp_path / "no", "--template-var", "levl=3")
