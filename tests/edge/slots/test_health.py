"""The health gate's judgement, and its report as a board may send it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.errors import DeviceError, InputError
from boardfit.edge.flash.gate import explain_end, read_health
from boardfit.edge.flash.session import Done
from boardfit.edge.slots.health import Health, check_release, judge, parse_health
from tests.edge.flash.cargo import PLAN

GOOD = Health(text="I can switch lights.", n_out=6, decode_tps=10.0, peak_rss_bytes=60 << 20)
PLANNED = replace(PLAN, decode_tps=20.0)


@pytest.mark.parametrize(
    ("health", "why"),
    [
        (GOOD, None),
        (replace(GOOD, decode_tps=9.9), "9.9 tokens/s; 10.0 is the least"),
        (replace(GOOD, peak_rss_bytes=71 << 20), "71.0 MiB of memory; 70.4 MiB is the most"),
        (replace(GOOD, peak_rss_bytes=70 << 20), None),
        (replace(GOOD, text="  \n", n_out=3), "answered nothing"),
        (replace(GOOD, n_out=0), "answered nothing"),
        (replace(GOOD, text="\ufffd\ufffd\x00\x01 ok"), "not text"),
        (replace(GOOD, text="!" * 40), "one character over and over"),
        (replace(GOOD, text="好的，我可以开灯。"), None),
        (replace(GOOD, decode_tps=None, peak_rss_bytes=None), None),
        (Health(error="no such file"), "no such file"),
    ],
)
def test_judgement(health: Health, why: str | None) -> None:
    failures = judge(health, PLANNED)
    assert (why is None and not failures) or (why is not None and why in failures[0])


def test_without_a_planned_speed_none_is_asked_for() -> None:
    slow = replace(GOOD, decode_tps=0.1)
    assert judge(slow, PLAN) == []
    assert judge(slow, PLANNED, min_speed=0) == []


def test_a_report_reads_back_the_same() -> None:
    assert parse_health(GOOD.to_dict()) == GOOD


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["kind", "text", "error", "decode_tps", "n_out", "x"]), inner),
    max_leaves=12,
))  # fmt: skip
def test_no_report_crashes(document: object) -> None:
    if isinstance(document, dict):
        document["kind"] = "boardfit-health"
    try:
        health = parse_health(document)
    except InputError:
        return
    judge(health, PLANNED)


@given(st.binary(max_size=60))
def test_whatever_a_board_prints_is_no_report_or_one(out: bytes) -> None:
    assert read_health(Done(1, out, ""), "b") is None
    with pytest.raises(DeviceError, match="broken report"):
        read_health(Done(0, out, ""), "b")


def test_how_a_check_died() -> None:
    assert "SIGILL: its engine uses instructions" in explain_end(Done(132, b"", ""))
    assert "lack of memory" in explain_end(Done(-9, b"", ""))
    assert "left with 3: boom" in explain_end(Done(3, b"", "x\nboom\n"))


@pytest.mark.engine
def test_the_sample_is_healthy_and_its_damaged_copy_is_not(
    sample: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    health = check_release(sample[0])
    assert health.error is None and health.n_out > 3 and health.decode_tps
    copy = tmp_path / "copy"
    shutil.copytree(sample[0], copy)
    data = bytearray((copy / "model.gguf").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.gguf").write_bytes(data)
    assert "edited or damaged" in (check_release(copy).error or "")
