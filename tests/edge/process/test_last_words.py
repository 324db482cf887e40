"""How the death of a child process is put into words."""

from __future__ import annotations

import signal

import pytest

from boardfit.edge.errors import DoesNotFitError, EngineError
from boardfit.edge.process.last_words import explain_death, leave_words


@pytest.mark.parametrize("code", [-4, 132, -11, 139, -6, 134, -signal.SIGBUS, -8])
def test_native_deaths(code: int) -> None:
    error = explain_death("the engine", code)
    assert isinstance(error, EngineError) and error.next_step
    assert str(error).startswith("the engine: ") and "SIG" in str(error)


@pytest.mark.parametrize("code", [-9, 137])
def test_a_kill_is_taken_for_a_lack_of_memory(code: int) -> None:
    error = explain_death("the engine", code)
    assert isinstance(error, DoesNotFitError) and "lack of memory" in str(error)


@pytest.mark.parametrize("code", [0, 1, 5, -15, -2, 128, 200, 255, -99])
def test_other_ends_are_none(code: int) -> None:
    assert explain_death("the engine", code) is None


def test_words_without_a_parent_are_the_callers() -> None:
    assert not leave_words("GGML_ASSERT")
