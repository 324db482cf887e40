"""What a terminal, and a log, show of a long task."""

from __future__ import annotations

import io
import sys
import time

import pytest

from boardfit.edge.terminal.progress import ProgressLine, TerminalReporter


class Terminal(io.StringIO):
    """A terminal whose clock the test moves."""

    now_s = 100.0

    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(time, "monotonic", lambda: terminal.now_s)
    return terminal


def test_a_log_gets_a_line_per_stage_with_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter() as reporter:
        reporter.stage("planning")
        reporter.progress(1, 2)
        reporter.stage("quantizing")
        time.sleep(0.11)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  planning" and lines[1].startswith("  quantizing  0.")


def test_a_stage_that_fails_is_not_printed_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), TerminalReporter() as reporter:
        reporter.stage("planning")
        reporter.stage("quantizing")
        raise ValueError
    assert capsys.readouterr().err == "  planning\n"


def test_an_untimed_stage_is_printed_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalReporter(is_timed=False)
    reporter.stage("sending 3 MiB")
    reporter.say("2 damaged files are sent again")
    assert capsys.readouterr().err == "  sending 3 MiB\n    2 damaged files are sent again\n"


def test_quiet_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with TerminalReporter(quiet=True) as reporter:
        reporter.stage("planning")
        terminal.now_s += 5
        reporter.progress(1, 2)
        reporter.say("half")
    assert terminal.getvalue() == ""


def test_a_line_appears_after_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    line = ProgressLine("loading")
    line(1, 4)
    assert terminal.getvalue() == ""
    terminal.now_s += 2
    line(2, 4)
    line.close()
    assert terminal.getvalue() == "\r\x1b[Kloading  50 %  2.00 s to go\r\x1b[K"


def test_a_new_part_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    line = ProgressLine("measuring")
    line(0, 9, "prefill 128")
    line(0, 9, "prefill 128")
    terminal.now_s += 3
    line(3, 9, "decode 32")
    err = terminal.getvalue()
    assert err == (
        "\r\x1b[Kmeasuring 0/9  prefill 128  – to go\r\x1b[Kmeasuring 3/9  decode 32  6.00 s to go"
    )


def test_bytes_are_shown_with_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    line = ProgressLine("sending", in_bytes=True)
    line(0, 4 << 20)
    terminal.now_s += 1
    line(1 << 20, 4 << 20)
    assert terminal.getvalue() == (
        "\r\x1b[Ksending  25 %  1.00 MiB of 4.00 MiB  1.00 MiB/s  3.00 s left"
    )
