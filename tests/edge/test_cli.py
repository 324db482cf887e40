"""The command line as a user meets it: one clear line, the right exit code, machines served too."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from boardfit.converters.board.offline.own_wheel import own_wheel
from boardfit.edge.cli import COMMANDS, edge, import_command, main
from boardfit.edge.errors import DoesNotFitError, EngineMissingError, InputError
from boardfit.edge.terminal.option_groups import GROUPS, GroupedCommand, find_heading


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_every_command_in_the_table_exists_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"plan", "build"} <= set(COMMANDS), "the host's commands are in the table"
    for name, entry in COMMANDS.items():
        command = import_command(name, entry)
        assert command.help, name
        code, out, _ = run([name, "--help"], capsys)
        assert code == 0 and "Usage: edge" in out


def test_a_mistyped_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run(["bild"], capsys)
    assert code == 2 and "Did you mean 'build'?" in err


def test_a_mistyped_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["bundle", "show", "--jsno", "x"], capsys)
    assert code == 2 and "--jsno" in err


def test_errors_are_one_line_and_one_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["bundle", "show", "/nowhere"], capsys)
    assert (code, out) == (3, "")
    assert err.splitlines() == [
        "error: there is no bundle at /nowhere",
        "  next: edge build MODEL --device BOARD -o OUT makes one",
    ]


def test_machines_get_the_error_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["bundle", "verify", "/nowhere", "--json"], capsys)
    record = json.loads(out)
    assert code == 3 and record["error"] == "InputError" and "edge build" in record["next_step"]


def test_an_unknown_device_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["devices", "show", "raspbery-pi-5-8gb"], capsys)
    assert code == 3 and "raspberry-pi-5-8gb" in err


def test_control_characters_in_a_path_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, _, err = run(["bundle", "show", str(tmp_path / "a\x1b[2Jb")], capsys)
    assert "\x1b[2J" not in err and "\\x1b" in err


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(EngineMissingError) as caught:
        import_command("build", COMMANDS["build"])
    assert "pip install" in (caught.value.next_step or "")
    assert "'gguf==0.19.*'" in (caught.value.next_step or "")


def test_a_panic_of_foreign_code_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("boardfit.edge.cli.import_command", panic)
    with pytest.raises(SystemExit) as caught:
        main(["devices"])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: index out of bounds\n") and "Traceback" not in error


def test_every_error_has_its_documented_exit_code() -> None:
    assert InputError("x").exit_code == 3
    assert DoesNotFitError("x", shortfall_bytes=5).shortfall_bytes == 5
    assert isinstance(DoesNotFitError("x"), MemoryError)
    assert isinstance(EngineMissingError("x"), ImportError)
    assert "chat" in COMMANDS


def test_bench_of_a_board_says_what_measures_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["bench", "ssh://pi@board"], capsys)
    assert code == 2 and "edge slots bench ssh://pi@board" in err


IDIOM = re.compile(r"\b(said|told|nobody|somebody|whoever|whatever|so many|gone)\b", re.IGNORECASE)


def all_commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, with its full name."""
    context = click.Context(group)
    for each in group.list_commands(context):
        command = group.get_command(context, each)
        assert command is not None
        yield f"{name} {each}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{name} {each}")


def test_every_command_and_option_has_help_in_short_plain_sentences() -> None:
    for name, command in all_commands(edge, "edge"):
        texts = {"help": command.help or ""}
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                texts[parameter.opts[0]] = parameter.help or ""
        for where, text in texts.items():
            assert text.strip(), f"{name}, {where}: no help"
            assert not IDIOM.search(text), f"{name}, {where}: {text}"
            for sentence in re.split(r"[.:;]\s|\n\n", text):
                n_words = len(sentence.split())
                assert n_words <= 20, f"{name}, {where}: {n_words} words: {sentence}"


def test_a_command_with_many_options_groups_them_all() -> None:
    for name, command in all_commands(edge, "edge"):
        options = [each for each in command.params if isinstance(each, click.Option)]
        if len(options) <= 12:
            continue
        assert isinstance(command, GroupedCommand), name
        listed = " ".join(GROUPS[str(command.name)].values()).split()
        assert len(listed) == len(set(listed)), f"{name}: an option has two headings"
        assert set(listed) <= {text for each in options for text in each.opts}, name
        for option in options:
            assert find_heading(str(command.name), option) != "Other", f"{name}, {option.opts}"


BOARD = """
import sys
import zipfile
sys.path.insert(0, sys.argv.pop(1))
from boardfit.edge.cli import main
main()
"""


def run_on_board(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of the board's own wheel in a folder, which comes before all else here."""
    return subprocess.run(
        [sys.executable, "-I", "-c", BOARD, str(folder), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_board_says_what_a_command_of_the_host_needs(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(own_wheel("llama").data)) as archive:
        archive.extractall(tmp_path)
    for name, entry in COMMANDS.items():
        done = run_on_board(tmp_path, name, "--help")
        if entry.extra in (None, "serve") or entry.on_board:
            assert done.returncode == 0 and "Usage: edge" in done.stdout, done.stderr
            continue
        error, next_step = done.stderr.splitlines()
        assert done.returncode == 5 and f"`edge {name}` runs on a host" in error
        assert "pip install" in next_step and "'gguf==0.19.*'" in next_step
    assert "plan" in run_on_board(tmp_path, "--help").stdout
