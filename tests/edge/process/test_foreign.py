"""Foreign errors become ours; what foreign code prints beside them is held back."""

from __future__ import annotations

import os

import pytest

from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.process.foreign import foreign_errors, held_back_stderr


class PanicException(BaseException):
    """As pyo3 raises it."""


FOREIGN = [PanicException("at line\x1b[1m 3"), RuntimeError(), KeyError("x")]
OTHERS = [KeyboardInterrupt(), SystemExit(3), UsageError("x"), MemoryError()]


@pytest.mark.parametrize("error", FOREIGN)
def test_whatever_is_raised_becomes_an_input_error(error: BaseException) -> None:
    guarded = foreign_errors("x.json", next_step="download it again")
    with pytest.raises(InputError, match=r"^x\.json: ") as caught, guarded:
        raise error
    assert "\x1b" not in str(caught.value) and caught.value.next_step == "download it again"


@pytest.mark.parametrize("error", OTHERS)
def test_what_is_no_error_of_the_data_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), foreign_errors("x.json"):
        raise error


def test_stderr_is_held_back_and_dropped_with_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with held_back_stderr():
        os.write(2, b"warning\n")
    with pytest.raises(InputError), held_back_stderr(), foreign_errors("x"):
        os.write(2, b"thread panicked\n")
        raise PanicException
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "warning\nafter\n"
