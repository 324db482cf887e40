from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.units import (
    did_you_mean,
    find_error_line,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
    printable,
)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("512", 512),
        ("1k", 1024),
        ("1KiB", 1024),
        ("1kB", 1000),
        ("1.5 GiB", 1610612736),
        ("2gb", 2 * 10**9),
    ],
)
def test_parse_bytes(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "-1", "1 parsec", "nan", "1e9", "GB"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2), ("500ms", 0.5), ("1.5", 1.5), ("2 min", 120)]
)
def test_parse_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0", "0ms", "-2s", "nan", "2 parsecs", ""])
def test_parse_seconds_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_seconds(text)


@given(st.integers(min_value=0, max_value=2**60))
def test_formatted_bytes_parse_back_within_a_percent(n_bytes: int) -> None:
    assert abs(parse_bytes(format_bytes(n_bytes)) - n_bytes) <= max(1, n_bytes * 0.01)


def test_not_measured_is_a_dash_never_zero() -> None:
    assert format_bytes(None) == format_seconds(None) == format_seconds(float("nan")) == "–"


@given(st.text())
def test_printable_holds_no_control_character(text: str) -> None:
    assert printable(text).isprintable()


def test_did_you_mean() -> None:
    assert (
        did_you_mean("raspbery-pi-5", ["raspberry-pi-5", "jetson"])
        == " Did you mean 'raspberry-pi-5'?"
    )
    assert did_you_mean("zzz", ["raspberry-pi-5"]) == ""


def test_the_error_line_not_its_next_step() -> None:
    assert find_error_line("x\nerror: bad\n  next: do this\n") == "bad"
    assert find_error_line("") == ""
