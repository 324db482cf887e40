"""Add a group of options to a click command."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def add_options(*options: Callable[[F], F]) -> Callable[[F], F]:

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def pass_value(
    name: str, make: Callable[..., object], *options: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a decorator that adds the options to a command, which gets what `make` returns for
    them as its argument `name`.
    """
    probe = add_options(*options)(lambda: None)
    keys = [param.name for param in vars(probe)["__click_params__"]]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(*args: Any, **values: Any) -> Any:
            own = {key: values.pop(key) for key in keys}
            return command(*args, **{name: make(**own)}, **values)

        decorated: Callable[..., Any] = add_options(*options)(call)
        return decorated

    return decorate
