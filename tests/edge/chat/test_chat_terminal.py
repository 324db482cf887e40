"""`edge chat` on a real terminal and through pipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from boardfit.edge.chat.command import LineReader
from boardfit.edge.chat.session import parse_session
from boardfit.edge.terminal.output import dim, terminal_safe
from tests.edge.engines import tiny_gguf
from tests.edge.engines.conftest import CHAT_REPLY, Models
from tests.edge.engines.terminal import Terminal

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[3]


def chat_on(model: Path, *options: str) -> Terminal:
    terminal = Terminal("chat", str(model), "--threads", "1", *options)
    terminal.expect("/help for help.")
    terminal.expect("> ")
    return terminal


def test_answers_and_leaves_on_ctrl_d(models: Models) -> None:
    with chat_on(models.scripted) as terminal:
        terminal.type("hello\n")
        terminal.expect(CHAT_REPLY + "\r\n")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(models: Models) -> None:
    with chat_on(models.endless) as terminal:
        terminal.type("hello\n")
        terminal.expect("0123456789" * 5)
        terminal.interrupt()
        terminal.expect("(stopped)")
        terminal.expect("> ")
        assert "7" not in terminal.quiet_for(0.3), "the answer has ended"
        terminal.type("/stats\n")
        stats = terminal.expect("memory")
        assert "ended by aborted" in stats and "tokens/s" in stats
        terminal.interrupt_prompt()
        terminal.expect("Ctrl-C again")
        terminal.interrupt_prompt()
        assert terminal.exit_code() == 0


def test_a_single_ctrl_c_at_the_prompt_does_not_leave(models: Models) -> None:
    with chat_on(models.scripted) as terminal:
        terminal.quiet_for(0.5)
        terminal.interrupt()
        terminal.expect("Ctrl-C again")
        terminal.expect("> ")
        terminal.type("hello\n")
        terminal.expect(CHAT_REPLY)
        terminal.interrupt_prompt()
        terminal.expect("Ctrl-C again")
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0


def test_multi_line_input_reset_save_load(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with chat_on(models.scripted) as terminal:
        terminal.type("/system Be brief.\n")
        terminal.expect("(system prompt set)")
        terminal.type("first\\\n")
        terminal.expect(". ")
        terminal.type("second\n")
        terminal.expect(CHAT_REPLY)
        terminal.expect("> ")
        terminal.type('"""\nthird\n\n/help is text here\n"""\n')
        terminal.expect(CHAT_REPLY)
        terminal.type(f"/save {path}\n")
        terminal.expect("4 messages saved, state")
        terminal.type("/reset\n")
        terminal.expect("forgotten")
        terminal.type("/stats\n")
        assert "tokens/s" not in terminal.expect("memory")
        terminal.type(f"/load {path}\n")
        terminal.expect("4 messages loaded")
        terminal.expect("tokens restored")
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0
    system, messages = parse_session(path.read_bytes(), "talk")
    assert system == "Be brief."
    assert [m.content for m in messages if m.role == "user"] == [
        "first\nsecond",
        "third\n\n/help is text here",
    ]


def test_errors_do_not_end_the_chat(models: Models, tmp_path: Path) -> None:
    with chat_on(models.scripted) as terminal:
        terminal.type("/stat\n")
        terminal.expect("Did you mean 'stats'?")
        terminal.type(f"/load {tmp_path / 'absent'}\n")
        terminal.expect("no such file")
        terminal.type("/save\n")
        terminal.expect("needs a file name")
        terminal.type("x" * 2000 + "\n")
        terminal.expect("the context holds 1024")
        terminal.type("hello\n")
        terminal.expect(CHAT_REPLY)


def test_a_model_cannot_steer_the_terminal(tmp_path: Path) -> None:
    reply = "\x1b]0;pwned\x07\rA\x08\x7f"
    successors = tiny_gguf.script(reply, after=ord("\n"), then=tiny_gguf.IM_END)
    model = tiny_gguf.scripted_llama(tmp_path / "evil.gguf", successors)
    with chat_on(model) as terminal:
        before = len(terminal.raw)
        terminal.type("hello\n")
        terminal.expect("\\x1b]0;pwned\\x07\\rA\\x08\\x7f")
        assert b"\x1b]0" not in terminal.raw[before:] and b"\x07" not in terminal.raw[before:]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain\n\ttext é 👩\u200d🚒", "plain\n\ttext é 👩\u200d🚒"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("\ud800", "\\ud800"),
    ],
)
def test_terminal_safe(text: str, safe: str) -> None:
    assert terminal_safe(text) == safe


# ---- pipes --------------------------------------------------------------------------------------


def piped(model: Path, typed: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "boardfit", "chat", str(model), "--threads", "1", *options]
    return subprocess.run(command, input=typed, capture_output=True, cwd=ROOT, timeout=60)


def test_through_pipes_only_answers_are_written(models: Models) -> None:
    result = piped(models.scripted, b"hello\nagain\n\n/reset\nlast, without newline")
    assert result.stdout.decode() == f"{CHAT_REPLY}\n" * 3
    assert result.stderr == b"" and result.returncode == 0


def test_through_pipes_an_error_ends_it_with_its_code(models: Models) -> None:
    result = piped(models.scripted, b"hello\n/nonsense\nnever answered\n")
    assert result.returncode == 2 and result.stdout.decode() == f"{CHAT_REPLY}\n"
    assert b"/nonsense" in result.stderr and b"Traceback" not in result.stderr


def test_no_input_at_all(models: Models) -> None:
    result = piped(models.scripted, b"")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_base_model_is_refused_before_the_first_question(tmp_path: Path) -> None:
    base = tiny_gguf.random_llama(tmp_path / "base.gguf", template=None)
    result = piped(base, b"hello\n")
    assert result.returncode == 3 and b"--raw" in result.stderr and result.stdout == b""


def test_max_tokens_and_stop(models: Models) -> None:
    assert piped(models.endless, b"hi\n", "--max-tokens", "7").stdout == b"0123456\n"
    assert piped(models.endless, b"hi\n", "--stop", "45").stdout == b"0123\n"


def test_unfinished_block_at_the_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO('"""\none\ntwo\n'))
    reader = LineReader()
    assert reader.message() == "one\ntwo"
    with pytest.raises(EOFError):
        reader.message()


# ---- models that think --------------------------------------------------------------------------

OPENS_THOUGHTS = tiny_gguf.TEMPLATE.replace("assistant\n", "assistant\n<think>\n")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its prompt opens the thoughts; it thinks "Hm" and answers "=Yes"."""
    table = tiny_gguf.script("Hm</think>=Yes", after=ord("\n"), then=tiny_gguf.IM_END)
    path = tmp_path_factory.mktemp("thinker") / "thinker.gguf"
    return tiny_gguf.scripted_llama(path, table, template=OPENS_THOUGHTS)


def test_thoughts_are_shown_apart_and_kept_out_of_the_history(
    thinker: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "talk.json"
    with chat_on(thinker, "--session", str(kept)) as terminal:
        terminal.type("hello\n")
        assert terminal.expect("=Yes\r\n").endswith("Hm\r\n\r\n=Yes\r\n")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    _, messages = parse_session(kept.read_bytes(), "it")
    assert [message.content for message in messages] == ["hello", "=Yes"]


def test_a_pipe_gets_answers_only(thinker: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "boardfit", "chat", str(thinker), "--threads", "1"],
        input=b"hello\r\nagain\r\n",
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout == b"=Yes\n=Yes\n" and done.returncode == 0


def test_dimmed_only_where_a_terminal_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert dim("Hm") == "\x1b[2mHm\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert dim("Hm") == "Hm"
