"""`edge build --warm`: a bundle brings the state of a system prompt along."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.edge.bundle.bundle import open_bundle, seal_bundle
from boardfit.edge.chat.session import Session
from boardfit.edge.chat.timed_open import open_session
from boardfit.edge.engines.kv_state import mapped_state
from boardfit.edge.engines.llama.engine import LlamaCppEngine
from boardfit.edge.engines.target import open_model
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UsageError
from boardfit.edge.template.tools import Tool, ToolUse
from boardfit.edge.types import GenerationConfig

pytestmark = pytest.mark.engine

SYSTEM = "You are the assistant of a small board and you answer in one sentence." * 4
SHORT = GenerationConfig(max_tokens=8)


def build(*arguments: str | Path) -> str:
    words = ["sample", "-d", "n100-16gb", "--no-quality", "--threads", "1", "--ctx", "512"]
    result = CliRunner().invoke(build_command, [*words, *map(str, arguments)])
    if isinstance(result.exception, EdgeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm")
    (folder / "agent.txt").write_text(SYSTEM, encoding="utf-8")
    said = build("-o", folder / "bundle", "--warm", folder / "agent.txt")
    assert "prefix/agent.kv" in said
    return folder / "bundle"


def first_answer(session: Session) -> tuple[str, int]:
    said = "".join(event.text for event in session.ask("How warm is the board?", SHORT))
    assert session.last_answer is not None
    return said, session.last_answer.n_reused


@pytest.mark.parametrize("limit", ["64MiB", "off"])
@pytest.mark.parametrize("n_shelves", [0, 4], ids=["chat", "serve"])
def test_the_first_answer_begins_warm(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, limit: str, n_shelves: int
) -> None:
    monkeypatch.setenv("BOARDFIT_STATES", limit)
    opened = open_model(bundle, n_shelves=n_shelves)
    cold = Session(opened.engine, system=SYSTEM)
    expected, n_reused = first_answer(cold)
    assert n_reused == 0
    opened.engine.reset()
    warm = open_session(opened, system=SYSTEM)
    said, n_reused = first_answer(warm)
    assert said == expected and not warm.problems
    assert n_reused == open_bundle(bundle).manifest["warm"][0]["n_tokens"] > 32
    assert not warm.store_prefix(), "it is there already"
    opened.engine.close()


def test_tools_are_read_ahead_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOARDFIT_STATES", "off")
    function = {"name": "turn_on", "description": "Turns a lamp on", "parameters": {}}
    request = {
        "messages": [{"role": "system", "content": "Be brief."}],
        "tools": [{"type": "function", "function": function}],
    }
    (tmp_path / "agent.json").write_text(json.dumps(request), encoding="utf-8")
    build("-o", tmp_path / "bundle", "--warm", tmp_path / "agent.json")
    opened = open_model(tmp_path / "bundle")
    with closing(opened.engine):
        warm = open_session(opened, system="Be brief.")
        warm.offer(ToolUse(opened.tool_format, (Tool.from_dict(function),)), is_held=False)
        assert first_answer(warm)[1] == open_bundle(tmp_path / "bundle").manifest["warm"][0][
            "n_tokens"] > 32  # fmt: skip
    for odd in ("[1]", "{", '{"messages": [5]}'):
        (tmp_path / "odd.json").write_text(odd, encoding="utf-8")
        with pytest.raises(InputError, match="it is no request"):
            build("-o", tmp_path / "odd", "--warm", tmp_path / "odd.json")


def test_the_same_inputs_give_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.txt").write_text(SYSTEM + "\n", encoding="utf-8")
    build("-o", tmp_path / "again", "--warm", tmp_path / "agent.txt")
    assert open_bundle(tmp_path / "again").id == open_bundle(bundle).id


@pytest.mark.parametrize("what", ["build", "model", "n_ctx", "kv_type"])
def test_another_engine_or_model_reads_the_prompt_itself(
    bundle: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(bundle)
    assert isinstance(opened.engine, LlamaCppEngine)
    other = opened.engine._identify() | {what: "another"}
    monkeypatch.setattr(opened.engine, "_identify", lambda: other)
    session = open_session(opened, system=SYSTEM)
    assert first_answer(session)[1] == 0
    assert len(session.problems) == 1 and f"saved with {what}" in session.problems[0]
    assert (bundle / "prefix/agent.kv").exists(), "what belongs to a bundle stays in it"
    opened.engine.close()


def test_a_changed_state_is_a_changed_bundle(bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    state = bytearray((copy / "prefix/agent.kv").read_bytes())
    state[1000] ^= 1
    (copy / "prefix/agent.kv").write_bytes(state)
    with pytest.raises(IntegrityError, match="agent"):
        open_model(copy)


@pytest.mark.parametrize("damage", ["rubbish", "short", "positions"])
def test_a_hostile_state_costs_one_line(bundle: Path, tmp_path: Path, damage: str) -> None:
    """Sealed with its right hash by whoever made the bundle."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    path = copy / "prefix/agent.kv"
    data = bytearray(path.read_bytes())
    if damage == "rubbish":
        data[: len(data) // 2] = b"\xff" * (len(data) // 2)
    elif damage == "short":
        del data[100:5000]
    else:
        data[8:12] = (7).to_bytes(4, "little")  # the first cell's position
    path.write_bytes(data)
    manifest = json.loads((copy / "manifest.json").read_bytes())
    roles = {name: file["role"] for name, file in manifest.pop("files").items()}
    seal_bundle(copy, {k: v for k, v in manifest.items() if k not in ("kind", "schema")}, roles, {})
    opened = open_model(copy)
    session = open_session(opened, system=SYSTEM)
    assert first_answer(session)[0]
    assert session.last_answer is not None and session.last_answer.n_reused == 0
    assert len(session.problems) == (damage != "short")
    opened.engine.close()


def test_a_state_outside_a_bundle_needs_its_mac(bundle: Path) -> None:
    opened = open_model(bundle)
    assert isinstance(opened.engine, LlamaCppEngine)
    with (
        pytest.raises(IntegrityError, match="hmac"),
        mapped_state(bundle / "prefix/agent.kv", opened.engine._identify(), 512),
    ):
        pass
    opened.engine.close()


@pytest.mark.parametrize(
    ("text", "error"),
    [("", InputError), ("Short.", InputError), ("word " * 2000, InputError)],
    ids=["empty", "short", "long"],
)
def test_a_prompt_that_cannot_be_kept(tmp_path: Path, text: str, error: type[EdgeError]) -> None:
    (tmp_path / "agent.txt").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=r"agent|system prompt"):
        build("-o", tmp_path / "bundle", "--warm", tmp_path / "agent.txt")
    assert not (tmp_path / "bundle").exists()


def test_two_prompts_of_one_name(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "agent.txt", tmp_path / "b" / "agent.txt"]
    for file in files:
        file.parent.mkdir()
        file.write_text(SYSTEM, encoding="utf-8")
    with pytest.raises(UsageError, match="two files are called agent"):
        build("-o", tmp_path / "bundle", "--warm", files[0], "--warm", files[1])
