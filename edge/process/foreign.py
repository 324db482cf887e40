"""Errors of foreign runtimes become errors of ours.

A panic of Rust code reaches Python as a class that is no `Exception`, with lines on stderr.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from boardfit.edge.errors import EdgeError, InputError
from boardfit.edge.units import printable


@contextlib.contextmanager
def foreign_errors(message: str, *, next_step: str | None = None) -> Iterator[None]:
    """Turn what foreign code raises on a stranger's data into an InputError with `message`."""
    try:
        yield
    except (EdgeError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = printable(str(error) or type(error).__name__)
        raise InputError(f"{message}: {reason}", next_step=next_step) from None


@contextlib.contextmanager
def held_back_stderr() -> Iterator[None]:
    """Hold back what is written to stderr, and write it only where the block raises nothing."""
    try:
        held, saved = os.memfd_create("stderr"), os.dup(2)
    except (AttributeError, OSError):  # not Linux, or there is no stderr
        yield
        return
    try:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        os.dup2(held, 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
        os.lseek(held, 0, os.SEEK_SET)
        while chunk := os.read(held, 1 << 16):
            os.write(2, chunk)
    finally:
        os.close(held)
        os.close(saved)
