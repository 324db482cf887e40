"""Every error boardfit raises on purpose, in one tree.

    EdgeError                       exit code
    ├── UsageError                  2   the command line or a combination of options is wrong
    ├── InputError                  3   a file, checkpoint or prompt is not what it should be
    │   ├── UnsafeInputError        3   ... and looks hostile: bounds, paths, pickles, escapes
    │   └── UnsupportedModelError   3   ... or is fine, but of a kind we do not convert or run
    ├── DoesNotFitError             4   memory or disk: by how many bytes, and what would fit
    ├── EngineMissingError          5   an engine or an extra is not installed: the pip line
    ├── EngineError                 5   an engine is there and failed
    ├── DeviceError                 6   a board answers what no board of ours answers
    │   └── DeviceUnreachableError  6   ... or cannot be reached, or does not answer in time
    ├── IntegrityError              7   a hash, size or signature does not match
    └── DeadlineError               8   the time allowed cannot be met

A message states what was got, what was expected and what to do next. Library code raises; only
`boardfit.edge.cli.main` prints, and maps an error to its exit code. Leaf classes also subclass the
builtin a caller would naturally catch.
"""


class EdgeError(Exception):
    """Base of all errors raised on purpose. `next_step` is a sentence or command that helps."""

    exit_code = 1

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step


class UsageError(EdgeError, ValueError):
    exit_code = 2


class InputError(EdgeError, ValueError):
    exit_code = 3


class UnsafeInputError(InputError):
    """The input breaks a safety rule; nothing of it was used."""


class UnsupportedModelError(InputError):
    """The input is well-formed, but of a family or format that we do not handle."""


class DoesNotFitError(EdgeError, MemoryError):
    """Memory or disk falls short. `shortfall_bytes` is how much is missing, if known."""

    exit_code = 4

    def __init__(
        self, message: str, *, shortfall_bytes: int | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.shortfall_bytes = shortfall_bytes


class EngineMissingError(EdgeError, ImportError):
    exit_code = 5


class EngineError(EdgeError, RuntimeError):
    exit_code = 5


class DeviceError(EdgeError, ConnectionError):
    """The answer of a board is too long, or is not what was asked for."""

    exit_code = 6


class DeviceUnreachableError(DeviceError):
    """A board or a server cannot be reached, or does not answer in time."""


class IntegrityError(EdgeError, ValueError):
    exit_code = 7


class DeadlineError(EdgeError, TimeoutError):
    """No version of a question can be answered in its time. Times in seconds, None if unknown:
    `allowed_s`, what the shortest answer needs (low, likely, high), and what would be feasible.
    """

    exit_code = 8

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        allowed_s: float | None = None,
        needs_s: tuple[float, float, float] | None = None,
        nearest_s: float | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.allowed_s, self.needs_s, self.nearest_s = allowed_s, needs_s, nearest_s
