"""A request that is not answered: its status, and what the client can do about it."""

import math
from collections.abc import Mapping
from typing import Any

from boardfit.edge.errors import (
    DeadlineError,
    DoesNotFitError,
    EdgeError,
    EngineMissingError,
    InputError,
    UsageError,
)

#: Longest wait that is asked of a client: openai's gives up above two minutes.
MOST_RETRY_S = 120.0
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
          404: "not_found_error", 422: "deadline_infeasible", 429: "rate_limit_error"}  # fmt: skip


class RequestRefused(Exception):
    """`param` is the field of the request that is the cause; `details` go below `edge`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    @property
    def kind(self) -> str:
        """The error's type, in OpenAI's words."""
        return _KINDS.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )


def bad_field(param: str, expected: str, got: object) -> RequestRefused:
    """400 for a field of the request. What it holds is not repeated: it may be a prompt."""
    kind = {type(None): "null", dict: "an object", list: "an array", str: "a text",
            bool: "true or false"}.get(type(got), "a number")  # fmt: skip
    return RequestRefused(400, f"{param}: expected {expected}, got {kind}", param=param)


def unsupported(param: str, what: str) -> RequestRefused:
    """400 for something that this server cannot do yet and must not leave out in silence."""
    return RequestRefused(400, f"{param}: {what}", param=param, code="unsupported_parameter")


def busy(message: str, wait_s: float, **details: Any) -> RequestRefused:
    """429: others are before this request; `wait_s` is when another try is worth it."""
    wait_s = min(max(wait_s, 0.05), MOST_RETRY_S)
    headers = {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(round(wait_s * 1000))}
    return RequestRefused(429, message, code="busy", headers=headers, details=details)


def not_ready(message: str, wait_s: float = 1.0) -> RequestRefused:
    """503: the model is loading, or the server is ending."""
    headers = {"Retry-After": str(math.ceil(wait_s))}
    return RequestRefused(503, message, code="not_ready", headers=headers)


def infeasible(error: DeadlineError) -> RequestRefused:
    """422: no retry helps, a longer time does. openai's client retries neither."""
    needs = error.needs_s
    details: dict[str, Any] = {"allowed_s": error.allowed_s, "nearest_s": error.nearest_s}
    if needs is not None:
        details["needs_s"] = dict(zip(("low", "mid", "high"), needs, strict=True))
    if error.nearest_s is not None:
        details["would_fit"] = [f"within {math.ceil(error.nearest_s * 10) / 10}s"]
    return RequestRefused(
        422, str(error), code="deadline_infeasible", headers={"x-should-retry": "false"},
        details=details,
    )  # fmt: skip


def too_long(what: str, needs_s: float, allowed_s: float) -> RequestRefused:
    """The refusal of `what`, the first half of a sentence, which needs more time than it has."""
    return infeasible(
        DeadlineError(
            f"{what}, {allowed_s:g} s are allowed",
            allowed_s=allowed_s,
            needs_s=(needs_s, needs_s, needs_s),
            nearest_s=needs_s,
        )
    )


def refusal_of(error: Exception) -> RequestRefused:
    """The refusal that stands for an error. An unexpected one's text is left out: it may repeat a
    prompt.
    """
    if isinstance(error, RequestRefused):
        return error
    if isinstance(error, DeadlineError):
        return infeasible(error)
    if isinstance(error, (InputError, UsageError)):
        return RequestRefused(400, _with_step(error))
    if isinstance(error, DoesNotFitError):
        return RequestRefused(507, _with_step(error), code="out_of_memory")
    if isinstance(error, EngineMissingError):  # the package for what was asked is not here
        return RequestRefused(501, _with_step(error), code="unsupported")
    if isinstance(error, EdgeError):
        return RequestRefused(500, _with_step(error), code="engine_error")
    return RequestRefused(500, f"the server failed: {type(error).__name__}", code="internal_error")


def _with_step(error: EdgeError) -> str:
    return f"{error}; {error.next_step}" if error.next_step else str(error)
