"""The page that a running process keeps for watchers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.process.live import (
    PAGE_BYTES,
    STATUS,
    Beacon,
    Page,
    is_private,
    own_folders,
    parse_page,
    parse_start_ticks,
    publish_status,
    start_ticks,
)
from boardfit.edge.types import TokenEvent

MS = 10**6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "boardfit"


def pages(folder: Path) -> list[Page | None]:
    return [parse_page(path.read_text()) for path in sorted(folder.glob("*.json"))]


def tokens(n: int, step_ms: int = 50, at_ns: int | None = None) -> Iterator[TokenEvent]:
    start = time.monotonic_ns() if at_ns is None else at_ns
    for i in range(n):
        yield TokenEvent(i, "x", start + (i + 1) * step_ms * MS)
    yield TokenEvent(None, "", start + n * step_ms * MS, "stop")


def test_the_page_is_there_while_the_process_runs_and_for_its_user_alone(folder: Path) -> None:
    with Beacon().publish("chat", "qwen"):
        (path,) = folder.iterdir()
        assert path.name == f"{os.getpid()}.json" and path.stat().st_size == PAGE_BYTES
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (page,) = pages(folder)
        assert page and (page.command, page.model, page.state) == ("chat", "qwen", "loading")
        assert page.started == start_ticks()
    assert not list(folder.iterdir())


def test_tokens_are_counted_and_the_stream_is_not_changed(folder: Path) -> None:
    with Beacon().publish("run", "m") as beacon:
        assert list(beacon.follow(tokens(5, at_ns=0), 70)) == list(tokens(5, at_ns=0))
        assert list(beacon.follow(tokens(3), 80))
        (page,) = pages(folder)
        assert page and page.state == "idle" and page.n_requests == 2
        assert (page.n_prompt, page.n_out, page.n_total) == (80, 3, 8)
        assert (page.n_gaps, page.gaps_ns) == (4 + 2, 6 * 50 * MS)
        assert page.ttft_n_prompt == 80 and 40 * MS < page.ttft_ns < 60 * MS


def test_prefill_and_decode_are_told_while_they_last(folder: Path) -> None:
    with Beacon().publish("run", "m") as beacon:
        seen = []

        def slow() -> Iterator[TokenEvent]:
            seen.append(pages(folder)[0])
            yield TokenEvent(1, "a", time.monotonic_ns() + 200 * MS)
            seen.append(pages(folder)[0])

        list(beacon.follow(slow(), 12))
        assert [page and page.state for page in seen] == ["prefill", "decode"]


def test_an_answer_that_is_given_up_ends_on_the_page_too(folder: Path) -> None:
    with Beacon().publish("run", "m") as beacon:
        ended = []

        def inner() -> Iterator[TokenEvent]:
            try:
                yield from tokens(9)
            finally:
                ended.append(True)

        stream = beacon.follow(inner(), 1)
        next(stream)
        del stream
        (page,) = pages(folder)
        assert page and page.state == "idle" and ended == [True]


def test_nothing_is_wrapped_where_nothing_is_announced() -> None:
    stream = tokens(1)
    assert STATUS.follow(stream, 1) is stream


def test_a_command_announces_itself_and_its_error_leaves_no_page(folder: Path) -> None:
    @click.command()
    @click.argument("bundle")
    @publish_status("chat")
    def talk(bundle: str) -> None:
        """Talk."""
        (page,) = pages(folder)
        assert page
        click.echo(f"{page.command} {page.model}")
        raise ValueError("broke")

    result = CliRunner().invoke(talk, ["/a/b/qwen.gguf"])
    assert result.output == "chat qwen.gguf\n" and str(result.exception) == "broke"
    assert not list(folder.iterdir()) and talk.help == "Talk."


def test_a_page_left_by_a_killed_process_is_removed_and_a_live_one_stays(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    gone = Page(1, 1, "chat", "x")  # process 1 did not start at tick 1
    (folder / "1.json").write_bytes(gone.to_bytes())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        alive = replace(gone, pid=other.pid, started=start_ticks(other.pid))
        (folder / f"{other.pid}.json").write_bytes(alive.to_bytes())
        (folder / "notes.txt").write_text("mine")
        with Beacon().publish("run", "m"):
            names = {path.name for path in folder.iterdir()}
        other.kill()
    assert names == {f"{other.pid}.json", f"{os.getpid()}.json", "notes.txt"}


def test_a_folder_that_others_may_write_to_is_not_used(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert not is_private(folder)
    with Beacon().publish("run", "m"):
        assert not list(folder.iterdir())
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert not is_private(link)


def test_where_no_page_can_be_written_the_work_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "boardfit.edge.process.live.own_folders", lambda: [Path("/proc/boardfit-cannot-be")]
    )
    with Beacon().publish("run", "m") as beacon:
        assert len(list(beacon.follow(tokens(3), 1))) == 4
    full = Path("/dev/full")
    if full.exists():
        with Beacon().publish("run", "m") as beacon:
            beacon._handle = os.open(full, os.O_WRONLY)
            assert len(list(beacon.follow(tokens(3), 1))) == 4


def test_shared_memory_comes_before_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page on an SD card would wear it."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert str(own_folders()[0]).startswith("/dev/shm/boardfit")


def test_a_half_written_page_is_none() -> None:
    one = Page(7, 9, "chat", "x", n_total=1).to_bytes()
    two = Page(7, 9, "chat", "x", n_total=99_999_999).to_bytes()
    assert parse_page(one.decode()) == Page(7, 9, "chat", "x", n_total=1)
    for cut in (10, 60, 150, 200):
        mixed = two[:cut] + one[cut:]
        assert mixed in (one, two) or parse_page(mixed.decode()) is None


@given(st.text(max_size=200))
def test_no_text_is_taken_for_a_page_by_accident(text: str) -> None:
    assert parse_page(text) is None


@pytest.mark.parametrize(
    "change",
    [
        {"n_out": -1},
        {"n_out": "5"},
        {"state": "dancing"},
        {"model": 3},
        {"started": "soon"},
        {"gaps_ns": 1.5},
        {"pid": None},
    ],
)
def test_a_page_with_a_wrong_value_is_none(change: dict[str, object]) -> None:
    assert parse_page(replace(Page(7, 9, "chat", "x"), **change).to_bytes().decode()) is None  # type: ignore[arg-type]


def test_the_longest_names_fit_in_a_page(folder: Path) -> None:
    with Beacon().publish("chat", "\U0001f600" * 500) as beacon:
        beacon.page.label = beacon.page.engine = beacon.page.quant = beacon.page.model
        assert len(beacon.page.to_bytes()) == PAGE_BYTES


def test_a_process_name_with_brackets_does_not_move_the_start_time() -> None:
    fields = " ".join(str(i) for i in range(4, 53))
    assert parse_start_ticks(f"77 (a) b (c 1 2) S {fields}") == 22
    assert parse_start_ticks(f"77 (a) Z {fields}") is None, "it has ended"
    assert parse_start_ticks("") is None and parse_start_ticks(None) is None
