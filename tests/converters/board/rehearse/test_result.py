"""From an exit code and a few lines to what would have gone wrong on the board."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.board.rehearse.result import diagnose, find_signal
from boardfit.edge.probe.emulation import parse_smaps

QEMU_ILL = "qemu: uncaught target signal 4 (Illegal instruction) - core dumped\n"
MUSL = "error: this system's C library is not glibc (musl or another): the wheels cannot load\n"
NO_LIB = (
    "error: the engine does not load here: llama-cpp-python is installed but its library does not "
    "load: libgomp.so.1: cannot open shared object file: No such file or directory\n"
)
OLD_GLIBC = "libm.so.6: version `GLIBC_2.38' not found (required by libllama.so)\n"
TAG = "error: the wheels are for Python 3.10, this board has 3.11\n  next: build …\n"


def kind(code: int, output: str, oom_kills: int = 0) -> str:
    found = diagnose(
        "answering", code, output, oom_kills=oom_kills, limit_bytes=1 << 30, cpu="cortex-a72"
    )
    assert found.next_step
    return found.kind


@pytest.mark.parametrize(
    ("code", "output", "oom_kills", "expected"),
    [
        (132, "", 0, "illegal-instruction"),
        (-4, "", 0, "illegal-instruction"),
        (132, QEMU_ILL, 0, "illegal-instruction"),
        (5, "error: loading the engine ended with SIGILL: it was …\n", 0, "illegal-instruction"),
        (139, "", 0, "crash"),
        (137, "", 0, "out-of-memory"),
        (1, "Traceback …\nMemoryError\n", 1, "out-of-memory"),
        (4, "error: it needs 3.1 GiB, 900 MiB are free\n", 0, "out-of-memory"),
        (
            5,
            "error: edge run: a bus error in native code ended it (SIGBUS)\n",
            0,
            "crash",
        ),
        (
            5,
            "error: edge run: an illegal instruction in native code ended it (SIGILL)\n",
            0,
            "illegal-instruction",
        ),
        (5, NO_LIB, 0, "missing-library"),
        (1, OLD_GLIBC, 0, "missing-library"),
        (5, TAG, 0, "wrong-wheel"),
        (7, "error: model.gguf: sha256 is …\n", 0, "damaged"),
        (5, MUSL, 0, "engine"),
    ],
)
def test_kinds(code: int, output: str, oom_kills: int, expected: str) -> None:
    assert kind(code, output, oom_kills) == expected


def test_the_message_says_what_is_missing() -> None:
    found = diagnose("installing", 5, NO_LIB, oom_kills=0, limit_bytes=1, cpu="x")
    assert "libgomp.so.1" in found.message
    found = diagnose("installing", 1, OLD_GLIBC, oom_kills=0, limit_bytes=1, cpu="x")
    assert "GLIBC_2.38" in found.message


@given(st.integers(-64, 255), st.text(max_size=300))
def test_anything_gives_a_problem(code: int, output: str) -> None:
    assert kind(code, output)
    signal = find_signal(code, output)
    assert signal is None or signal > 0 or "uncaught target signal 0" in output


SMAPS = """\
00400000-00916000 r-xp 00000000 fe:00 16198223   /root/usr/bin/python3.11
Size:               5208 kB
Rss:                1000 kB
Anonymous:             0 kB
5500001000-5500801000 rw-p 00000000 00:00 0
Rss:                 200 kB
Anonymous:           200 kB
500000228000-5000006a7000 r-xp 00000000 fe:00 1   /usr/bin/qemu-aarch64-static
Rss:                3192 kB
Anonymous:             0 kB
7fc598000000-7fc59ffff000 rwxp 00000000 00:00 0
Rss:               28672 kB
Anonymous:         28672 kB
"""


def test_the_emulators_memory_is_told_apart() -> None:
    found = parse_smaps(SMAPS)
    assert found.guest == 1200 * 1024
    assert found.guest_anonymous == 200 * 1024
    assert found.emulator == (3192 + 28672) * 1024


@given(st.text(max_size=500))
def test_smaps_of_anything(text: str) -> None:
    assert parse_smaps("".join(c for c in text if c not in "\r\x0b\x0c\x1c\x1d\x1e\x85")).guest >= 0
